"""Past frames: what is there, and what is bridged by advection where a frame is missing."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from models.past import bridged, read_past
from pipelines.archive import Archive
from pipelines.errors import TooFewFramesError
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, ingest
from pipelines.sources import get_source
from pipelines.sources.synthetic import PROJECTION

TIMESTEP = pd.Timedelta("5min")
START = pd.Timestamp("2024-06-01T00:00")
SIZE = 64
GRID = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), (SIZE, SIZE))
NIGHT = pd.date_range("2010-08-26T00:00", periods=5, freq=TIMESTEP)


def cells(slot, pixels_a_timestep=(2.0, -1.0)):
    """Three rain cells that move by so many columns and rows a timestep."""
    y, x = np.mgrid[:SIZE, :SIZE]
    columns, rows = (slot * pixels for pixels in pixels_a_timestep)
    field = np.zeros((SIZE, SIZE))
    for dy, dx, peak in ((-14, -4, 8.0), (0, 0, 20.0), (13, 5, 12.0)):
        distance = (y - 32 - dy - rows) ** 2 + (x - 24 - dx - columns) ** 2
        field += peak * np.exp(-distance / 18)
    return np.where(field < 0.1, 0.0, field)


def frames_at(slots, field=cells):
    """Frames (time, y, x) at some slots, and the times of all slots up to the last."""
    times = pd.date_range(START, periods=max(slots) + 1, freq=TIMESTEP, name="time")
    frames = xr.DataArray(
        np.stack([field(slot) for slot in slots]).astype(np.float32),
        dims=("time", "y", "x"),
        coords=GRID.coords(lonlat=False) | {"time": times[list(slots)]},
    )
    return frames, times


def mean_error(field, truth):
    known = np.isfinite(field) & np.isfinite(truth)
    assert known.sum() > 0.8 * np.isfinite(truth).sum()
    return float(np.abs(field - truth)[known].mean())


@pytest.fixture(scope="module")
def rainy(grid):
    """A field per slot number, rain everywhere."""
    return {slot: np.full(grid.shape, 1.0 + slot) for slot in range(12)}


def without(fields, *slots):
    return {slot: field for slot, field in fields.items() if slot not in slots}


# What is there -----------------------------------------------------------------------------------


def test_past_frames_end_at_the_init_time(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", rainy)
    past = read_past(archive, archive.times[5], 3)
    assert list(past.frames["time"].values) == list(archive.times[3:6])
    assert past.frames[:, 0, 0].values.tolist() == [4, 5, 6]
    assert past.complete
    assert list(past.window.present) == list(archive.times[3:6])


def test_too_few_past_frames_are_an_error_that_names_the_missing(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 3, 4))
    with pytest.raises(TooFewFramesError, match="found 2 of 4, missing 2024-06-01T00:15:00Z"):
        read_past(archive, archive.times[5], 4, most_missing=1)
    assert list(read_past(archive, archive.times[5], 4, most_missing=2).bridged) == list(
        archive.times[3:5]
    )


def test_the_newest_frame_is_never_bridged(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 5))
    with pytest.raises(TooFewFramesError, match="never the newest"):
        read_past(archive, archive.times[5], 3, most_missing=3)


def test_frames_before_the_axis_are_missing(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", rainy)
    with pytest.raises(TooFewFramesError, match="found 2 of 3"):
        read_past(archive, archive.times[1], 3)
    past = read_past(archive, archive.times[1], 3, most_missing=1)
    assert list(past.bridged) == [archive.times[0] - TIMESTEP]
    assert past.frames.sizes["time"] == 3
    assert not past.complete


def test_one_frame_stands_in_for_all(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", {5: rainy[5]})
    past = read_past(archive, archive.times[5], 3, most_missing=2)
    assert (past.frames == 6).all()
    assert list(past.frames["time"].values) == list(archive.times[3:6])


def test_only_missing_frames_are_bridged(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 3))
    past = read_past(archive, archive.times[5], 4, most_missing=1)
    values = dict(zip(range(2, 6), past.frames[:, 4, 4].values.tolist(), strict=True))
    assert values.pop(3) in (pytest.approx(3.0), pytest.approx(4.0), pytest.approx(5.0))
    assert values == {slot: slot + 1 for slot in values}
    assert list(past.window.present) == [archive.times[slot] for slot in (2, 4, 5)]


# What is bridged ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "missing"),
    [((0, 2, 3), 1), ((0, 1, 3), 2), ((0, 3), 1), ((0, 3), 2), ((1, 2, 3), 0), ((2, 3), 0)],
)
def test_a_pattern_that_moves_evenly_is_bridged_far_better_than_by_its_neighbour(there, missing):
    frames, times = frames_at(there)
    filled = bridged(frames, times)
    assert list(filled["time"].values) == list(times)
    nearest = frames.reindex(time=times, method="nearest")[missing].values
    error = mean_error(filled[missing].values, cells(missing))
    assert error < mean_error(nearest, cells(missing)) / 4
    for slot in there:
        np.testing.assert_array_equal(filled[slot], cells(slot).astype(np.float32))


def test_two_missing_at_once_are_each_where_they_must_have_been():
    filled = bridged(*frames_at((0, 3)))
    centres = [
        float((field * field["x"]).sum() / field.sum()) / 2000 for field in filled.fillna(0.0)
    ]
    np.testing.assert_allclose(np.diff(centres), 2.0, atol=0.4)


def test_rain_that_grows_where_it_stands_is_weighted_by_nearness():
    """Once as much, then four times: twice and three times as much in between."""
    filled = bridged(*frames_at((0, 3), lambda slot: cells(slot, (0, 0)) * (1 + slot)))
    heavy = cells(0, (0, 0)) > 10
    for slot in (1, 2):
        ratio = filled[slot].values[heavy] / cells(0, (0, 0))[heavy]
        assert ratio.mean() == pytest.approx(1 + slot, rel=0.05)


def test_dry_frames_are_bridged_dry():
    filled = bridged(*frames_at((0, 2, 3), lambda slot: np.zeros((SIZE, SIZE))))
    assert (filled == 0).all()


def test_rain_that_has_just_come_is_bridged_by_the_nearer_frame():
    filled = bridged(*frames_at((0, 3), lambda slot: cells(slot) * (slot > 1)))
    assert (filled[1] == 0).all()
    np.testing.assert_array_equal(filled[2], filled[3])


def test_what_was_observed_in_no_frame_stays_unknown_and_missing_is_not_dry():
    def field(slot):
        rain = cells(slot)
        rain[:, :8] = np.nan
        return rain

    filled = bridged(*frames_at((0, 2), field))[1].values
    assert np.isnan(filled[:, :6]).all()
    assert np.isfinite(filled[8:-8, 16:-8]).all()


def test_a_frame_in_which_nothing_was_observed_bridges_nothing_wrong():
    frames, times = frames_at((0, 2, 3), lambda slot: cells(slot) * (np.nan if slot == 2 else 1.0))
    filled = bridged(frames, times)[1].values
    known = np.isfinite(filled)
    assert mean_error(np.where(known, filled, cells(0)), cells(0)) < 0.5


@settings(max_examples=15)
@given(
    columns=st.floats(-3, 3),
    rows=st.floats(-3, 3),
    missing=st.sampled_from([(1,), (2,), (1, 2)]),
)
def test_bridged_rain_is_no_more_than_its_neighbours(columns, rows, missing):
    there = [slot for slot in range(4) if slot not in missing]
    frames, times = frames_at(there, lambda slot: cells(slot, (columns, rows)))
    filled = bridged(frames, times)
    assert np.isfinite(filled[:, 8:-8, 8:-8]).all(), "unknown only where it flows in"
    assert float(filled.min()) >= 0
    assert float(filled.max()) <= float(frames.max()) * (1 + 1e-5)


def test_real_rain_is_bridged_better_than_by_its_neighbour(radar_data, tmp_path):
    url = f"file://{tmp_path}/knmi.zarr"
    files = get_source("knmi").find(str(radar_data / "knmi"), NIGHT[0], NIGHT[-1])
    ingest(url, IngestSettings(source="knmi", workers=1), files=files)
    frames = Archive(url).read_frames(NIGHT)
    for missing in ([1], [2], [3], [1, 2]):
        there = frames.drop_isel(time=missing)
        filled, nearest = bridged(there, NIGHT), there.reindex(time=NIGHT, method="nearest")
        for number in missing:
            truth = frames[number].values
            error = mean_error(filled[number].values, truth)
            assert error < mean_error(nearest[number].values, truth) / 1.5, missing
