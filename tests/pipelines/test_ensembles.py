"""Scores of ensembles by hand, and what must hold of any."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.compare import DIMS
from pipelines.ensembles import BINS, ensemble_scores, ensemble_sums


def of(members, observed, thresholds=(1.0,)):
    """Scores of (member, pixel) against (pixel)."""
    return ensemble_scores(sums_of(members, observed, thresholds))


def sums_of(members, observed, thresholds=(1.0,)):
    sums = ensemble_sums(np.array(members, "f4"), np.array(observed, "f4"), thresholds)
    coords = {"probability": BINS, "threshold": list(thresholds)}
    return xr.Dataset({name: (DIMS[name], value) for name, value in sums.items()}, coords)


def test_crps_by_hand():
    # Members 0, 1, 3 and 2 fell: mean error (2 + 1 + 1)/3; pairs differ by 1, 3 and 2.
    result = of([[0], [1], [3]], [2])
    assert result["crps"].item() == pytest.approx(4 / 3 - (1 + 3 + 2) / 9)
    assert result["crps_fair"].item() == pytest.approx(4 / 3 - (1 + 3 + 2) / 6)


def test_spread_and_skill_by_hand():
    result = of([[0, 1], [2, 1]], [2, 2])
    assert result["skill"].item() == pytest.approx(1)
    assert result["spread"].item() == pytest.approx(np.sqrt(3 / 2 * (2 + 0) / 2))
    assert result["members"].item() == 2


def test_brier_and_reliability_by_hand():
    # Two of four say 1 mm/h or more, and it did not; all four, and it did; none, and it did.
    members = [[0, 1, 0], [0, 2, 0], [1, 1, 0], [3, 5, 0]]
    sums = sums_of(members, [0, 1, 4])
    result = ensemble_scores(sums)
    assert result["brier"].item() == pytest.approx((0.5**2 + 0 + 1) / 3)
    cases = result["probability_cases"].isel(threshold=0)
    assert cases.sel(probability=[0, 0.5, 1]).values.tolist() == [1, 1, 1]
    assert float(cases.sum()) == 3
    frequency = result["observed_frequency"].isel(threshold=0)
    assert frequency.sel(probability=[0, 0.5, 1]).values.tolist() == [1, 0, 1]


def test_roc_by_hand():
    members = [[0, 1, 0, 1], [0, 1, 1, 1]]  # p = 0, 1, 0.5, 1
    result = of(members, [0, 1, 1, 0])
    pod, false_rate = (result[n].isel(threshold=0) for n in ("warning_pod", "warning_far_rate"))
    assert pod.sel(probability=[0, 0.5, 1]).values.tolist() == [1, 1, 0.5]
    assert false_rate.sel(probability=[0, 0.5, 1]).values.tolist() == [1, 0.5, 0.5]
    # Through (0, 0), (0.5, 0.5), (0.5, 1), (1, 1).
    assert result["roc_area"].item() == pytest.approx(0.125 + 0.5)


def test_ranks_by_hand():
    # 2 is above 0 and 1; 0 is equal to both members: any of three ranks.
    assert sums_of([[0, 0], [1, 0]], [2, 0])["ranks"].values.tolist() == pytest.approx(
        [1 / 3, 1 / 3, 1 + 1 / 3]
    )


def test_a_forecaster_of_one_value_has_the_error_as_its_crps():
    result = of([[2, 5]], [3, 1])
    assert result["crps"].item() == pytest.approx((1 + 4) / 2)


def test_members_alike_to_the_rain_have_flat_ranks_and_a_spread_like_their_skill():
    draws = np.random.default_rng(0).gamma(2.0, 2.0, (10, 60_000)).astype("f4")
    result = of(draws[:9], draws[9], (1.0, 5.0))
    np.testing.assert_allclose(result["ranks"], 0.1, rtol=0.03)
    assert result["spread"].item() == pytest.approx(result["skill"].item(), rel=0.02)
    enough = result["probability_cases"] > 3000
    gap = abs(result["observed_frequency"] - result["forecast_probability"]).where(enough)
    assert 0.1 < float(gap.max()) < 0.3, "nine members say less than they could"
    assert float(result["roc_area"].max()) < 0.6, "and know nothing"


rain = arrays("f4", (5, 12), elements=st.integers(0, 3).map(float))


@given(rain, rain)
def test_sums_hold_together(members, observed):
    observed = observed[0]
    sums = sums_of(members, observed, (1.0, 2.0))
    assert float(sums["ranks"].sum()) == pytest.approx(12)
    assert (sums["probability_cases"].sum("probability") == 12).all()
    for row, threshold in enumerate((1.0, 2.0)):
        part = (members >= threshold).mean(0)
        event = observed >= threshold
        assert float(sums["brier_error"][row]) == pytest.approx(((part - event) ** 2).sum())
        assert float(sums["probability_sum"][row].sum()) == pytest.approx(part.sum())
        assert float(sums["probability_events"][row].sum()) == event.sum()
    result = ensemble_scores(sums)
    assert result["crps_fair"].item() <= result["crps"].item() + 1e-12
    assert result["crps"].item() >= -1e-9


@given(rain, rain)
def test_crps_is_the_area_between_distributions(members, observed):
    """Hersbach 2000, equation 1: ∫ (P − P_observed)² dx, here between whole numbers."""
    observed = observed[0]
    between = np.arange(3) + 0.5
    below = (members[..., np.newaxis] < between).mean(0)
    happened = observed[:, np.newaxis] < between
    area = ((below - happened) ** 2).sum(1).mean()
    assert of(members, observed)["crps"].item() == pytest.approx(area, abs=1e-9)
