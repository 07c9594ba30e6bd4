"""Recalibration: what is fitted, on what it is judged, and what a forecast gets of it."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.calibration import CalibrateSettings, fit
from pipelines.ensembles import BINS
from pipelines.errors import NotFoundError
from pipelines.products import recalibrated

SETTINGS = CalibrateSettings(block="1h", least_blocks=5, lead_step="30min", samples=200)
START = pd.Timestamp("2024-06-01")


def sums_of(chance, count=30, seed=0, cases=2000, thresholds=(1.0,), leads=(15, 30)):
    """Reliability sums by hour: it rains in `chance(p)` of the cases with probability p."""
    rng = np.random.default_rng(seed)
    shape = (count, len(leads), len(thresholds), len(BINS))
    events = rng.binomial(cases, np.clip(chance(BINS), 0, 1), shape).astype(float)
    dims = ("init_time", "lead_time", "threshold", "probability")
    return xr.Dataset(
        {
            "probability_cases": (dims, np.full(shape, float(cases))),
            "probability_sum": (dims, np.broadcast_to(BINS * cases, shape)),
            "probability_events": (dims, events),
        },
        {
            "init_time": pd.date_range(START, periods=count, freq="1h"),
            "lead_time": pd.to_timedelta(leads, "min"),
            "threshold": list(thresholds),
            "probability": BINS,
        },
    )


def over_confident(p):
    return 0.05 + 0.5 * p


def test_an_isotonic_fit_by_hand():
    """0.5 and 0.6 rained in the wrong order: both get what they have together."""
    table = {0.0: 0.0, 0.5: 0.8, 0.6: 0.4, 1.0: 1.0}
    sums = sums_of(over_confident, leads=(15,))
    cases = sums["probability_cases"] * 0
    events = cases.copy()
    for p, frequency in table.items():
        cases.loc[{"probability": p}] = 100.0
        events.loc[{"probability": p}] = 100.0 * frequency
    sums = sums.assign(
        probability_cases=cases,
        probability_events=events,
        probability_sum=cases * sums["probability"],
    )
    (curve,) = fit(sums, "steps", SETTINGS).curves
    assert curve.probability == pytest.approx((0, 0.5, 0.6, 1))
    assert curve.frequency == pytest.approx((0, 0.6, 0.6, 1))


def test_an_over_confident_ensemble_becomes_reliable_on_events_not_seen():
    calibration = fit(sums_of(over_confident), "steps", SETTINGS)
    (one,) = calibration.reliability
    assert one.brier_after < one.brier_before
    assert one.change_interval[1] < 0
    assert calibration.proven == (1.0,)
    np.testing.assert_allclose(one.after, one.frequency, atol=0.02)
    assert max(np.abs(np.array(one.before) - one.frequency)) > 0.4


def test_one_that_is_right_already_is_not_helped():
    calibration = fit(sums_of(lambda p: p, cases=300), "steps", SETTINGS)
    assert calibration.proven == ()


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_it_is_monotone_within_bounds_and_keeps_the_mean(seed):
    rng = np.random.default_rng(seed)
    sums = sums_of(lambda p: rng.random(p.shape), seed=seed, cases=50, leads=(15,))
    (curve,) = fit(sums, "steps", SETTINGS).curves
    assert (np.diff(curve.frequency) >= 0).all()
    assert min(curve.frequency) >= 0
    assert max(curve.frequency) <= 1
    total = sums.sum("init_time").squeeze()
    cases = total["probability_cases"].values
    mean = (np.array(curve.frequency) * cases).sum() / cases.sum()
    assert mean == pytest.approx(float(total["probability_events"].sum()) / cases.sum())


def test_lead_times_are_fitted_by_stretches_and_the_last_serves_later_ones():
    short, long = (sums_of(chance, leads=(lead,)) for chance, lead in (
        (lambda p: p, 15), (over_confident, 45)
    ))  # fmt: skip
    calibration = fit(xr.concat([short, long], "lead_time"), "steps", SETTINGS)
    assert [curve.until_seconds for curve in calibration.curves] == [1800, 3600]
    at = {lead: calibration.curve(1.0, pd.Timedelta(lead)).until_seconds for lead in (
        "5min", "30min", "31min", "3h"
    )}  # fmt: skip
    assert at == {"5min": 1800, "30min": 1800, "31min": 3600, "3h": 3600}
    assert calibration.curve(2.0, pd.Timedelta("5min")) is None


def test_a_threshold_with_rain_in_too_few_events_is_left():
    sums = sums_of(over_confident, thresholds=(1.0, 20.0))
    rare = xr.where(sums["threshold"] == 20.0, sums["init_time"] < START + pd.Timedelta("4h"), True)
    sums = sums.assign(probability_events=sums["probability_events"] * rare)
    calibration = fit(sums, "steps", SETTINGS)
    assert calibration.left_out == (20.0,)
    assert {curve.threshold_mm_h for curve in calibration.curves} == {1.0}
    with pytest.raises(NotFoundError, match="too little to recalibrate"):
        fit(sums.sel(threshold=[20.0]), "steps", SETTINGS)


def shares(values, thresholds=(1.0, 9.0)):
    field = np.broadcast_to(np.array(values, "f4"), (len(thresholds), 2, 1, len(values)))
    return xr.DataArray(
        field.copy(),
        dims=("threshold", "lead_time", "y", "x"),
        coords={"threshold": list(thresholds), "lead_time": pd.to_timedelta([15, 45], "min")},
        attrs={"units": "1"},
    )


@pytest.mark.parametrize("chunks", [None, {"lead_time": 1}])
def test_a_product_is_corrected_where_it_is_known_how(chunks):
    calibration = fit(sums_of(over_confident), "steps", SETTINGS)
    before = shares([0.0, 0.35, 1.0, np.nan])
    after, told = recalibrated(before if chunks is None else before.chunk(chunks), calibration)
    first = calibration.curve(1.0, pd.Timedelta("15min"))
    wanted = np.interp([0, 0.35, 1], first.probability, first.frequency)
    np.testing.assert_allclose(after[0, 0, 0, :3], wanted, rtol=1e-5)
    assert np.isnan(after[0, 0, 0, 3])
    np.testing.assert_array_equal(after.sel(threshold=9.0), before.sel(threshold=9.0))
    assert after.dtype == np.float32
    assert after.attrs == before.attrs
    assert told["calibration"] == calibration.version
    assert "not proven at 9 mm h-1" in told["calibration_note"]
    plain, told = recalibrated(before, None)
    assert told["calibration"] == "none"
    xr.testing.assert_identical(plain, before)
