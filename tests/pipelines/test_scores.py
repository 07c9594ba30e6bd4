"""Scores: hand arithmetic, and sums that add up however the work was spread."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.compare import PIXEL_DIMS
from pipelines.scores import THRESHOLDS_MM_H, merge, scores
from pipelines.units import unpack
from tests.measured import measured

MINUTES = pd.to_timedelta([5, 10, 15, 20], unit="min")


def fields(*values):
    """(lead_time, y, x) from one 2-D list per lead time."""
    array = np.array(values, float)
    return xr.DataArray(
        array, dims=("lead_time", "y", "x"), coords={"lead_time": MINUTES[: len(array)]}
    )


FORECAST = fields([[0.0, 1.0, 2.0], [3.0, np.nan, 5.0]])
OBSERVED = fields([[0.0, 0.0, 2.0], [1.0, 4.0, np.nan]])


def test_sums_by_hand():
    # Compared where both are known: forecast 0 1 2 3, observed 0 0 2 1.
    sums = measured(FORECAST, OBSERVED, [1.0, 2.0]).isel(lead_time=0)
    assert sums["hits"].values.tolist() == [2, 1]
    assert sums["misses"].values.tolist() == [0, 0]
    assert sums["false_alarms"].values.tolist() == [1, 1]
    assert sums["correct_negatives"].values.tolist() == [1, 2]
    assert float(sums["squared_error"]) == 1 + 4
    assert float(sums["absolute_error"]) == 1 + 2
    assert float(sums["pixels"]) == 4


def test_scores_by_hand():
    result = scores(measured(FORECAST, OBSERVED, [1.0, 2.0])).isel(lead_time=0)
    assert result["csi"].values == pytest.approx([2 / 3, 1 / 2])
    assert result["pod"].values.tolist() == [1, 1]
    assert result["far"].values == pytest.approx([1 / 3, 1 / 2])
    assert float(result["mse"]) == 5 / 4
    assert float(result["mae"]) == 3 / 4


def test_a_miss_is_rain_that_was_not_forecast():
    sums = measured(fields([[0.0, 3.0]]), fields([[3.0, 3.0]]), [2.0])
    assert float(sums["misses"].squeeze()) == 1
    assert float(scores(sums)["pod"].squeeze()) == 0.5


def test_a_pixel_that_another_forecast_lacks_counts_for_nobody():
    valid = xr.ones_like(FORECAST, bool)
    valid[0, 0, 1] = False
    sums = measured(FORECAST, OBSERVED, [1.0], valid=valid)
    assert float(sums["pixels"].squeeze()) == 3
    assert float(sums["false_alarms"].squeeze()) == 0
    assert float(sums["hits"].squeeze()) == 2
    assert float(sums["squared_error"].squeeze()) == 4


def test_a_score_without_cases_is_nan():
    dry = fields([[0.0, 0.0]])
    result = scores(measured(dry, dry, [1.0]))
    for name in ("csi", "pod", "far"):
        assert np.isnan(result[name]).all(), name
    assert float(result["mse"].squeeze()) == 0
    nothing = scores(measured(dry * np.nan, dry, [1.0]))
    assert all(np.isnan(nothing[name]).all() for name in nothing)


def test_an_event_is_at_or_above_its_threshold():
    sums = measured(fields([[0.5, 0.49]]), fields([[0.5, 0.5]]), [0.5])
    assert float(sums["hits"].squeeze()) == 1
    assert float(sums["misses"].squeeze()) == 1


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.5, 0.7, 1.1, 2.0, 5.0, 10.0, 30.0, 64.35])
def test_a_perfect_forecast_is_perfect_however_it_was_read(threshold):
    # xarray decodes a published forecast in double precision, Squall the archive in single.
    stored = np.arange(10_000, dtype=np.uint16).reshape(1, 100, 100)
    observed = fields(*unpack(stored).astype(float)).astype(np.float32)
    forecast = fields(*(stored * 0.01))
    for one, other in ((forecast, observed), (observed, forecast)):
        result = scores(measured(one, other, [threshold]))
        assert float(result["csi"].squeeze()) == 1.0
    events = measured(forecast, observed, [threshold])["hits"]
    assert float(events.squeeze()) == 10_000 - round(threshold * 100)


def test_the_usual_thresholds_are_hko7s():
    assert THRESHOLDS_MM_H == (0.5, 2.0, 5.0, 10.0, 30.0)
    sums = measured(FORECAST, OBSERVED)
    assert sums["threshold"].values.tolist() == list(THRESHOLDS_MM_H)
    assert set(sums) == set(PIXEL_DIMS)
    assert all(sums[name].dtype == np.float64 for name in sums)


def parts(count, seed=0):
    """Sums of `count` forecasts, each with its own lead times, as different init_times have."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        forecast, observed = rng.integers(0, 8, (2, 1 + number % 3, 4, 5)).astype(float)
        forecast[rng.random(forecast.shape) < 0.1] = np.nan
        result.append(measured(fields(*forecast), fields(*observed), [1.0, 3.0, 5.0]))
    return result


def assert_same(one, other):
    xr.testing.assert_identical(one.sortby(list(one.dims)), other.sortby(list(other.dims)))


PARTS = parts(6)


@settings(max_examples=25)
@given(st.permutations(range(6)), st.lists(st.integers(1, 5), max_size=3))
def test_sums_add_up_in_any_order_and_grouping(order, cuts):
    # Errors here are whole numbers, so sums are exact.
    shuffled = [PARTS[number] for number in order]
    bounds = [0, *sorted(cuts), 6]
    groups = [shuffled[a:b] for a, b in pairwise(bounds) if b > a]
    assert_same(merge(merge(group) for group in groups), merge(PARTS))


def test_merged_sums_are_the_sums_of_everything_together():
    rng = np.random.default_rng(1)
    forecast, observed = rng.integers(0, 8, (2, 3, 4, 30)).astype(float)
    whole = measured(fields(*forecast), fields(*observed))
    pieces = [
        measured(fields(*forecast[..., a : a + 10]), fields(*observed[..., a : a + 10]))
        for a in (0, 10, 20)
    ]
    assert_same(merge(pieces), whole)
    xr.testing.assert_identical(scores(merge(pieces)), scores(whole))


def test_the_score_of_all_is_not_the_mean_of_scores():
    much = measured(fields([[5.0] * 9]), fields([[5.0] * 9]), [1.0])
    little = measured(fields([[5.0]]), fields([[0.0]]), [1.0])
    assert float(scores(merge([much, little]))["csi"].squeeze()) == pytest.approx(0.9)


def test_a_lead_time_that_a_part_lacks_adds_nothing_there():
    one = measured(fields([[5.0]], [[5.0]]), fields([[5.0]], [[5.0]]), [1.0])
    other = measured(fields([[5.0]]), fields([[5.0]]), [1.0])
    total = merge([other, one])
    assert total["lead_time"].size == 2
    assert total["hits"].squeeze().values.tolist() == [2, 1]


def test_a_forecaster_that_a_part_lacks_adds_nothing_there():
    first, second = (
        part.expand_dims(forecaster=[name]) for part, name in zip(PARTS, "ab", strict=False)
    )
    total = merge([first, second])
    np.testing.assert_array_equal(
        total["hits"].sel(forecaster="a", lead_time=MINUTES[0]),
        first["hits"].sel(forecaster="a", lead_time=MINUTES[0]),
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_part_without_ensembles_takes_none_away(order):
    ensemble = xr.concat([FORECAST, FORECAST + 1], "member")
    plain, one, other = (measured(f, OBSERVED, [1.0]) for f in (FORECAST, ensemble, ensemble + 1))
    total = merge([(plain, one, other)[k] for k in order])
    assert float(total["pixels"].squeeze()) == 3 * 4
    assert float(total["ensemble_pixels"].squeeze()) == 2 * 4
    expected = scores(merge([one, other]))["crps"]
    np.testing.assert_allclose(scores(total)["crps"], expected, rtol=1e-12)


def test_sums_that_a_part_lacks_are_left_out_where_they_share_their_count():
    old = PARTS[1].drop_vars("absolute_error")
    total = scores(merge([old, PARTS[1]]))
    assert "mae" not in total
    np.testing.assert_allclose(total["mse"], scores(PARTS[1])["mse"])


def test_merging_one_part_changes_nothing():
    assert_same(reduce(lambda total, part: merge([total, part]), PARTS), merge(PARTS))
    assert_same(merge(PARTS[:1]), PARTS[0])
