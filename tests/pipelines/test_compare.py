"""Comparing forecasts with what was observed: regions, masks, ensembles, lazily."""

import dask.array
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.compare import DIMS, DOMAIN, Scoring, compare
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.scores import merge, scores
from tests.measured import measured

LEADS = pd.to_timedelta([5, 10], unit="min")
GRID = Grid.from_corner("EPSG:3035", 4_000_000, 3_000_000, (1000, 2000), (24, 20))
FULL = Scoring((0.5, 2.0), {5.0: (3, 5)}, {}, (1.0, 2.0))


def field(*rows):
    return xr.DataArray(np.array(rows, float), dims=("y", "x"))


def rain(seed, members=None, shape=(24, 20)):
    rng = np.random.default_rng(seed)
    sizes = (*([members] if members else []), 2, *shape)
    dims = (*(["member"] if members else []), "lead_time", "y", "x")
    values = np.where(rng.random(sizes) < 0.4, rng.gamma(0.7, 3.0, sizes).round(2), 0.0)
    return xr.DataArray(values.astype("f4"), dims=dims, coords={"lead_time": LEADS})


def test_scores_of_events_by_hand():
    # Two hits, one false alarm, one miss, four correct negatives.
    result = scores(measured(field([1, 1, 1, 0, 0, 0, 0, 0]), field([1, 1, 0, 1, 0, 0, 0, 0]), [1]))
    chance = 3 * 3 / 8
    for name, value in {
        "csi": 2 / 4,
        "pod": 2 / 3,
        "far": 1 / 3,
        "bias": 1.0,
        "ets": (2 - chance) / (4 - chance),
        "hss": 2 * (2 * 4 - 1) / (3 * 5 + 3 * 5),
    }.items():
        assert result[name].item() == pytest.approx(value), name


def test_scores_of_rain_by_hand():
    result = scores(measured(field([1, 2, 3]), field([1, 3, 8]), [1]))
    assert result["mean_error"].item() == pytest.approx(-2)
    assert result["correlation"].item() == pytest.approx(np.corrcoef([1, 2, 3], [1, 3, 8])[0, 1])
    assert result["correlation_uncentred"].item() == pytest.approx(31 / np.sqrt(14 * 74))


def test_one_value_everywhere_correlates_with_nothing():
    result = scores(measured(field([0.7] * 50), field([0.1] * 25 + [0.2] * 25), [1]))
    assert np.isnan(result["correlation"].item())


def test_what_does_not_count_is_told():
    sums = measured(field([1, np.nan, 3]), field([1, 2, np.nan]), [1])
    assert (sums["pixels"].item(), sums["missing"].item()) == (1, 2)


def test_every_sum_is_additive_and_there():
    sums = compare({"a": rain(1, members=4), "b": rain(2)}, rain(3), FULL)
    assert set(sums) == set(DIMS)
    assert sums["hits"].dims == ("forecaster", "lead_time", "region", "threshold")
    assert all(sums[name].dtype == np.float64 for name in sums)
    assert not sums.isnull().any().to_array().any()
    assert float(sums["ensemble_pixels"].sel(forecaster="b").sum()) == 0


def test_an_ensemble_is_scored_by_its_mean_as_the_others_are():
    members = rain(1, members=4)
    both = compare({"members": members, "mean": members.mean("member")}, rain(3), FULL)
    of_members, of_mean = (both.sel(forecaster=name) for name in ("members", "mean"))
    for name in ("hits", "squared_error", "fraction_error", "ssim_sum", "forecast_power_sum"):
        np.testing.assert_allclose(of_members[name], of_mean[name], rtol=1e-6)


@given(st.permutations(range(5)))
def test_the_order_of_members_changes_nothing(order):
    members = rain(1, members=5)
    one, other = (compare({"a": m}, rain(3), FULL) for m in (members, members.isel(member=order)))
    xr.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # of the mean, single precision


def test_lazy_fields_give_the_same_bits():
    members, observed = rain(1, members=4), rain(3)
    lazy = members.copy(data=dask.array.from_array(members.values, chunks=(2, 1, 7, 5)))
    chunked = observed.copy(data=dask.array.from_array(observed.values, chunks=(2, 9, 9)))
    xr.testing.assert_identical(
        compare({"a": lazy}, chunked, FULL), compare({"a": members}, observed, FULL)
    )


def test_a_lead_time_alone_gives_the_same_bits():
    forecasts, observed = {"a": rain(1, members=3), "b": rain(2)}, rain(3)
    whole = compare(forecasts, observed, FULL)
    parts = [compare(forecasts, observed.isel(lead_time=[k]), FULL) for k in range(2)]
    xr.testing.assert_identical(xr.concat(parts, "lead_time"), whole)
    xr.testing.assert_identical(merge(parts[::-1]).sortby("lead_time"), whole)


def test_all_forecasters_are_compared_on_the_same_pixels():
    one, other = rain(1), rain(2)
    one[0, :5] = np.nan
    other[0, :, :4] = np.nan
    sums = compare({"a": one, "b": other}, rain(3), FULL)
    assert sums["pixels"].sel(region=DOMAIN).values.tolist() == [[19 * 16, 24 * 20]] * 2


def test_regions_that_share_the_grid_out_add_up_to_it():
    lat, lon = (np.asarray(GRID.coords()[name][1]) for name in ("lat", "lon"))
    middle = float(np.median(lon))
    boxes = {
        "west": (lon.min(), lat.min(), middle, lat.max()),
        "east": (np.nextafter(middle, 180), lat.min(), lon.max(), lat.max()),
    }
    scoring = Scoring.on(GRID, (0.5, 2.0), (), boxes)
    sums = compare({"a": rain(1), "b": rain(2)}, rain(3), scoring)
    assert sums["region"].values.tolist() == [DOMAIN, "west", "east"]
    for name in ("hits", "misses", "squared_error", "pixels", "missing", "rain_product"):
        parts = sums[name].sel(region=["west", "east"]).sum("region")
        np.testing.assert_allclose(parts, sums[name].sel(region=DOMAIN), rtol=1e-12)
    assert (sums["pixels"] > 0).all()


def test_a_region_of_a_grid_of_longitudes_and_latitudes():
    grid = Grid.from_corner("EPSG:4326", -100.0, 40.0, (0.01, 0.01), (24, 20))
    box = (-99.95, 39.0, -99.0, 39.9)  # without the 5 columns in the west and the 10 rows on top
    mask = Scoring.on(grid, (0.5,), (), {"south": box}).masks["south"]
    expected = np.zeros((24, 20), bool)
    expected[10:, 5:] = True
    np.testing.assert_array_equal(mask, expected)


def test_thresholds_in_any_order_or_twice_are_the_same_thresholds():
    scoring = Scoring.on(GRID, (2.0, 0.5, 2), ())
    assert scoring.thresholds == (0.5, 2.0)
    with pytest.raises(AssertionError):  # hits would be those of other thresholds
        Scoring((2.0, 0.5))


def test_a_region_elsewhere_is_an_error():
    with pytest.raises(SquallError, match="0 pixels"):
        Scoring.on(GRID, (0.5,), (), {"sea": (-40.0, 0.0, -39.0, 1.0)})
    with pytest.raises(SquallError, match="cannot be scored"):
        Scoring.on(GRID, (0.5,), (), {DOMAIN: (0.0, 0.0, 90.0, 90.0)})


def test_nothing_that_counts_gives_no_scores_and_no_error():
    nothing = rain(1) * np.nan
    sums = compare({"a": nothing, "b": rain(2, members=3)}, rain(3), FULL)
    assert float(sums.drop_vars("missing").to_array().sum()) == 0
    result = scores(sums).drop_vars("probability_cases")
    assert result.isnull().all().to_array().all()


def test_a_perfect_forecast_has_perfect_scores():
    observed = rain(3)
    result = scores(compare({"a": observed}, observed, FULL))
    for name in ("csi", "pod", "bias", "hss", "ets", "correlation", "fss", "ssim", "power_ratio"):
        values = result[name].values
        np.testing.assert_allclose(values[~np.isnan(values)], 1, rtol=1e-9)
    for name in ("far", "mse", "mae", "mean_error"):
        assert (result[name] == 0).all(), name
