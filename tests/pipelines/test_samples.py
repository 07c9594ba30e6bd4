"""Samples: no gap in a sequence, rain seen more often, an index made once and never stale."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import samples, storage
from pipelines.archive import TRAINING, ManifestRow, Status, create
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.reading import SampleReader
from pipelines.samples import SequenceShape, build_index, complete_init_times, describe
from pipelines.sources.synthetic import PROJECTION

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


@pytest.fixture(scope="module")
def reader(wet_archive):
    return SampleReader(wet_archive.url)


def test_samples_are_all_crops_with_an_observed_pixel(index, wet_archive):
    # Init_times 1, 2, 6, 7, 8; crops begin at 0, 2 and 4 in both directions; rows from 4 on are
    # never observed.
    expected = {(f, y, x) for f in (0, 1, 5, 6, 7) for y in (0, 2) for x in (0, 2, 4)}
    assert set(zip(index.first, index.y, index.x, strict=True)) == expected
    assert len(index) == len(expected)


def test_what_is_known_of_a_sample_is_of_its_pixels(index, wet_archive):
    frames = wet_archive.read_frames(wet_archive.times).astype(float)
    assert len(set(index.valid_fraction)) > 1
    for sample in range(len(index)):
        slots, y, x = index.window(sample)
        crop = frames.isel(time=slots, y=y, x=x)
        wetness = (1 - np.exp(-crop)).fillna(0.0).mean()
        assert index.acceptance[sample] == pytest.approx(float(1e-4 + 0.1 * wetness), rel=1e-6)
        assert index.valid_fraction[sample] == pytest.approx(float(crop.notnull().mean()))
        assert index.mean_mm_h[sample] == pytest.approx(float(crop.mean()), rel=1e-6)
        assert index.max_mm_h[sample] == np.float32(crop.max())


def test_acceptance_by_hand(tmp_path, build_archive, grid):
    # Half of the pixels rain 1 mm/h, a quarter is dry, a quarter missing; then a sea of rain.
    field = np.zeros(grid.shape)
    field[:, :4] = 1.0
    field[:, 6:] = np.nan
    archive = build_archive(tmp_path / "a.zarr", {0: field, 1: field, 3: field + 600})
    index = build_index(archive, archive.times[[0]], SequenceShape(1, 1, crop=8))
    assert index.acceptance == pytest.approx(1e-4 + 0.1 * (1 - np.exp(-1)) / 2)
    assert index.valid_fraction == pytest.approx(0.75)
    assert index.mean_mm_h == pytest.approx(2 / 3)
    assert index.max_mm_h == pytest.approx(1.0)


def test_a_sample_is_its_crop_of_its_sequence(index, reader, wet_archive):
    frames = wet_archive.read_frames(wet_archive.times)
    for sample in (0, 7, len(index) - 1):
        first, y, x = (int(a[sample]) for a in (index.first, index.y, index.x))
        values = index.read(reader, sample)
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
    assert index.read(SampleReader(wet_archive.url), 0).shape == (3, 8, 8)


def test_no_sequence_is_an_error_that_says_how_long_one_is(wet_archive):
    with pytest.raises(SquallError, match=r"3 successive frames \(2 past, 1 future\)"):
        build_index(wet_archive, AXIS[:0], SHAPE)


def test_an_index_is_described_in_a_line(index, wet_archive):
    assert describe(index, wet_archive) == (
        "30 samples of 2 past and 1 future frames, 5min apart, 4² pixels, "
        "2024-06-01T00:00:00Z to 2024-06-01T00:35:00Z"
    )


def test_frames_without_an_observed_pixel_are_an_error(tmp_path, build_archive, grid):
    fields = dict.fromkeys(range(3), np.full(grid.shape, np.nan))
    archive = build_archive(tmp_path / "a.zarr", fields)
    with pytest.raises(SquallError, match="1 sequences without an observed pixel"):
        build_index(archive, archive.times[1:2], SHAPE)


# Kept in Parquet ---------------------------------------------------------------------------------


@pytest.fixture
def long_archive(tmp_path, build_archive, grid):
    """Every six hours for four days from midnight, with frames missing on the second day."""
    rng = np.random.default_rng(1)
    fields = {slot: rng.gamma(0.5, 4.0, grid.shape) for slot in range(16) if slot != 6}
    return build_archive(tmp_path / "a.zarr", fields, slots=16, timestep=pd.Timedelta("6h"))


def all_init_times(archive, shape=SHAPE):
    return complete_init_times(archive.usable_times(), archive.timestep, shape)


@pytest.fixture
def made(monkeypatch):
    """The first init_time of every day's table that was computed rather than read."""
    days = []

    def count(reader, init_times, *rest):
        days.append(f"{init_times[0]:%d}")
        return compute(reader, init_times, *rest)

    compute = samples.sequence_table
    monkeypatch.setattr(samples, "sequence_table", count)
    return days


def assert_same(one, other):
    assert one.shape == other.shape
    for name in ("first", "y", "x", *samples.STATISTICS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def test_an_index_is_made_once(long_archive, made):
    init_times = all_init_times(long_archive)
    first = build_index(long_archive, init_times, SHAPE)
    assert sorted(made) == ["01", "02", "03", "04"]
    assert_same(build_index(long_archive, init_times, SHAPE), first)
    assert len(made) == 4


def test_only_the_days_asked_for_are_made(long_archive, made):
    init_times = all_init_times(long_archive)
    everything = build_index(long_archive, init_times, SHAPE)
    made.clear()
    for shape in (SHAPE, SequenceShape(2, 1, crop=5)):  # another shape: another table
        part = build_index(long_archive, init_times[-1:], shape)
        assert set(part.first) == {everything.first.max()}
    assert made == ["04"]


def test_a_day_is_a_table_that_anyone_can_read(long_archive):
    init_times = all_init_times(long_archive)
    index = build_index(long_archive, init_times, SHAPE)
    folder = long_archive.url.replace("a.zarr", "a.samples/2-1-4")
    assert storage.names(folder) == [f"2024-06-0{day}.parquet" for day in (1, 2, 3, 4)]
    table = pd.concat([pd.read_parquet(f"{folder}/{name}") for name in storage.names(folder)])
    assert list(table.columns) == ["init_time", "y", "x", *samples.STATISTICS]
    assert list(table["init_time"].unique()) == list(init_times)
    np.testing.assert_array_equal(table["acceptance"], index.acceptance)


def test_a_frame_that_came_later_makes_its_days_anew(long_archive, made, grid):
    build_index(long_archive, all_init_times(long_archive), SHAPE)
    made.clear()
    long_archive.write_frame(long_archive.times[6], np.full(grid.shape, 100, np.uint16))
    long_archive.commit([], {long_archive.times[6]: Status.LATE})
    init_times = all_init_times(long_archive)
    index = build_index(long_archive, init_times, SHAPE)
    assert made == ["02"]
    assert set(index.first) == set(range(14))


@pytest.mark.parametrize(
    ("slot", "days"),
    [
        (9, ["03"]),
        (3, ["01", "02"]),  # the past of a sequence of the day after
        (4, ["01", "02"]),  # the future of a sequence of the day before
    ],
)
def test_a_frame_that_was_corrected_makes_the_days_that_use_it_anew(
    long_archive, made, grid, slot, days
):
    time = long_archive.times[slot]

    def send(sha256):
        text = f"{time.isoformat()}Z"
        row = ManifestRow(text, "ok", "f.h5", 1, text, sha256, "odim", "odim-1", text)
        long_archive.commit([row], {time: Status.OK})

    init_times = all_init_times(long_archive)
    send("first")
    build_index(long_archive, init_times, SHAPE)
    made.clear()
    send("first")
    build_index(long_archive, init_times, SHAPE)
    assert made == []
    long_archive.write_frame(time, np.full(grid.shape, 30000, np.uint16))
    send("second")
    index = build_index(long_archive, init_times, SHAPE)
    assert sorted(made) == days
    assert (index.max_mm_h == 300.0).any()


def test_a_table_that_cannot_be_read_is_made_anew(long_archive, made):
    init_times = all_init_times(long_archive)
    first = build_index(long_archive, init_times, SHAPE)
    made.clear()
    url = long_archive.url.replace("a.zarr", "a.samples/2-1-4/2024-06-03.parquet")
    storage.write_bytes(url, storage.read_bytes(url)[:200])
    assert_same(build_index(long_archive, init_times, SHAPE), first)
    assert made == ["03"]


def test_an_index_that_cannot_be_kept_is_still_an_index(long_archive, monkeypatch, caplog):
    init_times = all_init_times(long_archive)
    expected = build_index(long_archive, init_times, SHAPE)
    storage.remove(long_archive.url.replace("a.zarr", "a.samples"))

    def forbidden(url, content):
        raise PermissionError("read only")

    monkeypatch.setattr(storage, "write_bytes", forbidden)
    assert_same(build_index(long_archive, init_times, SHAPE), expected)
    assert "samples are not kept" in caplog.text


def test_the_layout_does_not_change_the_index(long_archive, tmp_path):
    times, step = long_archive.times, long_archive.timestep
    url = str(tmp_path / "t.zarr")
    training = create(url, long_archive.grid, times[0], times[-1], step, layout=TRAINING)
    training.group["rain_rate"][:] = long_archive.read_stored(slice(None))
    training.commit([], dict.fromkeys(long_archive.usable_times(), Status.OK))
    init_times = all_init_times(long_archive)
    assert_same(
        build_index(training, init_times, SHAPE), build_index(long_archive, init_times, SHAPE)
    )


def test_chunks_and_blocks_leave_no_seam_in_the_statistics(tmp_path):
    """A field higher than a chunk, and sequences over the edge of a block of frames."""
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (300, 40))
    archive = create(str(tmp_path / "a.zarr"), grid, START, AXIS[29], TIMESTEP)
    stored = np.random.default_rng(2).integers(0, 5000, (30, 300, 40), np.uint16)
    archive.group["rain_rate"][:] = stored
    archive.commit([], dict.fromkeys(AXIS[:30], Status.OK))
    shape = SequenceShape(3, 4, crop=40)
    index = build_index(archive, all_init_times(archive, shape), shape)
    assert len(index) == 24 * 14
    for sample in range(0, len(index), 17):
        crop = stored[index.window(sample)] / 100
        assert index.mean_mm_h[sample] == pytest.approx(crop.mean(), rel=1e-6)
        assert index.max_mm_h[sample] == pytest.approx(crop.max(), rel=1e-6)
