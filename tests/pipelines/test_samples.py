"""Samples: no gap in a sequence, no frame on both sides of the split, rain seen more often."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import SquallError
from pipelines.samples import SequenceShape, build_index, complete_init_times, describe, split

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
AXIS = pd.date_range(START, periods=60, freq=TIMESTEP)

SHAPES = st.builds(SequenceShape, st.integers(1, 4), st.integers(1, 4), st.just(4))
PRESENT = st.lists(st.booleans(), min_size=len(AXIS), max_size=len(AXIS)).map(
    lambda flags: AXIS[np.array(flags)]
)


def test_sequences_by_hand():
    # Frames at 0, 5, 10, _, 20, 25, 30, 35 minutes; one before and one after each init_time.
    times = AXIS[[0, 1, 2, 4, 5, 6, 7]]
    init_times = complete_init_times(times, TIMESTEP, SequenceShape(past=2, future=1, crop=4))
    assert list(init_times) == [AXIS[1], AXIS[5], AXIS[6]]


@settings(max_examples=30)
@given(PRESENT, SHAPES)
def test_a_sequence_never_spans_a_gap_and_none_is_left_out(times, shape):
    expected = [
        time
        for time in AXIS
        if all(time + k * TIMESTEP in set(times) for k in range(1 - shape.past, shape.future + 1))
    ]
    assert list(complete_init_times(times, TIMESTEP, shape)) == expected


def frames_of(init_times, shape):
    return {
        time + k * TIMESTEP for time in init_times for k in range(1 - shape.past, shape.future + 1)
    }


@settings(max_examples=30)
@given(PRESENT, SHAPES, st.floats(0, 0.99))
def test_no_frame_is_on_both_sides_of_the_split(times, shape, fraction):
    init_times = complete_init_times(times, TIMESTEP, shape)
    training, validation = split(init_times, TIMESTEP, shape, fraction)
    assert not frames_of(training, shape) & frames_of(validation, shape)
    assert set(training) | set(validation) <= set(init_times)
    if len(init_times):
        assert len(training)
    if len(validation):
        assert training[-1] < validation[0]


def test_the_split_by_hand():
    # 20 sequences of 3 frames, a quarter validates: 5 of them; 2 lie between.
    shape = SequenceShape(past=2, future=1, crop=4)
    training, validation = split(AXIS[:20], TIMESTEP, shape, 0.25)
    assert list(validation) == list(AXIS[15:20])
    assert list(training) == list(AXIS[:13])


@pytest.mark.parametrize(("count", "fraction"), [(20, 0.0), (3, 0.4), (0, 0.5)])
def test_too_few_sequences_all_train(count, fraction):
    shape = SequenceShape(past=2, future=1, crop=4)
    training, validation = split(AXIS[:count], TIMESTEP, shape, fraction)
    assert list(training) == list(AXIS[:count])
    assert len(validation) == 0


@pytest.fixture(scope="module")
def wet_archive(tmp_path_factory, build_archive, grid):
    """Slots 0 to 9 with a gap at 4; the left half dry but for slot 7, the last rows missing."""
    rng = np.random.default_rng(0)
    fields = {}
    for slot in [0, 1, 2, 3, 5, 6, 7, 8, 9]:
        field = rng.gamma(0.5, 4.0, grid.shape).round(2)
        if slot != 7:
            field[:, :4] = 0.0
        field[4:] = np.nan
        fields[slot] = field
    return build_archive(tmp_path_factory.mktemp("wet") / "a.zarr", fields)


SHAPE = SequenceShape(past=2, future=1, crop=4)


@pytest.fixture(scope="module")
def index(wet_archive):
    times = complete_init_times(wet_archive.usable_times(), TIMESTEP, SHAPE)
    return build_index(wet_archive, times, SHAPE)


def test_samples_are_all_crops_with_an_observed_pixel(index, wet_archive):
    # Init_times 1, 2, 6, 7, 8; crops begin at 0, 2 and 4 in both directions; rows from 4 on are
    # never observed.
    expected = {(f, y, x) for f in (0, 1, 5, 6, 7) for y in (0, 2) for x in (0, 2, 4)}
    assert set(zip(index.first, index.y, index.x, strict=True)) == expected
    assert len(index) == len(expected)


def test_acceptance_is_dgmrs_formula_over_the_wettest(index, wet_archive):
    def chance(sample):
        values = index.read(wet_archive, sample)
        return min(1.0, 1e-4 + 0.1 * np.nan_to_num(1 - np.exp(-values)).mean())

    chances = np.array([chance(sample) for sample in range(len(index))])
    np.testing.assert_allclose(index.acceptance, chances / chances.max(), rtol=1e-6)
    assert index.acceptance.max() == 1.0
    assert 0 < index.acceptance.min() < 0.05


def test_a_sample_is_its_crop_of_its_sequence(index, wet_archive):
    frames = wet_archive.read_frames(wet_archive.times)
    for sample in (0, 7, len(index) - 1):
        first, y, x = (int(a[sample]) for a in (index.first, index.y, index.x))
        values = index.read(wet_archive, sample)
        assert values.shape == (3, 4, 4)
        np.testing.assert_array_equal(values, frames[first : first + 3, y : y + 4, x : x + 4])


def test_crops_cover_a_grid_that_they_do_not_divide(tmp_path, build_archive, grid):
    fields = {slot: np.ones(grid.shape) for slot in range(3)}
    archive = build_archive(tmp_path / "a.zarr", fields)
    index = build_index(archive, archive.times[1:2], SequenceShape(2, 1, crop=5))
    seen = np.zeros(grid.shape, bool)
    for y, x in zip(index.y, index.x, strict=True):
        seen[y : y + 5, x : x + 5] = True
    assert seen.all()


def test_a_crop_is_never_larger_than_the_grid(wet_archive, grid):
    index = build_index(wet_archive, wet_archive.times[1:2], SequenceShape(2, 1, crop=128))
    assert index.shape.crop == 8
    assert len(index) == 1
    assert index.read(wet_archive, 0).shape == (3, 8, 8)


def test_no_sequence_is_an_error_that_says_how_long_one_is(wet_archive):
    with pytest.raises(SquallError, match=r"3 successive frames \(2 past, 1 future\)"):
        build_index(wet_archive, AXIS[:0], SHAPE)


def test_an_index_is_described_in_a_line(index, wet_archive):
    assert describe(index, wet_archive) == (
        "30 samples of 2 past and 1 future frames, 5min apart, 4² pixels, "
        "2024-06-01T00:00:00Z to 2024-06-01T00:35:00Z"
    )
