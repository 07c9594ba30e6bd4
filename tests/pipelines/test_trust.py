"""The trust horizon, its interval, and the time behind advection."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.trust import (
    ADVECTION,
    OWN,
    PERSISTENCE,
    behind_advection,
    csi,
    horizon_interval,
    is_reached,
    trust_horizon,
)

START = pd.Timestamp("2024-06-01T00:00")
HOUR = pd.Timedelta("1h")
NAN = np.nan


def beside(own, other, rival=PERSISTENCE):
    """CSI (side, lead_time), at 10, 20, … minutes."""
    leads = pd.to_timedelta(10 * np.arange(1, len(own) + 1), "min")
    return xr.DataArray([own, other], {"side": [OWN, rival], "lead_time": leads})


def minutes(scores):
    return float(trust_horizon(scores)) / 60


def counts(own, other, *, rival=PERSISTENCE, every="1h", observed=100.0):
    """Counts (side, init_time, lead_time) with that CSI; of one lead time where not by it."""
    values = np.stack([np.asarray(own, float), np.asarray(other, float)])
    values = values[..., None] if values.ndim == 2 else values
    wet = np.broadcast_to(np.reshape(observed, (*np.shape(observed), 1)), values.shape[1:])
    leads = pd.to_timedelta(10 * np.arange(1, values.shape[2] + 1), "min")
    dims = ("side", "init_time", "lead_time")
    return xr.Dataset(
        {
            "hits": (dims, values * wet),
            "misses": (dims, (1 - values) * wet),
            "false_alarms": (dims, 0.0 * values),
        },
        coords={
            "side": [OWN, rival],
            "init_time": pd.date_range(START, periods=values.shape[1], freq=every),
            "lead_time": leads,
        },
    )


def test_csi_by_hand_and_unknown_where_the_event_was_not_observed():
    sums = xr.Dataset({"hits": ("n", [2.0, 0, 0]), "misses": ("n", [1.0, 4, 0])})
    values = csi(sums.assign(false_alarms=("n", [5.0, 0, 7])))
    np.testing.assert_array_equal(values, [2 / 8, 0, NAN])


# The trust horizon -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "other", "expected", "reached"),
    [
        ([0.8, 0.6, 0.4], [0.7, 0.5, 0.5], 20, True),
        ([0.8, 0.6, 0.5], [0.7, 0.5, 0.4], 30, False),  # better at all: a lower bound
        ([0.7, 0.6, 0.5], [0.7, 0.5, 0.4], 0, True),  # as good at the first is not better
        ([0.8, 0.5, 0.5], [0.7, 0.5, 0.4], 10, True),  # nor at the second; what comes after is late
        ([0.6, 0.6, 0.5], [0.7, 0.5, 0.4], 0, True),
        ([0.8, NAN, 0.5], [0.7, NAN, 0.4], 10, False),  # not seen to stop
        ([0.8, 0.4, NAN], [0.7, 0.5, NAN], 10, True),
        ([NAN, 0.6, 0.5], [NAN, 0.5, 0.4], NAN, False),
        ([NAN] * 3, [NAN] * 3, NAN, False),  # it never rained
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 0, True),
    ],
)
def test_a_trust_horizon_by_hand(own, other, expected, reached):
    scores = beside(own, other)
    np.testing.assert_equal(minutes(scores), expected)
    assert is_reached(scores) is reached


CSI = st.floats(0, 1) | st.just(NAN)


@given(st.lists(st.tuples(CSI, CSI), min_size=1, max_size=6))
def test_a_trust_horizon_is_the_end_of_the_lead_times_it_beats_persistence_at(pairs):
    own, other = map(list, zip(*pairs, strict=True))
    expected = 0
    for own_score, score in pairs:
        if not own_score > score:
            break
        expected += 10
    unknown = np.isnan(own[0]) or np.isnan(other[0])
    np.testing.assert_equal(minutes(beside(own, other)), NAN if unknown else expected)


def test_every_draw_that_agrees_gives_an_interval_of_no_width():
    sums = counts(np.full((30, 3), [0.8, 0.6, 0.4]), np.full((30, 3), [0.7, 0.5, 0.5]))
    twenty = pd.Timedelta("20min")
    assert horizon_interval(sums, HOUR, 5) == (twenty, twenty)


def test_an_interval_spans_the_lead_times_at_which_blocks_disagree():
    """At 20 min half of the events speak for it, half against; at 10 min all for it."""
    own = np.tile([[0.8, 0.9], [0.8, 0.1]], (10, 1))
    sums = counts(own, np.full((20, 2), 0.5))
    assert horizon_interval(sums, HOUR, 5) == (pd.Timedelta("10min"), pd.Timedelta("20min"))


def test_with_few_wet_blocks_there_is_no_interval_and_dry_ones_are_no_help():
    own, other = np.full(40, 0.8), np.full(40, 0.5)
    wet = np.where(np.arange(40) < 4, 100.0, 0.0)
    assert horizon_interval(counts(own, other, observed=wet), HOUR, 5) is None
    wet[39] = 1.0
    ten = pd.Timedelta("10min")
    assert horizon_interval(counts(own, other, observed=wet), HOUR, 5) == (ten, ten)


def test_neighbours_in_a_block_are_one_event():
    sums = counts(np.full(24, 0.8), np.full(24, 0.5))
    assert horizon_interval(sums, pd.Timedelta("6h"), 5) is None
    assert horizon_interval(sums, pd.Timedelta("4h"), 5) is not None


@given(st.permutations(range(12)), st.sampled_from([0.5, 2.0, 1024.0]))
def test_neither_order_nor_scale_changes_the_interval(order, scale):
    rng = np.random.default_rng(3)
    sums = counts(rng.integers(0, 9, (12, 3)) / 8, np.full((12, 3), 0.5), observed=64.0)
    wanted = horizon_interval(sums, HOUR, 5, 200)
    assert horizon_interval(sums.isel(init_time=list(order)) * scale, HOUR, 5, 200) == wanted


# Behind advection --------------------------------------------------------------------------------


def behind(own, other, *, least=1, every="1h", until=None, observed=100.0):
    """The hours since and until which it is behind, and the CSI; None where it is not."""
    sums = counts(own, other, rival=ADVECTION, every=every, observed=observed)
    last = sums["init_time"].values[-1]
    found = behind_advection(sums, pd.Timestamp(until or last + HOUR), HOUR, least)
    return found and ((found.since - START) / HOUR, (found.until - START) / HOUR)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([0.6, 0.6, 0.4, 0.4], (2, 4)),
        ([0.4, 0.4, 0.4, 0.4], (0, 4)),
        ([0.4, 0.6, 0.4, 0.4], (2, 4)),  # an hour ahead begins it anew
        ([0.4, 0.5, 0.4, 0.4], (2, 4)),  # as good is not behind
        ([0.4, 0.4, 0.4, 0.6], None),
        ([0.4, 0.4, 0.4, 0.5], None),
    ],
)
def test_behind_since_the_first_of_the_last_chunks_by_hand(own, expected):
    assert behind(own, [0.5] * 4) == expected


def test_chunks_are_pooled_over_forecasts_and_lead_times():
    """In the second hour 0.9 and three times 0.3, of as much rain: 0.45 against 0.5."""
    own = [[0.6, 0.6], [0.6, 0.6], [0.9, 0.3], [0.3, 0.3]]
    assert behind(own, np.full((4, 2), 0.5), every="30min") == (1, 2)


def test_the_scores_told_are_of_the_time_behind():
    sums = counts([0.9, 0.2, 0.4], [0.1, 0.5, 0.6], rival=ADVECTION)
    found = behind_advection(sums, START + 3 * HOUR, HOUR, 1)
    assert (found.csi, found.advection) == (pytest.approx(0.3), pytest.approx(0.55))
    assert found.duration == 2 * HOUR


def test_dry_chunks_neither_interrupt_nor_count():
    own, wet = [0.6, 0.4, 0.9, 0.4, 0.9], [9.0, 9.0, 0.0, 9.0, 0.0]
    assert behind(own, [0.5] * 5, observed=wet) == (1, 4)
    assert behind(own, [0.5] * 5, observed=wet, least=2) == (1, 4)
    assert behind(own, [0.5] * 5, observed=wet, least=3) is None
    assert behind(own, [0.5] * 5, observed=0.0) is None


def test_a_chunk_that_is_not_over_does_not_count():
    """The hour from 2 on is ahead; it counts once a forecast of 3 is verified."""
    own = [0.4, 0.4, 0.6]
    assert behind(own, [0.5] * 3, until=START + 2 * HOUR + HOUR / 2) == (0, 2)
    assert behind(own, [0.5] * 3, until=START + 3 * HOUR) is None
    assert behind([0.4], [0.5], until=START + HOUR / 2) is None


@given(st.permutations(range(8)), st.sampled_from([0.5, 2.0, 1024.0]))
def test_neither_order_nor_scale_changes_who_is_behind(order, scale):
    sums = counts([0.75, 0.25] * 2 + [0.25] * 4, [0.5] * 8, rival=ADVECTION)
    shuffled = sums.isel(init_time=list(order)) * scale
    found = behind_advection(shuffled, START + 8 * HOUR, HOUR, 1)
    assert (found.since, found.until) == (START + 3 * HOUR, START + 8 * HOUR)
