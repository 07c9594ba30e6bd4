"""The block bootstrap."""

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from pipelines.bootstrap import block_sums, interval, resampled


def sums(values, every="1h"):
    times = pd.date_range("2024-01-01", periods=len(values), freq=every)
    count = len(values)
    variables = {"error": np.asarray(values, float), "pixels": np.ones(count)}
    return xr.Dataset(
        {name: ("init_time", content) for name, content in variables.items()},
        coords={"init_time": times, "model": ("init_time", ["m"] * count)},
    )


def test_blocks_by_hand():
    blocks = block_sums(sums([1, 2, 3, 4, 5]), "2h")
    assert blocks["error"].values.tolist() == [3, 7, 5]
    assert blocks["pixels"].values.tolist() == [2, 2, 1]


def test_empty_time_between_blocks_is_no_block():
    apart = sums([1, 2]).assign_coords(init_time=pd.to_datetime(["2024-01-01", "2024-01-05"]))
    assert block_sums(apart, "6h").sizes["block"] == 2


def test_every_draw_has_as_many_blocks():
    draws = resampled(sums(np.arange(12)), "1h", samples=50)
    assert (draws["pixels"] == 12).all()
    assert np.unique(draws["error"]).size > 20


def test_the_same_seed_draws_the_same():
    one, other = (resampled(sums(np.arange(12)), "1h", samples=9, seed=3) for _ in range(2))
    xr.testing.assert_identical(one, other)


def test_one_block_says_nothing_of_the_spread():
    bounds = interval(resampled(sums([1, 2, 3]), "1D")["error"])
    assert bounds.values.tolist() == [6, 6]


def test_as_scipy_draws():
    values = np.random.default_rng(1).gamma(2, size=40)
    draws = resampled(sums(values), "1h", samples=4000)
    bounds = interval(draws["error"] / draws["pixels"])
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert np.allclose(bounds, [wanted.low, wanted.high], rtol=0.03)


def test_neighbours_alike_are_less_sure():
    """Sixty of the same values twice over tell no more than thirty."""
    values = np.random.default_rng(1).gamma(2, size=30)
    twice = sums(np.repeat(values, 2), "30min")
    width = {}
    for length in ("30min", "1h"):
        draws = resampled(twice, length)
        width[length] = interval(draws["error"] / draws["pixels"]).diff("bound").item()
    assert width["1h"] > 1.2 * width["30min"]


def test_a_draw_without_cases_is_told():
    draws = xr.DataArray([0.1, np.nan, 0.3], dims="sample")
    assert interval(draws).isnull().all()
