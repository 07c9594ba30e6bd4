"""KNMI composites: an accumulation over the five minutes that end at the file's time."""

import io

import h5py
import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source

STORED = np.array([[0, 1, 65535], [50, 1200, 65535]], np.uint16)


def composite(**changes):
    """A 2×3 file in KNMI's layout, on the corner of their composite; `changes` by attribute."""
    groups = {
        "overview": {
            "product_datetime_start": b"26-AUG-2010;00:00:00.000",
            "product_datetime_end": b"26-AUG-2010;00:05:00.000",
        },
        "geographic": {
            "geo_column_offset": 0.0,
            "geo_row_offset": 3650.0,
            "geo_pixel_size_x": 1.0,
            "geo_pixel_size_y": -1.0,
            "geo_number_rows": 2,
            "geo_number_columns": 3,
        },
        "geographic/map_projection": {
            "projection_proj4_params": b"+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 "
            b"+a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
        },
        "image1": {"image_geo_parameter": b"ACCUMULATED_PRECIPITATION_[MM]"},
        "image1/calibration": {
            "calibration_formulas": b"GEO=0.01*PV+0.0",
            "calibration_missing_data": 65535,
            "calibration_out_of_image": 65535,
        },
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for path, attrs in groups.items():
            group = file.require_group(path)
            for name, value in attrs.items():
                value = changes.get(name, value)
                if value is not None:
                    group.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else [value]
        file["image1/image_data"] = changes.get("stored", STORED)
    return buffer.getvalue()


def read(content):
    return get_source("knmi").read(content)


def test_an_accumulation_over_five_minutes_is_twelve_times_as_much_an_hour():
    frame = read(composite())
    # 0.01 mm in 5 min is 0.12 mm/h; 0.5 mm is 6; 12 mm is 144.
    expected = [[0, 0.12, np.nan], [6, 144, np.nan]]
    np.testing.assert_allclose(frame.values, expected, rtol=1e-6)
    np.testing.assert_array_equal(frame["observed"], STORED != 65535)
    assert frame.attrs["cell_methods"] == "time: mean (interval: 5 min, ends at time)"


def test_the_frames_time_is_the_end_of_its_interval():
    assert pd.Timestamp(read(composite())["time"].item()) == pd.Timestamp("2010-08-26T00:05")


def test_the_interval_is_the_files_own():
    frame = read(composite(product_datetime_start=b"25-AUG-2010;23:05:00.000"))
    np.testing.assert_allclose(frame.values[1, :2], [0.5, 12.0], rtol=1e-6)


def test_the_calibration_is_the_files_own():
    frame = read(composite(calibration_formulas=b"GEO=0.1*PV+-0.2", stored=STORED + 2))
    np.testing.assert_allclose(frame.values[1, :2], [60, 1440], rtol=1e-6)


def test_the_projection_comes_in_metres():
    grid = Grid.of(read(composite()))
    assert grid.x.tolist() == [500.0, 1500.0, 2500.0]
    assert grid.y.tolist() == [-3650500.0, -3651500.0]
    assert grid.crs.ellipsoid.semi_major_metre == pytest.approx(6378137)
    assert grid.crs.ellipsoid.semi_minor_metre == pytest.approx(6356752)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_geo_parameter": b"REFLECTIVITY_[DBZ]"},
        {"calibration_formulas": b"see the manual"},
        {"calibration_formulas": b"GEO=e*PV"},
        {"calibration_formulas": None},
        {"product_datetime_end": b"26-AUG-2010;00:00:00.000"},
        {"product_datetime_end": b"some time later"},
        {"geo_number_rows": 3},
        {"geo_pixel_size_x": None},
        {"projection_proj4_params": b"+proj=nonsense"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_file_that_cannot_be_understood_is_a_frame_error(changes):
    with pytest.raises(FrameError):
        read(composite(**changes))


def test_a_real_file_reads_as_its_raw_numbers(radar_data):
    path = radar_data / "knmi/RAD_NL25_RAP_5min_201008260500.h5"
    frame = read(path.read_bytes())
    with h5py.File(path) as file:
        stored = file["image1/image_data"][()]
        corners = file["geographic"].attrs["geo_product_corners"].reshape(4, 2)
    seen = stored != 65535
    assert stored[seen].max() > 0
    np.testing.assert_allclose(frame.values[seen], 0.01 * stored[seen] * 12, rtol=1e-6)
    assert np.isnan(frame.values[~seen]).all()
    np.testing.assert_array_equal(frame["observed"], seen)
    assert pd.Timestamp(frame["time"].item()) == pd.Timestamp("2010-08-26T05:00")
    # The file lists LL, UL, UR, LR with three decimals.
    own = Grid.of(frame).corners_lonlat()
    for name, expected in zip(("LL", "UL", "UR", "LR"), corners, strict=True):
        np.testing.assert_allclose(own[name], expected, atol=1e-3, err_msg=name)


def test_real_files_are_found_five_minutes_apart(radar_data):
    files = get_source("knmi").find(
        str(radar_data / "knmi"), pd.Timestamp("2010-08-26T00:00"), pd.Timestamp("2010-08-26T01:00")
    )
    times = pd.DatetimeIndex([file.valid_time for file in files])
    assert list(times) == list(pd.date_range("2010-08-26", periods=13, freq="5min"))
