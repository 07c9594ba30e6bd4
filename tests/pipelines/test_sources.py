"""What all sources share: finding files by the time in their names, and what a frame is."""

import os
import uuid

import fsspec
import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError, NoFramesError, SquallError, UnknownNameError
from pipelines.grid import Grid
from pipelines.sources import SOURCES, get_source
from pipelines.sources.base import frame
from pipelines.sources.hdf5 import number, open_hdf5, text

MIDNIGHT = pd.Timestamp("2024-06-01T00:00")


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_a_source_is_found_by_its_name():
    for name, source in SOURCES.items():
        assert get_source(name) is source
        assert source.name == name
        assert source.decoder.startswith(f"{name}/")


def test_an_unknown_source_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'knmi'"):
        get_source("kmni")


@pytest.mark.parametrize(
    ("source", "name", "time"),
    [
        ("knmi", "RAD_NL25_RAP_5min_201008260005.h5", "2010-08-26T00:05"),
        ("knmi", "RAD_NL21_PCP_NA_201008260005.h5", "2010-08-26T00:05"),
        ("odim", "T_PAAH22_C_EUOC_20241126011500.hdf", "2024-11-26T01:15"),
        ("odim", "20241126T0115_composite.h5", "2024-11-26T01:15"),
        ("odim", "radar-20241126-0115.hdf5", "2024-11-26T01:15"),
        ("odim", "OPERA@20241126_0115@0@RATE.h5", "2024-11-26T01:15"),
    ],
)
def test_the_time_is_in_the_name(tmp_path, source, name, time):
    touch(tmp_path, name)
    (file,) = get_source(source).find(str(tmp_path))
    assert file.valid_time == pd.Timestamp(time)
    assert file.name == name
    assert file.size == 1


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "radar_202413260005.h5", "radar_202406010000.nc", ".radar_202406010000.h5"],
)
def test_other_files_are_no_frames(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(NoFramesError):
        get_source("odim").find(str(tmp_path))


def test_frames_are_found_in_subfolders_and_sorted_by_time(tmp_path):
    touch(tmp_path, "b/radar_202406010010.h5", "a/radar_202406010015.h5", "radar_202406010005.h5")
    found = get_source("odim").find(str(tmp_path))
    assert [file.valid_time.minute for file in found] == [5, 10, 15]


def test_a_period_includes_both_its_ends(tmp_path):
    touch(tmp_path, *(f"radar_2024060100{minute:02d}.h5" for minute in range(0, 30, 5)))
    five, fifteen = (MIDNIGHT + pd.Timedelta(minutes=m) for m in (5, 15))
    found = get_source("odim").find(str(tmp_path), five, fifteen)
    assert [file.valid_time.minute for file in found] == [5, 10, 15]
    assert len(get_source("odim").find(str(tmp_path), start=fifteen)) == 3
    assert len(get_source("odim").find(str(tmp_path), end=five)) == 2


def test_a_file_was_received_when_it_was_last_changed(tmp_path):
    touch(tmp_path, "radar_202406010000.h5")
    received = pd.Timestamp("2024-06-01T00:01:10", tz="UTC").timestamp()
    os.utime(tmp_path / "radar_202406010000.h5", (received, received))
    (file,) = get_source("odim").find(str(tmp_path))
    assert file.received == pd.Timestamp("2024-06-01T00:01:10")


def test_no_frames_found_is_an_error_that_counts_what_is_there(tmp_path):
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(NoFramesError, match=r"found 2 other file\(s\); expected names such as"):
        get_source("odim").find(str(tmp_path))


def test_no_frames_in_the_period_is_an_error_that_says_the_period(tmp_path):
    touch(tmp_path, "radar_202406010000.h5")
    with pytest.raises(NoFramesError, match="from 2024-06-01T00:05:00Z"):
        get_source("odim").find(str(tmp_path), start=MIDNIGHT + pd.Timedelta("5min"))


def test_a_location_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(NoFramesError, match="no such location"):
        get_source("odim").find(str(tmp_path / "nowhere"))


def test_frames_are_found_on_any_file_system():
    folder = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{folder}/radar_202406010000.h5", "wb") as file:
        file.write(b"1234")
    (found,) = get_source("odim").find(folder)
    assert found.url.startswith("memory://")
    assert found.size == 4
    assert found.received.tzinfo is None


def test_a_dry_pixel_is_observed_and_a_missing_one_is_not(grid):
    rain_rate = np.zeros(grid.shape)
    rain_rate[0, 0], rain_rate[0, 1], rain_rate[0, 2] = np.nan, -1.0, 7.5
    one = frame(rain_rate, grid, MIDNIGHT, cell_methods="time: point")
    assert one.dtype == np.float32
    assert one.values[1, 1] == 0.0
    assert bool(one["observed"][1, 1])
    assert np.isnan(one.values[0, :2]).all()
    assert not one["observed"].values[0, :2].any()
    assert one.values[0, 2] == 7.5
    assert one.attrs["units"] == "mm h-1"
    assert one.attrs["cell_methods"] == "time: point"
    assert pd.Timestamp(one["time"].item()) == MIDNIGHT


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_rain_rate_is_missing_in_fields_of_any_size_and_type(dtype, overwrite):
    grid = Grid.from_corner("EPSG:4326", -130.0, 55.0, (0.01, 0.01), (400, 700))
    rng = np.random.default_rng(0)
    given = rng.normal(0, 5, grid.shape).astype(dtype)
    given[rng.random(grid.shape) < 0.1] = np.nan
    given[0, :3] = [np.inf, -np.inf, -0.0]
    before = given.copy()
    one = frame(given, grid, MIDNIGHT, overwrite=overwrite)
    expected = np.where((before >= 0) & np.isfinite(before), before, np.nan).astype("f4")
    np.testing.assert_array_equal(one.values, expected)
    np.testing.assert_array_equal(one["observed"], np.isfinite(expected))
    assert one.dtype == np.float32
    if not overwrite:
        np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_file_of_the_source_is_a_frame_error(source, content):
    with pytest.raises(FrameError, match="fetch the file again"):
        get_source(source).read(content)


def test_a_failure_inside_a_file_becomes_a_frame_error_with_its_cause():
    import io

    import h5py

    buffer = io.BytesIO()
    h5py.File(buffer, "w").close()
    for failure in (KeyError("a"), ValueError("b"), ZeroDivisionError("c"), OSError("d")):
        with (
            pytest.raises(FrameError, match=type(failure).__name__) as caught,
            open_hdf5(buffer.getvalue()),
        ):
            raise failure
        assert caught.value.__cause__ is failure


@pytest.mark.parametrize("value", [b"RATE", "RATE", np.bytes_(b"RATE"), np.array([b"RATE"])])
def test_text_attributes_come_in_many_forms(value):
    assert text(value) == "RATE"


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.array([2.0]), np.array([[2]])])
def test_numeric_attributes_come_in_many_forms(value):
    assert number(value) == 2.0


def test_a_library_that_is_not_installed_is_no_fault_of_the_files():
    from pipelines.sources.content import formats_library

    with pytest.raises(SquallError, match=r"pip install 'squall\[formats\]'") as caught:
        formats_library("no_such_library", "the source radolan")
    assert not isinstance(caught.value, FrameError)


def test_reading_keeps_our_own_errors_and_turns_others_into_frame_errors():
    from pipelines.sources.content import reading

    own = SquallError("no library", found="none", expected="one", remedy="install it")
    with pytest.raises(SquallError) as caught, reading(b"x", "a file"):
        raise own
    assert caught.value is own
    with pytest.raises(FrameError, match="not readable as a file"), reading(b"x", "a file"):
        raise LookupError("y")
