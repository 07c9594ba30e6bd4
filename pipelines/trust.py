"""How far ahead a forecast is of use, and since when advection would have been better.

A forecaster, `OWN`, beside its rivals: what was counted of each, on the same forecasts and pixels,
is given by `side`. The score is CSI = hits / (hits + misses + false alarms) of an event; it is not
known (NaN) where the event was not observed.

**Trust horizon**: the lead time at which a forecast stops beating persistence,

    T = the last lead time L with CSI(l) − CSI_persistence(l) > 0 at l = L and at every shorter l

and 0 where there is none. To be as good is not to beat, nor is a lead time at which nothing is
known. Where the shortest lead time is not known, T is not. Its interval is what the middle 95 % of
the bootstrap's draws lie between (`pipelines.bootstrap`). Only those blocks of time are drawn in
which the event was observed: dry ones say nothing.

**Behind advection**: time is cut into chunks. A chunk counts once it is over, and if the event was
observed in it. A forecaster is behind in a chunk if its CSI over all lead times together is lower
than advection's. It has been behind since the first of the chunks in which it was, one after the
other up to the newest.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from pipelines.bootstrap import LEVEL, SAMPLES, block_sums, resampled
from pipelines.times import Time

OWN, PERSISTENCE, ADVECTION = "own", "persistence", "advection"
COUNTS = ("hits", "misses", "false_alarms")


def csi(sums: xr.Dataset) -> xr.DataArray:
    """The critical success index of `COUNTS`; NaN where the event was not observed."""
    observed = sums["hits"] + sums["misses"]
    return sums["hits"] / (observed + sums["false_alarms"]).where(observed > 0)


# The trust horizon -------------------------------------------------------------------------------


def trust_horizon(scores: xr.DataArray) -> xr.DataArray:
    """T (…), seconds, of CSI (side, lead_time, …), lead times ascending; NaN where not known."""
    gain = scores.sel(side=OWN) - scores.sel(side=PERSISTENCE)
    beats = (gain > 0).astype("i8").cumprod("lead_time")
    seconds = scores["lead_time"] / np.timedelta64(1, "s")
    return (beats * seconds).max("lead_time").where(gain.isel(lead_time=0, drop=True).notnull())


def is_reached(scores: xr.DataArray) -> bool:
    """Whether CSI (side, lead_time) shows where it stops beating persistence.

    If not, it beats it at every lead time that is known, and T is only a lower bound.
    """
    gain = (scores.sel(side=OWN) - scores.sel(side=PERSISTENCE)).values
    stops = np.flatnonzero(~(gain > 0))
    return len(stops) > 0 and bool(gain[stops[0]] <= 0)


def horizon_interval(
    sums: xr.Dataset, block: pd.Timedelta, least_blocks: int, samples: int = SAMPLES
) -> tuple[pd.Timedelta, pd.Timedelta] | None:
    """The 95 % interval of T, of lead times (or 0), from counts (side, init_time, lead_time).

    None where there are too few blocks with the event, or draws of which T is not known.
    """
    blocks = block_sums(sums.sel(side=OWN, drop=True), block).sum("lead_time")
    wet = blocks["block"].values[(blocks["hits"] + blocks["misses"]).values > 0]
    if len(wet) < least_blocks:
        return None
    inside = pd.DatetimeIndex(sums["init_time"].values).floor(block).isin(wet)
    draws = trust_horizon(csi(resampled(sums.isel(init_time=inside), block, samples)))
    if draws.isnull().any():
        return None
    tail = (1 - LEVEL) / 2
    lower, upper = np.quantile(draws.values, [tail, 1 - tail], method="inverted_cdf")
    return pd.Timedelta(seconds=lower), pd.Timedelta(seconds=upper)


# Behind advection --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """From the first chunk's beginning to the last one's end, and both CSI of these chunks."""

    since: Time
    until: Time
    csi: float
    advection: float

    @property
    def duration(self) -> pd.Timedelta:
        """How long it has been behind."""
        return self.until - self.since


def behind_advection(
    sums: xr.Dataset, until: pd.Timestamp, chunk: pd.Timedelta, least_chunks: int
) -> Behind | None:
    """The time up to the newest chunk in which a forecaster was behind advection; None if none.

    `sums` : counts (side, init_time, lead_time). `until` : chunks that end by then are over.
    `least_chunks` : with fewer that count it is not said to be behind
    """
    chunks = block_sums(sums, chunk).sum("lead_time").sortby("block")
    chunks = chunks.sel(block=chunks["block"] < until.floor(chunk).to_datetime64())
    scores = csi(chunks).dropna("block")
    lower = (scores.sel(side=OWN) < scores.sel(side=ADVECTION)).values
    run = len(lower) if lower.all() else int(np.argmin(lower[::-1]))
    if run < least_chunks:
        return None
    times = pd.DatetimeIndex(scores["block"].values[-run:])
    pooled = csi(chunks.sel(block=times).sum("block"))
    mine, theirs = (float(pooled.sel(side=side)) for side in (OWN, ADVECTION))
    return Behind(times[0], times[-1] + chunk, mine, theirs)
