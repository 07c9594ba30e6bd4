"""The split: no frame in two parts, a gap between them, days that keep their part."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.samples import SequenceShape, complete_init_times
from pipelines.split import split

START = pd.Timestamp("2024-06-01T00:00")
SHAPES = st.builds(SequenceShape, st.integers(1, 4), st.integers(1, 4), st.just(4))
SHAPE = SequenceShape(past=2, future=1, crop=4)
FRACTIONS = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45))


@st.composite
def archives(draw):
    """Times of a short or a long archive with gaps, and its timestep."""
    timestep = pd.Timedelta(draw(st.sampled_from(["5min", "1h", "6h"])))
    slots = draw(st.integers(1, 300))
    absent = draw(st.sets(st.integers(0, slots - 1), max_size=12))
    axis = pd.date_range(START, periods=slots, freq=timestep)
    return axis.delete(sorted(absent)), timestep


def frames_of(init_times, timestep, shape):
    offsets = [k * timestep for k in range(1 - shape.past, shape.future + 1)]
    return {time + offset for time in init_times for offset in offsets}


@settings(max_examples=60)
@given(archives(), SHAPES, FRACTIONS, st.integers(0, 5))
def test_no_frame_is_in_two_parts(archive, shape, fractions, seed):
    times, timestep = archive
    init_times = complete_init_times(times, timestep, shape)
    parts = split(init_times, timestep, shape, *fractions, seed)
    for one, other in itertools.combinations(parts, 2):
        assert not frames_of(one, timestep, shape) & frames_of(other, timestep, shape)
    for part in parts:
        assert part.is_monotonic_increasing
        assert part.isin(init_times).all()
    assert len(parts.training) or not len(init_times)


def test_the_last_sequences_of_a_short_archive_validate_by_hand():
    # 20 sequences of 3 frames, a quarter validates: 5 of them; 2 lie between.
    axis = pd.date_range(START, periods=20, freq="5min")
    training, validation, test = split(axis, pd.Timedelta("5min"), SHAPE, 0.25)
    assert list(validation) == list(axis[15:])
    assert list(training) == list(axis[:13])
    assert len(test) == 0


def test_the_very_last_ones_test_by_hand():
    # The last 5 test, 5 more validate, and twice 2 lie between.
    axis = pd.date_range(START, periods=20, freq="5min")
    training, validation, test = split(axis, pd.Timedelta("5min"), SHAPE, 0.25, 0.25)
    assert list(test) == list(axis[15:])
    assert list(validation) == list(axis[8:13])
    assert list(training) == list(axis[:6])


@pytest.mark.parametrize(("count", "fraction"), [(20, 0.0), (3, 0.4), (0, 0.5)])
def test_where_there_are_too_few_sequences_all_train(count, fraction):
    axis = pd.date_range(START, periods=count, freq="5min")
    training, validation, test = split(axis, pd.Timedelta("5min"), SHAPE, fraction)
    assert list(training) == list(axis)
    assert len(validation) == len(test) == 0


def hourly(days):
    return pd.date_range(START, periods=24 * days, freq="1h")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fractions", [(0.15, 0.15), (0.3, 0.1), (0.05, 0.2), (0.2, 0.0)])
def test_parts_of_a_long_archive_have_the_fractions_asked_for(fractions, seed):
    days = 365
    parts = split(hourly(days), pd.Timedelta("1h"), SHAPE, *fractions, seed)
    for part, fraction in zip(parts[1:], fractions, strict=True):
        dealt = part.floor("D").nunique() / days
        assert dealt == pytest.approx(fraction, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_days_are_whole_but_for_the_gap_at_their_end(seed):
    parts = split(hourly(60), pd.Timedelta("1h"), SHAPE, 0.15, 0.15, seed)
    for part in parts:
        days = pd.Series(part.hour, index=part).groupby(part.floor("D")).agg(["min", "max"])
        assert set(days["min"]) == {0}
        assert set(days["max"]) <= {21, 23}  # sequences of 3 frames: two init_times given up
    assert len(parts.training.floor("D").unique().intersection(parts.test.floor("D"))) == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_month_never_goes_without_validation_or_test(seed):
    parts = split(hourly(365), pd.Timedelta("1h"), SHAPE, 0.15, 0.15, seed)
    for part in parts[1:]:
        days = part.floor("D").unique()
        assert np.diff(days).max() < pd.Timedelta("15D")


def test_a_day_keeps_its_part_when_the_archive_grows():
    timestep = pd.Timedelta("1h")
    young = split(hourly(60), timestep, SHAPE, 0.15, 0.15, seed=3)
    old = split(hourly(200), timestep, SHAPE, 0.15, 0.15, seed=3)
    for part, grown in zip(young, old, strict=True):
        days = set(part.floor("D"))
        assert days == {day for day in grown.floor("D") if day < hourly(60)[-1]}


def test_the_seed_and_nothing_else_deals():
    timestep = pd.Timedelta("1h")
    dealt = [split(hourly(60), timestep, SHAPE, 0.2, 0.1, seed) for seed in (1, 1, 2)]
    assert all(one.equals(other) for one, other in zip(dealt[0], dealt[1], strict=True))
    assert not dealt[0].validation.equals(dealt[2].validation)
