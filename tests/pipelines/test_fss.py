"""Fractions skill score: hand arithmetic, its limits, and sums that add up."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.compare import Scoring, compare
from pipelines.fss import windows
from pipelines.grid import Grid
from pipelines.scores import merge, scores
from tests.measured import measured

NAN = np.nan


def field(*rows):
    return xr.DataArray(np.array(rows, float), dims=("y", "x"))


def fss(forecast, observed, *sizes, threshold=1.0):
    """FSS at windows of so many pixels a side."""
    sums = measured(forecast, observed, [threshold], {float(size): (size, size) for size in sizes})
    ratio = sums["fraction_error"] / sums["fraction_reference"]
    return (1 - ratio).sel(threshold=threshold).values.tolist()


def sums_of(forecast, observed, size=3):
    sums = measured(forecast, observed, [1.0], {1.0: (size, size)}).squeeze()
    return float(sums["fraction_error"]), float(sums["fraction_reference"])


def test_sums_by_hand():
    # In windows of three, cut at the edges: forecast 1/2 1/3 0 0, observed 0 1/3 1/3 1/2.
    error, reference = sums_of(field([1, 0, 0, 0]), field([0, 0, 1, 0]))
    assert error == pytest.approx(1 / 4 + 0 + 1 / 9 + 1 / 4)
    assert reference == pytest.approx(1 / 4 + 1 / 9 + 1 / 9 + 1 / 9 + 1 / 4)


def test_a_missing_pixel_is_neither_dry_nor_the_centre_of_a_neighbourhood():
    # The second pixel is missing. Around the others: forecast 1 0 0, observed 0 1/2 1/2.
    for forecast, observed in (
        (field([1, NAN, 0, 0]), field([0, 0, 1, 0])),
        (field([1, 0, 0, 0]), field([0, NAN, 1, 0])),
    ):
        error, reference = sums_of(forecast, observed)
        assert error == pytest.approx(1 + 1 / 4 + 1 / 4)
        assert reference == pytest.approx(1 + 1 / 4 + 1 / 4)


def test_a_pixel_that_another_forecast_lacks_counts_for_nobody():
    valid = field([1, 0, 1, 1]).astype(bool)
    forecast, observed = field([1, 0, 0, 0]), field([0, 0, 1, 0])
    got = measured(forecast, observed, [1.0], {1.0: (3, 3)}, valid)
    missing = measured(forecast, observed.where(valid), [1.0], {1.0: (3, 3)})
    xr.testing.assert_identical(got, missing)


def test_a_window_may_have_other_rows_than_columns():
    forecast, observed = field([1, 0], [0, 0]), field([0, 0], [1, 0])
    tall = measured(forecast, observed, [1.0], {1.0: (3, 1)})
    wide = measured(forecast, observed, [1.0], {1.0: (1, 3)})
    assert float(tall["fraction_error"].squeeze()) == 0
    assert float(wide["fraction_error"].squeeze()) == float(wide["fraction_reference"].squeeze())


def test_without_rain_there_is_no_score():
    dry = field([0, 0])
    assert sums_of(dry, dry) == (0, 0)
    assert sums_of(field([NAN, NAN]), field([5, 5])) == (0, 0)


fields = st.integers(0, 2**32 - 1).map(
    lambda seed: [
        field(*np.where(gaps < 0.1, NAN, rain))
        for rain, gaps in (
            (rng.integers(0, 4, (9, 11)).astype(float), rng.random((9, 11)))
            for rng in np.random.default_rng(seed).spawn(2)
        )
    ]
)


@given(fields, st.sampled_from([1, 3, 7, 25]))
def test_it_is_between_0_and_1_and_1_for_a_perfect_forecast(pair, size):
    forecast, observed = pair
    (score,) = fss(forecast, observed, size)
    assert -1e-12 <= score <= 1
    assert fss(observed, observed, size) == [1]
    assert score == pytest.approx(fss(observed, forecast, size)[0])


@given(fields)
def test_at_one_pixel_it_is_twice_csi_by_one_plus_csi(pair):
    csi = float(scores(measured(*pair, [1.0]))["csi"].squeeze())
    assert fss(*pair, 1)[0] == pytest.approx(2 * csi / (1 + csi))


@given(fields)
def test_over_everything_only_the_frequencies_count(pair):
    # Roberts and Lean 2008, equation 8.
    forecast, observed = pair
    both = forecast.notnull() & observed.notnull()
    f, o = (float((one.where(both) >= 1).sum()) for one in pair)
    assert fss(forecast, observed, 99)[0] == pytest.approx(2 * f * o / (f**2 + o**2))


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 5))
def test_a_displaced_blob_is_forecast_the_better_the_larger_the_scale(size, down, right):
    forecast, observed = np.zeros((2, 60, 60))
    forecast[24 : 24 + size, 24 : 24 + size] = 2
    observed[24 + down : 24 + down + size, 24 + right : 24 + right + size] = 2
    values = fss(field(*forecast), field(*observed), 1, 3, 5, 9, 17)
    assert (np.diff(values) > -1e-12).all()
    if max(down, right) >= size:
        assert values[0] == pytest.approx(0)
    assert values[-1] > 0.3


def random_parts():
    rng = np.random.default_rng(0)
    lead_times = pd.to_timedelta([5, 10, 15], unit="min")
    parts = []
    for number in range(5):
        count = 1 + number % 3
        rain = rng.integers(0, 5, (2, count, 6, 7)).astype(float)
        one, other = (
            xr.DataArray(values, {"lead_time": lead_times[:count]}, ("lead_time", "y", "x"))
            for values in rain
        )
        scoring = Scoring((1.0, 3.0), {5.0: (3, 3), 9.0: (5, 5)})
        parts.append(compare({"a": one, "b": one + 1}, other, scoring))
    return parts


PARTS = random_parts()


@given(st.permutations(range(5)), st.integers(1, 4))
def test_the_order_of_merging_does_not_change_the_score(order, cut):
    shuffled = [PARTS[number] for number in order]
    grouped = merge([merge(shuffled[:cut]), merge(shuffled[cut:])])
    xr.testing.assert_allclose(scores(grouped), scores(merge(PARTS)), rtol=1e-12)


def test_sums_have_a_score_for_every_scale_and_threshold():
    result = scores(merge(PARTS))
    assert set(result["fss"].dims) == {"forecaster", "lead_time", "region", "threshold", "scale"}
    assert result["scale"].attrs["units"] == "km"
    assert "scale" not in result["csi"].dims
    assert result["fss"].notnull().all()


def test_sums_without_fractions_are_read_and_merged_as_before():
    old = [part.drop_dims("scale") for part in PARTS]
    assert "fss" not in scores(merge(old))
    mixed = scores(merge([PARTS[0], *old[1:]]))
    assert "fss" not in mixed
    xr.testing.assert_identical(
        mixed["csi"].drop_vars("scale", errors="ignore"), scores(merge(old))["csi"]
    )


def test_scales_are_kilometres_and_windows_odd():
    kilometre = Grid.from_corner("EPSG:3035", 0, 0, (1000, 1000), (4, 4))
    assert windows(kilometre, [0.1, 1, 2, 5, 20]) == {
        0.1: (1, 1),
        1: (1, 1),
        2: (3, 3),
        5: (5, 5),
        20: (21, 21),
    }
    wide = Grid.from_corner("EPSG:3035", 0, 0, (2000, 500), (4, 4))
    assert windows(wide, [5]) == {5: (11, 3)}


def test_a_degree_of_longitude_is_shorter_at_high_latitudes():
    grid = Grid.from_corner("EPSG:4326", 10, 60.5, (0.01, 0.01), (100, 100))
    assert grid.pixel_km == pytest.approx((0.556, 1.112), rel=1e-3)
    assert windows(grid, [5]) == {5: (5, 9)}
