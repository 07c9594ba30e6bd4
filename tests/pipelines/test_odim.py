"""ODIM HDF5: what its quantities mean, and the many ways in which it is written."""

import io

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source
from pipelines.sources.odim import Odim
from pipelines.sources.synthetic import PROJECTION, odim_composite
from pipelines.units import ZRRelation

TIME = pd.Timestamp("2024-06-01T00:05")
GRID = Grid.from_corner(PROJECTION, -2000.0, 2000.0, (1000.0, 2000.0), (2, 4))
ROOT_WHAT = {"object": b"COMP", "date": b"20240601", "time": b"000500"}
CORNERS = GRID.corners_lonlat()
WHERE = {
    "projdef": PROJECTION.encode(),
    "xsize": 4,
    "ysize": 2,
    "xscale": 1000.0,
    "yscale": 2000.0,
    "UL_lon": CORNERS["UL"][0],
    "UL_lat": CORNERS["UL"][1],
}
RATE = {"quantity": b"RATE", "gain": 0.5, "offset": 1.0, "nodata": 255.0, "undetect": 0.0}
STORED = np.array([[0, 1, 2, 255], [255, 4, 0, 10]], np.uint8)
RAIN_RATE = np.array([[0, 1.5, 2, np.nan], [np.nan, 3, 0, 6]])  # 0.5·stored + 1
HOUR = {"startdate": b"20240531", "starttime": b"230500", "enddate": b"20240601"} | {
    "endtime": b"000500"
}


def composite(*, arrays=(("dataset1/data1", STORED),), root_what=ROOT_WHAT, **groups):
    """An ODIM file: `what` and `where` attributes by group, `_` for `/`, ``root`` for the root."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for path, array in arrays:
            file[f"{path}/data"] = array
        for name, attrs in {"root_what": root_what, **groups}.items():
            file.require_group(name.replace("root_", "").replace("_", "/")).attrs.update(
                {k: np.bytes_(v) if isinstance(v, bytes) else v for k, v in attrs.items()}
            )
    return buffer.getvalue()


def read(content):
    return get_source("odim").read(content)


def test_undetect_is_dry_and_observed_and_nodata_is_neither():
    frame = read(composite(root_where=WHERE, dataset1_data1_what=RATE))
    np.testing.assert_array_equal(frame.values, RAIN_RATE)
    np.testing.assert_array_equal(frame["observed"], np.isfinite(RAIN_RATE))
    assert frame.values[0, 0] == 0.0
    assert bool(frame["observed"][0, 0])
    assert frame.attrs["odim_quantity"] == "RATE"


def test_where_nodata_and_undetect_are_one_number_it_is_missing():
    frame = read(composite(root_where=WHERE, dataset1_data1_what=RATE | {"undetect": 255.0}))
    np.testing.assert_array_equal(np.isnan(frame.values), STORED == 255)


def test_the_frame_has_the_files_time_and_grid():
    frame = read(composite(root_where=WHERE, dataset1_data1_what=RATE))
    assert pd.Timestamp(frame["time"].item()) == TIME
    assert Grid.of(frame).matches(GRID)


def test_the_roots_time_counts_and_not_the_intervals():
    frame = read(
        composite(
            root_where=WHERE,
            dataset1_what=HOUR | {"endtime": b"000459"},
            dataset1_data1_what=RATE,
        )
    )
    assert pd.Timestamp(frame["time"].item()) == TIME


def test_the_quantity_may_be_at_dataset_level():
    frame = read(composite(root_where=WHERE, dataset1_what=RATE))
    np.testing.assert_array_equal(frame.values, RAIN_RATE)


def test_the_innermost_attribute_counts():
    frame = read(
        composite(
            root_where=WHERE, dataset1_what=RATE | {"gain": 7.0}, dataset1_data1_what={"gain": 0.5}
        )
    )
    np.testing.assert_array_equal(frame.values, RAIN_RATE)


def test_the_grid_may_be_in_dataset1_only():
    frame = read(composite(dataset1_where=WHERE, dataset1_data1_what=RATE))
    assert Grid.of(frame).matches(GRID)


def test_sizes_may_be_in_dataset1_and_the_projection_at_the_root():
    sizes = {name: WHERE[name] for name in ("xsize", "ysize", "xscale", "yscale")}
    others = {name: WHERE[name] for name in ("projdef", "UL_lon", "UL_lat")}
    frame = read(composite(root_where=others, dataset1_where=sizes, dataset1_data1_what=RATE))
    assert Grid.of(frame).matches(GRID)


def test_without_gain_offset_nodata_and_undetect_numbers_are_rain_rates_and_nan_is_missing():
    stored = np.array([[0, 0.5, np.nan, 3], [1, 2, 255, 0]], np.float32)
    frame = read(
        composite(
            arrays=[("dataset1/data1", stored)],
            root_where=WHERE,
            dataset1_data1_what={"quantity": b"RATE"},
        )
    )
    np.testing.assert_array_equal(frame.values, stored)
    np.testing.assert_array_equal(frame["observed"], np.isfinite(stored))


def test_an_accumulation_is_divided_by_its_interval():
    # 0.5·stored + 1 mm over two hours.
    two_hours = HOUR | {"starttime": b"220500"}
    frame = read(
        composite(
            root_where=WHERE,
            dataset1_what=two_hours,
            dataset1_data1_what=RATE | {"quantity": b"ACRR"},
        )
    )
    np.testing.assert_allclose(frame.values, RAIN_RATE / 2)
    assert frame.attrs["cell_methods"] == "time: mean (interval: 120 min, ends at time)"


@pytest.mark.parametrize(
    "interval",
    [
        {},
        {name: value for name, value in HOUR.items() if name != "starttime"},
        HOUR | {"starttime": b"noon"},
        HOUR | {"startdate": b"20240601", "starttime": b"000500"},
        HOUR | {"startdate": b"20240602"},
    ],
    ids=["none", "no start", "no time", "of no length", "backwards"],
)
def test_an_accumulation_without_its_interval_is_a_frame_error(interval):
    with pytest.raises(FrameError):
        read(
            composite(
                root_where=WHERE,
                dataset1_what=interval,
                dataset1_data1_what=RATE | {"quantity": b"ACRR"},
            )
        )


def test_reflectivity_becomes_rain_rate_through_a_named_relation():
    # 0.5·stored − 32 dBZ: 144 is 40 dBZ, (10⁴/200)^(1/1.6) = 11.5307 mm/h.
    stored = np.array([[0, 144, 64, 255], [255, 144, 0, 64]], np.uint8)
    dbzh = RATE | {"quantity": b"DBZH", "offset": -32.0}
    content = composite(
        arrays=[("dataset1/data1", stored)], root_where=WHERE, dataset1_data1_what=dbzh
    )
    frame = read(content)
    low = (1 / 200) ** (1 / 1.6)
    expected = [[0, 11.530715, low, np.nan], [np.nan, 11.530715, 0, low]]
    np.testing.assert_allclose(frame.values, expected, rtol=1e-6)
    assert frame.attrs["z_r_relation"] == "Marshall–Palmer 1948: a=200, b=1.6"

    source = Odim()
    source.zr = ZRRelation("WSR-88D convective", 300.0, 1.4)
    frame = source.read(content)
    assert frame.values[0, 1] == pytest.approx((1e4 / 300) ** (1 / 1.4), rel=1e-6)
    assert frame.attrs["z_r_relation"] == "WSR-88D convective: a=300, b=1.4"


def test_a_nodata_far_outside_the_scale_is_missing_without_a_warning():
    # 65535 at a gain of 0.5 would be 32735 dBZ.
    stored = STORED.astype(np.uint16)
    stored[stored == 255] = 65535
    dbzh = RATE | {"quantity": b"DBZH", "nodata": 65535.0}
    content = composite(
        arrays=[("dataset1/data1", stored)], root_where=WHERE, dataset1_data1_what=dbzh
    )
    np.testing.assert_array_equal(np.isnan(read(content).values), stored == 65535)


def test_the_first_precipitation_quantity_is_read_in_the_order_of_numbers():
    other = np.full((2, 4), 9, np.uint8)
    frame = read(
        composite(
            arrays=[
                ("dataset1/data1", other),
                ("dataset2/data1", other),
                ("dataset2/data2", STORED),
                ("dataset10/data1", other),
            ],
            root_where=WHERE,
            dataset1_data1_what={"quantity": b"QIND"},
            dataset2_data1_what={"quantity": b"QIND"},
            dataset2_data2_what=RATE,
            dataset10_data1_what=RATE,
        )
    )
    np.testing.assert_array_equal(frame.values, RAIN_RATE)


def test_no_precipitation_quantity_is_a_frame_error_that_names_what_is_there():
    with pytest.raises(FrameError, match="found QIND; expected RATE or ACRR or DBZH"):
        read(composite(root_where=WHERE, dataset1_data1_what=RATE | {"quantity": b"QIND"}))


def test_a_single_radars_volume_is_a_frame_error():
    with pytest.raises(FrameError, match="found ODIM object PVOL"):
        read(composite(root_what=ROOT_WHAT | {"object": b"PVOL"}, root_where=WHERE))


@pytest.mark.parametrize(
    "where",
    [
        {},
        {name: value for name, value in WHERE.items() if name != "UL_lat"},
        WHERE | {"projdef": b"+proj=nonsense"},
        WHERE | {"xsize": 5},
        WHERE | {"xscale": 0.0},
        WHERE | {"xsize": np.inf},
        WHERE | {"UL_lon": np.nan},
    ],
    ids=["none", "no corner", "no projection", "other size", "no width", "endless", "nan"],
)
def test_a_grid_that_cannot_be_is_a_frame_error(where):
    with pytest.raises(FrameError):
        read(composite(root_where=where, dataset1_data1_what=RATE))


def test_a_synthetic_composite_reads_as_the_field_it_was_made_of(grid):
    field = np.random.default_rng(0).gamma(0.5, 4.0, grid.shape).round(2)
    field[0, :3] = [np.nan, 0.0, 655.34]
    frame = read(odim_composite(field, grid, TIME))
    np.testing.assert_allclose(frame.values, field, atol=1e-4)
    assert Grid.of(frame).matches(grid)
    assert pd.Timestamp(frame["time"].item()) == TIME


@given(st.floats(0, 1))
def test_a_file_cut_anywhere_is_a_frame_error(kept):
    content = odim_composite(np.ones(GRID.shape), GRID, TIME)
    with pytest.raises(FrameError):
        read(content[: int(len(content) * kept * 0.999)])


def test_a_nimbus_file_reads_as_its_raw_numbers(radar_data):
    path = sorted((radar_data / "opera-nimbus").glob("T_PAAH22*.hdf"))[0]
    frame = read(path.read_bytes())
    with h5py.File(path) as file:
        stored = file["dataset1/data1/data"][()]
        where = dict(file["where"].attrs)
    nodata, undetect = stored == -9999000, stored == -8888000
    rain = ~nodata & ~undetect
    assert nodata.any()
    assert undetect.any()
    assert rain.any()
    np.testing.assert_allclose(frame.values[rain], stored[rain], rtol=1e-6)
    assert (frame.values[undetect] == 0).all()
    np.testing.assert_array_equal(np.isnan(frame.values), nodata)
    np.testing.assert_array_equal(frame["observed"], ~nodata)
    assert pd.Timestamp(frame["time"].item()) == pd.Timestamp("2024-11-26T01:00")
    assert_corners(Grid.of(frame), where)


def test_a_cirrus_file_reads_as_its_raw_numbers_through_marshall_palmer(radar_data):
    path = sorted((radar_data / "opera-cirrus").glob("T_PABV21*.hdf"))[0]
    frame = read(path.read_bytes())
    with h5py.File(path) as file:
        stored = file["dataset1/data1/data"][()]
        where = dict(file["where"].attrs)
    nodata, undetect = stored == -9999000, stored == -8888000
    rain = ~nodata & ~undetect
    assert rain.any()
    expected = (10 ** (stored[rain] / 10) / 200) ** (1 / 1.6)
    np.testing.assert_allclose(frame.values[rain], expected, rtol=1e-6)
    assert (frame.values[undetect] == 0).all()
    np.testing.assert_array_equal(np.isnan(frame.values), nodata)
    assert_corners(Grid.of(frame), where)


def assert_corners(grid, where):
    """The four corners, all computed from the upper left one, are the file's within 5 m."""
    for corner, (lon, lat) in grid.corners_lonlat().items():
        file_lon, file_lat = float(where[f"{corner}_lon"]), float(where[f"{corner}_lat"])
        _, _, distance_m = grid.crs.get_geod().inv(lon, lat, file_lon, file_lat)
        assert distance_m < 5, corner
