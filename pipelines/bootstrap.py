"""How sure a score is: the bootstrap over blocks of forecasts (Wilks 2019, sec. 5.3.5).

Forecasts that start minutes apart see the same rain, so they are not drawn one by one but in blocks
of time, an event each: whole blocks are drawn with replacement, as many as there are, their sums
are added up, and scores are divided out of that, a thousand times. What the middle 95 % of these
scores lie between is the interval. As sums are drawn, forecasters compared stay paired: each draw
has the same blocks for all.

    draws = scores(resampled(sums, "6h"))
    interval(draws["csi"].sel(forecaster="ours") - draws["csi"].sel(forecaster="advection"))
"""

import datetime as dt

import numpy as np
import pandas as pd
import xarray as xr

SAMPLES = 1000
LEVEL = 0.95


def block_sums(sums: xr.Dataset, length: str | dt.timedelta) -> xr.Dataset:
    """Sums (block, …) of sums (init_time, …): blocks of UTC time of that length that have any."""
    blocks = pd.DatetimeIndex(sums["init_time"].values).floor(pd.Timedelta(length))
    order = np.argsort(blocks, kind="stable")
    labels, starts = np.unique(blocks[order], return_index=True)
    only = sums.drop_vars([name for name in sums.coords if name not in sums.dims])
    added = xr.apply_ufunc(  # much faster than groupby
        lambda values: np.add.reduceat(values[..., order], starts, axis=-1),
        only,
        input_core_dims=[["init_time"]],
        output_core_dims=[["block"]],
    )
    return added.assign_coords(block=labels).transpose("block", ...)


def resampled(
    sums: xr.Dataset, length: str | dt.timedelta, samples: int = SAMPLES, seed: int = 0
) -> xr.Dataset:
    """Sums (sample, …): of as many blocks as there are, drawn with replacement.

    `length` : of a block. The same seed draws the same blocks.
    """
    blocks = block_sums(sums, length)
    count = blocks.sizes["block"]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    weights = xr.DataArray(drawn.astype("f8"), dims=("sample", "block"))
    return blocks.map(lambda one: xr.dot(weights, one, dim="block"))


def interval(draws: xr.DataArray, level: float = LEVEL) -> xr.DataArray:
    """What the middle `level` of the draws lie between (bound: lower, upper).

    NaN where a draw is, as of a score without cases: too few events to say.
    """
    tail = (1 - level) / 2
    bounds = draws.quantile([tail, 1 - tail], "sample", skipna=False)
    return bounds.rename(quantile="bound").assign_coords(bound=["lower", "upper"])
