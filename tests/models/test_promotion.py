"""Promotion by proof: hand-made scores for which the answer is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from models.promotion import Learnt, expanded, judge
from models.verdict import PromotionSettings

from .verified import LEADS, START, hourly, verified, wobble

OURS, CHAMPION = "net/2", "net/1"
AGAINST = ("persistence", "advection")
SETTINGS = PromotionSettings(against=AGAINST, samples=200)
TIMES = hourly(6)
few_examples = examples(max_examples=15)


def csi(times=TIMES, **changes):
    """By forecaster: ours is 0.1 above the champion, and that above the baselines."""
    means = {OURS: 0.7, CHAMPION: 0.6, "persistence": 0.4, "advection": 0.5}
    found = {name: means[name] + wobble(times, k, 0.02) for k, name in enumerate(means)}
    return found | {name.replace("_", "/"): value for name, value in changes.items()}


def without(scores, name):
    return {one: value for one, value in scores.items() if one != name}


def outcomes(verdict, opponent=CHAMPION):
    return [one.outcome for one in verdict.comparisons if one.opponent == opponent]


def settings(**changes):
    return SETTINGS.model_copy(update=changes)


def test_the_better_one_passes_at_every_lead_time_and_threshold():
    verdict = judge(verified(TIMES, csi()), OURS, CHAMPION, SETTINGS)
    assert verdict.passed
    assert verdict.against == []
    assert {one.outcome for one in verdict.comparisons} == {"better"}
    places = [(o.opponent, o.lead_time, o.threshold_mm_h) for o in verdict.comparisons]
    opponents = (CHAMPION, *AGAINST)
    assert places == [(o, lead, t) for o in opponents for lead in LEADS for t in (0.5, 2.0)]
    assert (verdict.forecasts, verdict.left_out) == (144, 0)
    assert {(one.forecasts, one.blocks) for one in verdict.comparisons} == {(144, 24)}
    assert verdict.since == "2024-06-01T00:00:00Z"
    assert verdict.until == "2024-06-06T23:00:00Z"


def test_the_figures_are_those_of_all_events_together():
    exact = {OURS: 0.7, CHAMPION: 0.6, "persistence": 0.4, "advection": 0.5}
    first = judge(verified(TIMES, exact), OURS, CHAMPION, SETTINGS).comparisons[0]
    values = (first.ours, first.theirs, first.difference, first.lower, first.upper)
    assert values == pytest.approx((0.7, 0.6, 0.1, 0.1, 0.1))
    # Events of the second half are three times as large, and it is worse there: sum first.
    half = len(TIMES) // 2
    weights = np.repeat([1.0, 3.0], half)[:, None, None]
    changing = exact | {OURS: np.repeat([0.9, 0.5], half)[:, None, None]}
    first = judge(verified(TIMES, changing, extent=100 * weights), OURS, CHAMPION, SETTINGS)
    assert first.comparisons[0].ours == pytest.approx((0.9 + 3 * 0.5) / 4)


def test_equal_forecasters_do_not_pass():
    same = csi()
    verdict = judge(verified(TIMES, same | {OURS: same[CHAMPION]}), OURS, CHAMPION, SETTINGS)
    assert not verdict.passed
    assert outcomes(verdict) == ["not proven"] * 6
    assert not verdict.undecided, "more of the same would not prove it"


def test_better_at_short_lead_times_alone_is_not_better():
    ours = 0.6 + np.array([0.1, 0.05, -0.05])[:, None] + wobble(TIMES, 9, 0.005)
    verdict = judge(verified(TIMES, csi(net_2=ours)), OURS, CHAMPION, SETTINGS)
    assert not verdict.passed
    assert outcomes(verdict) == ["better"] * 4 + ["worse"] * 2
    assert len(verdict.against) == 2
    assert verdict.against[0].startswith("net/1 at 1h, ≥ 0.5 mm/h: worse, -0.0")
    short = settings(lead_times=(LEADS[0].to_pytimedelta(),))
    assert judge(verified(TIMES, csi(net_2=ours)), OURS, CHAMPION, short).passed


def test_it_has_to_beat_every_baseline_too():
    verdict = judge(verified(TIMES, csi(advection=0.9)), OURS, CHAMPION, SETTINGS)
    assert not verdict.passed
    assert set(outcomes(verdict)) == set(outcomes(verdict, "persistence")) == {"better"}
    assert set(outcomes(verdict, "advection")) == {"worse"}


def test_without_a_champion_the_baselines_are_the_opponents():
    verdict = judge(verified(TIMES, csi()), OURS, None, SETTINGS)
    assert verdict.passed
    assert {one.opponent for one in verdict.comparisons} == set(AGAINST)


def test_with_too_few_blocks_or_forecasts_nothing_can_be_said():
    two = TIMES[:48]
    verdict = judge(verified(two, csi(two)), OURS, CHAMPION, settings(least_forecasts=40))
    assert set(outcomes(verdict)) == {"cannot say"}
    assert verdict.undecided
    assert "rain in 8 blocks of at least 10" in verdict.against[0]
    verdict = judge(verified(two, csi(two)), OURS, CHAMPION, settings(least_blocks=8))
    assert "48 common forecasts of at least 100" in verdict.against[0]
    enough = settings(least_blocks=8, least_forecasts=48)
    assert judge(verified(two, csi(two)), OURS, CHAMPION, enough).passed


def test_only_blocks_in_which_the_event_was_observed_count():
    """It rains on all days, heavily in the first nine blocks alone."""
    heavy = (START + pd.Timedelta("54h") > TIMES).astype(float)
    extent = np.stack([np.ones(len(TIMES)), heavy], axis=-1)[:, None, :] * 100
    verdict = judge(verified(TIMES, csi(), extent=extent), OURS, CHAMPION, SETTINGS)
    assert outcomes(verdict) == ["better", "cannot say"] * 3
    assert {one.blocks for one in verdict.comparisons} == {24, 9}
    light = settings(thresholds_mm_h=(0.5,))
    assert judge(verified(TIMES, csi(), extent=extent), OURS, CHAMPION, light).passed


def test_what_they_learnt_from_is_no_evidence():
    sums = verified(TIMES, csi())
    # The frames of the second day; whoever starts up to half an hour later has seen one of them.
    first, last = START + pd.Timedelta("24h"), START + pd.Timedelta("47h")
    learnt = Learnt(CHAMPION, first, last + pd.Timedelta("30min"))
    verdict = judge(sums, OURS, CHAMPION, SETTINGS, [learnt])
    # From 23:00 on the day before, whose hour ahead is the first frame, to 23:00 on the day.
    assert verdict.left_out == 25
    assert verdict.forecasts == 144 - 25
    assert {one.forecasts for one in verdict.comparisons} == {144 - 25}
    everything = Learnt(OURS, START, TIMES[-1])
    verdict = judge(sums, OURS, CHAMPION, SETTINGS, [everything])
    assert not verdict.passed
    assert (verdict.forecasts, verdict.left_out, verdict.comparisons) == (0, 144, ())
    assert "what was learnt from (net/2 from 2024-06-01" in verdict.lacking[0]


def test_skill_that_was_learnt_by_heart_proves_nothing():
    known = (START + pd.Timedelta("72h") > TIMES)[:, None, None]
    ours = np.where(known, 1.0, 0.5) + wobble(TIMES, 9)
    sums = verified(TIMES, csi(net_2=ours))
    assert judge(sums, OURS, CHAMPION, SETTINGS).passed
    learnt = Learnt(OURS, START, START + pd.Timedelta("71h"))
    few = settings(least_forecasts=50)
    assert set(outcomes(judge(sums, OURS, CHAMPION, few, [learnt]))) == {"worse"}


@pytest.mark.parametrize("missing", [OURS, CHAMPION, "advection"])
def test_who_has_no_scores_is_named(missing):
    scores = without(csi(), missing)
    verdict = judge(verified(TIMES, scores), OURS, CHAMPION, SETTINGS)
    assert not verdict.passed
    assert verdict.undecided
    assert verdict.against[0].startswith(f"no scores of {missing}")
    asleep = judge(verified(TIMES, scores | {missing: np.nan}), OURS, CHAMPION, SETTINGS)
    assert asleep.lacking == verdict.lacking


def test_only_init_times_that_both_forecast_count():
    """The champion slept through what was easy."""
    half = len(TIMES) // 2
    easy = np.repeat([0.3, 0.0], half)[:, None, None]
    champion = csi()[CHAMPION] + np.where(easy > 0, np.nan, 0)
    sums = verified(TIMES, csi(net_1=champion, net_2=csi()[CHAMPION] - 0.1 + easy))
    verdict = judge(sums, OURS, CHAMPION, settings(least_forecasts=72))
    assert set(outcomes(verdict)) == {"worse"}
    assert {o.forecasts for o in verdict.comparisons} == {72, 144}
    never = csi(net_1=np.where(easy > 0, np.nan, 0.6), net_2=np.where(easy > 0, 0.7, np.nan))
    verdict = judge(verified(TIMES, never), OURS, CHAMPION, settings(least_forecasts=72))
    assert verdict.lacking == ("no scores of net/1 on the same init_times",)


def test_a_champion_is_judged_by_what_it_served_and_not_by_what_the_fallback_did():
    odd = np.arange(len(TIMES)) % 2 == 1
    by = np.where(odd, "advection", CHAMPION)
    found = csi()
    served = np.where(odd[:, None, None], 0.1, found[CHAMPION])  # the fallback served badly
    alone = np.where(odd[:, None, None], found[CHAMPION], np.nan)  # the champion in its shadow
    scores = {**found, CHAMPION: alone, "served": served}
    sums = verified(TIMES, scores).assign_coords(model=("init_time", by))
    verdict = judge(sums, OURS, CHAMPION, SETTINGS)
    plain = judge(verified(TIMES, found), OURS, CHAMPION, SETTINGS)
    own = [one for one in verdict.comparisons if one.opponent == CHAMPION]
    assert own == [one for one in plain.comparisons if one.opponent == CHAMPION]


def test_lead_times_are_those_declared_or_of_the_usual_ones_those_there_are():
    short = verified(TIMES, csi(), leads=LEADS[:2])
    verdict = judge(short, OURS, CHAMPION, SETTINGS)
    assert verdict.passed
    assert {one.lead_time for one in verdict.comparisons} == set(LEADS[:2])
    hour = settings(lead_times=tuple(lead.to_pytimedelta() for lead in LEADS))
    verdict = judge(short, OURS, CHAMPION, hour)
    assert not verdict.passed
    assert verdict.lacking == ("no scores at 1h",)
    assert set(outcomes(verdict)) == {"better"}
    other = verified(TIMES, csi(), leads=pd.to_timedelta([5, 10], "min"))
    verdict = judge(other, OURS, CHAMPION, SETTINGS)
    assert verdict.lacking == ("no scores at 15min", "no scores at 30min", "no scores at 1h")


def test_a_challenger_that_forecasts_less_far_does_not_pass():
    ours = np.where(np.arange(3)[:, None] < 2, csi()[OURS], np.nan)
    verdict = judge(verified(TIMES, csi(net_2=ours)), OURS, CHAMPION, SETTINGS)
    assert not verdict.passed
    assert outcomes(verdict) == ["better"] * 4 + ["cannot say"] * 2


def test_a_threshold_or_score_that_is_not_there_is_named():
    sums = verified(TIMES, csi())
    verdict = judge(sums, OURS, CHAMPION, settings(thresholds_mm_h=(0.5, 7.0)))
    assert verdict.lacking == ("no scores at 7 mm/h (verify.thresholds_mm_h)",)
    assert not verdict.passed
    verdict = judge(sums, OURS, CHAMPION, settings(score="fss", scale_km=5.0))
    assert verdict.lacking == ("no fss at 5 km (verify.scales_km)",)
    without_fractions = sums.drop_vars(["fraction_error", "fraction_reference"])
    verdict = judge(without_fractions, OURS, CHAMPION, settings(score="fss"))
    assert verdict.lacking == ("no fss in the scores",)


@pytest.mark.parametrize(
    ("score", "ours", "theirs", "rows"),
    [("mae", 0.03, 0.04, 3), ("mse", 0.06, 0.08, 3), ("fss", 0.7, 0.6, 6)],
)
def test_other_scores_of_which_some_are_better_where_lower(score, ours, theirs, rows):
    exact = {OURS: 0.7, CHAMPION: 0.6, "persistence": 0.4, "advection": 0.5}
    verdict = judge(verified(TIMES, exact), OURS, CHAMPION, settings(score=score))
    assert verdict.passed
    assert len(outcomes(verdict)) == rows
    first = verdict.comparisons[0]
    assert (first.ours, first.theirs) == pytest.approx((ours, theirs))
    assert (first.threshold_mm_h is None) == (score != "fss")
    worse = judge(verified(TIMES, exact), CHAMPION, OURS, settings(score=score))
    assert set(outcomes(worse, OURS)) == {"worse"}


def test_a_summary_is_json_and_has_every_figure():
    two = TIMES[:48]
    for times in (TIMES, two):
        verdict = judge(verified(times, csi(times)), OURS, CHAMPION, SETTINGS)
        summary = verdict.summary()
        assert summary["passed"] is verdict.passed
        assert len(summary["comparisons"]) == 18
        row = summary["comparisons"][0]
        assert (row["opponent"], row["lead_time"], row["threshold_mm_h"]) == (
            CHAMPION, "15min", 0.5,
        )  # fmt: skip
        assert row["ours"] == pytest.approx(verdict.comparisons[0].ours, abs=1e-6)
        assert summary["forecasts"] == len(times)


@few_examples
@given(seed=st.integers(0, 999), gap=st.floats(-0.1, 0.1), days=st.integers(1, 4))
def test_whoever_passes_against_another_does_not_lose_to_it(seed, gap, days):
    times = hourly(days)[::6]
    both = {
        OURS: 0.5 + gap + wobble(times, seed),
        CHAMPION: 0.5 + wobble(times, seed + 1),
    }
    sums = verified(times, both, leads=LEADS[:1], thresholds=[0.5])
    few = settings(against=(), thresholds_mm_h=(0.5,), least_blocks=4, least_forecasts=4)
    one, other = judge(sums, OURS, CHAMPION, few), judge(sums, CHAMPION, OURS, few)
    assert not (one.passed and other.passed)
    (here,), (there,) = one.comparisons, other.comparisons
    assert (here.lower, here.upper) == pytest.approx((-there.upper, -there.lower))
    mirrored = {"better": "worse", "worse": "better"}
    assert there.outcome == mirrored.get(here.outcome, here.outcome)


@few_examples
@given(seed=st.integers(0, 999))
def test_a_forecaster_never_beats_itself(seed):
    times = hourly(3)[::6]
    same = 0.5 + wobble(times, seed)
    sums = verified(times, {OURS: same, CHAMPION: same}, leads=LEADS[:1])
    few = settings(against=(), least_blocks=2, least_forecasts=2)
    assert not judge(sums, OURS, CHAMPION, few).passed


def test_intervals_of_few_blocks_are_wider():
    assert expanded(0.95, 10.0) == pytest.approx(0.9829, abs=1e-4)  # Φ(−√(10/9) 2.262) = 0.00856
    assert expanded(0.95, 10_000.0) == pytest.approx(0.95, abs=1e-4)
    assert expanded(0.95, 1.0) == 1.0


EVENNESS = (50.0, 1.0)
"""Events of much the same and of very different size: the shape of their gamma distribution."""


@pytest.mark.parametrize("evenness", EVENNESS)
def test_equal_forecasters_win_a_comparison_by_luck_as_often_as_the_level_says(evenness):
    """In ten blocks; within the sampling error. A hundred lead times are as many trials in one."""
    leads = pd.timedelta_range("1min", periods=100, freq="1min")
    times = hourly(3)[:60:6]
    every = tuple(leads.to_pytimedelta())
    alone = settings(against=(), thresholds_mm_h=(0.5,), least_forecasts=10, samples=1000)
    trials = 800
    won = 0
    for trial in range(trials // len(leads)):
        rng = np.random.default_rng(trial)
        shape = (len(times), len(leads), 1)
        both = {name: rng.normal(0.5, 0.1, shape) for name in (OURS, CHAMPION)}
        extent = 100 * rng.gamma(evenness, size=shape)
        sums = verified(times, both, extent=extent, leads=leads, thresholds=[0.5])
        verdict = judge(sums, OURS, CHAMPION, alone.model_copy(update={"lead_times": every}))
        won += outcomes(verdict).count("better")
    assert 0 < won <= stats.binom.ppf(0.999, trials, (1 - alone.level) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("evenness", EVENNESS)
def test_equal_forecasters_are_promoted_more_rarely_than_the_level_says(evenness):
    """All comparisons at once, though what helps at one lead time mostly helps at the others."""
    times = hourly(3)[:60:6]
    few = settings(against=(), least_forecasts=10)
    trials = 150
    promoted = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)

        def skill(rng=rng):
            together, apart = (rng.normal(0, 0.1, (len(times), *of)) for of in ((1, 1), (3, 2)))
            return 0.5 + 0.9 * together + 0.44 * apart

        extent = 100 * rng.gamma(evenness, size=(len(times), 1, 1))
        sums = verified(times, {OURS: skill(), CHAMPION: skill()}, extent=extent)
        promoted += judge(sums, OURS, CHAMPION, few).passed
    assert promoted / trials < (1 - few.level) / 2
