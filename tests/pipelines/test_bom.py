"""Rainfields files: an accumulation between two times, on kilometres around a radar."""

import gzip

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source

pytest.importorskip("h5netcdf")

STORED = np.array([[0, 1, -1, -2], [20, 200, 0, 0], [0, 0, 0, 0], [7, 0, 0, 0]], np.int16)
SINCE_1970 = {"units": "seconds since 1970-01-01 00:00:00 UTC"}
PROJ = {
    "grid_mapping_name": "albers_conical_equal_area",
    "standard_parallel": [-18.0, -36.0],
    "longitude_of_central_meridian": 144.752,
    "latitude_of_projection_origin": -37.852,
    "false_easting": 0.0,
    "false_northing": 0.0,
    "semi_major_axis": 6378137.0,
    "semi_minor_axis": 6356752.31414,
}


def rainfields(
    stored=STORED,
    *,
    x=(-0.75, -0.25, 0.25, 0.75),
    y=(0.75, 0.25, -0.25, -0.75),
    minutes=10,
    units="kg m-2",
    proj=PROJ,
    offset_mm=0.0,
):
    end = pd.Timestamp("2018-06-16T10:00").value // 10**9
    dataset = xr.Dataset(
        {
            "precipitation": (
                ("y", "x"),
                stored,
                {
                    "units": units,
                    "scale_factor": 0.05,
                    "add_offset": offset_mm,
                    "_FillValue": np.int16(-1),
                    "grid_mapping": "proj",
                },
            ),
            "proj": ((), np.int8(0), proj),
            "start_time": ((), end - 60 * minutes, SINCE_1970),
            "valid_time": ((), end, SINCE_1970),
        },
        coords={
            "x": ("x", np.array(x, np.float32), {"units": "km"}),
            "y": ("y", np.array(y, np.float32), {"units": "km"}),
        },
    )
    return bytes(dataset.to_netcdf(engine="h5netcdf"))


def read(content):
    return get_source("bom").read(content)


def test_an_accumulation_over_ten_minutes_is_six_times_as_much_an_hour():
    frame = read(rainfields())
    # 0.05 mm in 10 min is 0.3 mm/h; 1 mm is 6; 10 mm is 60.
    np.testing.assert_allclose(frame.values[0], [0, 0.3, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(frame.values[1, :2], [6, 60], rtol=1e-6)
    assert frame.attrs["cell_methods"] == "time: mean (interval: 10 min, ends at time)"
    assert pd.Timestamp(frame["time"].item()) == pd.Timestamp("2018-06-16T10:00")


def test_the_interval_is_the_files_own():
    frame = read(rainfields(minutes=6))
    np.testing.assert_allclose(frame.values[1, :2], [10, 100], rtol=1e-6)


def test_negative_codes_are_missing_and_zero_is_dry():
    np.testing.assert_array_equal(read(rainfields())["observed"].values, STORED >= 0)


def test_a_code_stays_a_code_where_packing_would_make_it_rain():
    frame = read(rainfields(offset_mm=1.0))
    np.testing.assert_array_equal(frame["observed"].values, STORED >= 0)
    np.testing.assert_allclose(frame.values[0, :2], [6, 6.3], rtol=1e-6)


def test_coordinates_in_kilometres_become_metres():
    grid = Grid.of(read(rainfields()))
    assert grid.x.tolist() == [-750.0, -250.0, 250.0, 750.0]
    assert grid.y.tolist() == [750.0, 250.0, -250.0, -750.0]
    lon, lat = grid.lonlat(np.zeros(1), np.zeros(1))
    assert (lon[0], lat[0]) == pytest.approx((144.752, -37.852), abs=1e-9)


def test_coordinates_that_are_edges_become_the_same_centres():
    edges = rainfields(x=(-1.0, -0.5, 0.0, 0.5), y=(1.0, 0.5, 0.0, -0.5))
    assert Grid.of(read(edges)).matches(Grid.of(read(rainfields())))


def test_a_gzipped_file_is_the_same_frame():
    assert read(gzip.compress(rainfields())).identical(read(rainfields()))


@pytest.mark.parametrize(
    "changes",
    [
        {"units": "mm h-1"},
        {"minutes": 0},
        {"x": (-0.75, -0.25, 0.25, 0.95)},
        {"y": (-0.75, -0.25, 0.25, 0.75)},
        {"proj": {"grid_mapping_name": "flat"}},
    ],
    ids=["rate", "no-time", "uneven", "ascending", "projection"],
)
def test_a_file_that_cannot_be_understood_is_a_frame_error(changes):
    with pytest.raises(FrameError):
        read(rainfields(**changes))


@pytest.mark.parametrize("keep", [0, 8, 600, -100])
def test_a_truncated_file_is_a_frame_error(keep):
    with pytest.raises(FrameError, match="fetch the file again"):
        read(rainfields()[:keep])


@pytest.mark.parametrize("product", ["prcp-c10", "prcp-cscn"])
def test_the_time_is_in_the_name(tmp_path, product):
    (tmp_path / f"2_20180616_100600.{product}.nc").write_bytes(b"x")
    (file,) = get_source("bom").find(str(tmp_path))
    assert file.valid_time == pd.Timestamp("2018-06-16T10:06")
