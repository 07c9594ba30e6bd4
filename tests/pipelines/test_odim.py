"""ODIM HDF5: what its quantities mean, and the many ways in which it is written."""

import importlib.util
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
from pipelines.sources.hdf5 import read_array
from pipelines.sources.odim import Odim
from pipelines.sources.synthetic import PROJECTION, odim_composite
from pipelines.units import ZRRelation, pack

TIME = pd.Timestamp("2024-06-01T00:05")
GRID = Grid.from_corner(PROJECTION, -2000.0, 2000.0, (1000.0, 2000.0), (2, 4))
BIG = Grid.from_corner(PROJECTION, -400_000.0, 400_000.0, (2000.0, 2000.0), (400, 400))
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


@pytest.mark.parametrize("order", [("RATE", "ACRR"), ("ACRR", "RATE")])
@pytest.mark.parametrize("level", ["{0}_what", "{0}_data1_what"], ids=["dataset", "data"])
def test_a_rain_rate_is_preferred_to_an_accumulation_in_whatever_order(order, level):
    content = composite(
        arrays=[("dataset1/data1", STORED), ("dataset2/data1", STORED)],
        root_where=WHERE,
        **{
            level.format(f"dataset{i}"): RATE | HOUR | {"quantity": quantity.encode()}
            for i, quantity in enumerate(order, 1)
        },
    )
    assert read(content).attrs["odim_quantity"] == "RATE"
    source = Odim()
    source.quantities = ("DBZH", "ACRR")
    assert source.read(content).attrs["odim_quantity"] == "ACRR"
    source.quantities = ("DBZH",)
    with pytest.raises(FrameError, match=r"found (RATE, ACRR|ACRR, RATE); expected DBZH"):
        source.read(content)


def test_accumulation_reflectivity_and_total_power_are_preferred_in_this_order():
    quantities = ["QIND", "TH", "DBZH", "ACRR"]
    for end, preferred in ((4, "ACRR"), (3, "DBZH"), (2, "TH")):
        content = composite(
            arrays=[(f"dataset1/data{i}", STORED) for i in range(1, end + 1)],
            root_where=WHERE,
            dataset1_what=HOUR,
            **{
                f"dataset1_data{i}_what": RATE | {"quantity": quantity.encode()}
                for i, quantity in enumerate(quantities[:end], 1)
            },
        )
        assert read(content).attrs["odim_quantity"] == preferred


@pytest.mark.parametrize("corner", ["UL", "LL", "UR", "LR"])
def test_the_grid_follows_from_any_one_corner(corner):
    where = {name: value for name, value in WHERE.items() if not name.startswith("UL")}
    lon, lat = CORNERS[corner]
    where |= {f"{corner}_lon": lon, f"{corner}_lat": lat}
    grid = Grid.of(read(composite(root_where=where, dataset1_data1_what=RATE)))
    np.testing.assert_allclose(grid.x, GRID.x, atol=1e-6)
    np.testing.assert_allclose(grid.y, GRID.y, atol=1e-6)


def test_a_projection_in_kilometres_is_a_frame_error():
    where = WHERE | {"projdef": PROJECTION.encode().replace(b"+units=m", b"") + b" +units=km"}
    with pytest.raises(FrameError, match="another unit than metres"):
        read(composite(root_where=where, dataset1_data1_what=RATE))


@pytest.mark.parametrize(
    "form",
    [
        lambda value: np.bytes_(value),
        lambda value: value.decode(),
        lambda value: np.array([value]),
        lambda value: np.array([[value]], dtype="S40"),
        lambda value: np.bytes_(value + b" \0"),
    ],
    ids=["bytes", "string", "array", "2-D array", "padded"],
)
def test_text_attributes_come_as_bytes_strings_and_arrays(form):
    buffer = io.BytesIO(composite(root_where=WHERE, dataset1_what=HOUR, dataset1_data1_what=RATE))
    with h5py.File(buffer, "r+") as file:
        for path, names in {
            "what": ("object", "date", "time"),
            "where": ("projdef",),
            "dataset1/data1/what": ("quantity",),
        }.items():
            for name in names:
                value = bytes(file[path].attrs[name])
                del file[path].attrs[name]
                file[path].attrs[name] = form(value)
    frame = read(buffer.getvalue())
    np.testing.assert_array_equal(frame.values, RAIN_RATE)
    assert pd.Timestamp(frame["time"].item()) == TIME


def test_a_time_without_seconds_is_read():
    frame = read(
        composite(
            root_what=ROOT_WHAT | {"time": b"0005"}, root_where=WHERE, dataset1_data1_what=RATE
        )
    )
    assert pd.Timestamp(frame["time"].item()) == TIME


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", ">i2", "i4", "f4", ">f4", "f8"])
def test_every_stored_type_reads_as_the_same_numbers(dtype):
    # 0.5·stored + 1; −1 and 100 are special. As unsigned, −1 is the largest number.
    stored = np.array([[0, 1, 2, 100], [-1, 4, 100, 10]]).astype(dtype)
    nodata = float(stored[1, 0])
    frame = read(
        composite(
            arrays=[("dataset1/data1", stored)],
            root_where=WHERE,
            dataset1_data1_what=RATE | {"nodata": nodata, "undetect": 100.0},
        )
    )
    expected = [[1, 1.5, 2, 0], [np.nan, 3, 0, 6]]
    np.testing.assert_array_equal(frame.values, np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_operas_own_numbers_for_nodata_and_undetect_and_its_largest_rain_rate(dtype):
    stored = np.array([[-9999000, -8888000, 0, 1205.06], [0.1, -9999000, -8888000, 655.34]], dtype)
    opera = {"quantity": b"RATE", "gain": 1.0, "offset": 0.0}
    opera |= {"nodata": -9999000.0, "undetect": -8888000.0}
    frame = read(
        composite(arrays=[("dataset1/data1", stored)], root_where=WHERE, dataset1_what=opera)
    )
    expected = [[np.nan, 0, 0, 1205.06], [0.1, np.nan, 0, 655.34]]
    np.testing.assert_allclose(frame.values, expected, rtol=1e-7)
    packed, clipped = pack(frame.values)
    assert packed.tolist() == [[65535, 0, 0, 65534], [10, 65535, 0, 65534]]
    assert clipped == 1


def test_a_dwd_composite_reads():
    """RADOLAN's layout: u16 in 0.01 mm over 5 minutes, strings, corners without an upper left."""
    projection = (
        "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +a=6378137 +b=6356752.3142451802 "
        "+x_0=543196.83521776402 +y_0=3622588.8619310018 +units=m +no_defs"
    )
    grid = Grid.from_corner(projection, -500.0, 500.0, (1000.0, 1000.0), (2, 4))
    lower_left, upper_right = grid.corners_lonlat()["LL"], grid.corners_lonlat()["UR"]
    where = {"projdef": projection, "xsize": 4, "ysize": 2, "xscale": 1000.0, "yscale": 1000.0}
    where |= {"LL_lon": lower_left[0], "LL_lat": lower_left[1]}
    where |= {"UR_lon": upper_right[0], "UR_lat": upper_right[1]}
    frame = read(
        composite(
            arrays=[("dataset1/data1", np.array([[0, 1, 65535, 0], [65534, 3, 0, 120]], "u2"))],
            root_what={"object": "COMP", "date": "20240601", "time": "000500", "version": "H5rad"},
            root_where=where,
            dataset1_what={"product": "COMP", "prodname": "RV"}
            | {"startdate": "20240601", "starttime": "000000"}
            | {"enddate": "20240601", "endtime": "000500"},
            dataset1_data1_what={"quantity": "ACRR", "gain": 0.01, "offset": 0.0}
            | {"nodata": 65535.0, "undetect": 65534.0},
        )
    )
    expected = [[0, 0.12, np.nan, 0], [0, 0.36, 0, 14.4]]  # 0.01 mm in 5 min is 0.12 mm/h
    np.testing.assert_allclose(frame.values, expected, rtol=1e-6)
    assert Grid.of(frame).matches(grid)


@pytest.mark.parametrize("installed", [True, False], ids=["isal", "no isal"])
@pytest.mark.parametrize(
    "storage",
    [
        {"chunks": (3, 4), "compression": "gzip"},
        {"chunks": (3, 4), "compression": "gzip", "shuffle": True},
        {"chunks": (3, 4), "compression": "gzip", "fletcher32": True},
        {"chunks": (8, 7), "compression": "gzip"},
        {"chunks": (3, 4)},
        {},
    ],
    ids=["chunks", "shuffled", "checked", "one chunk", "not deflated", "contiguous"],
)
@pytest.mark.parametrize("dtype", ["f8", ">f4", "u1"])
def test_however_an_array_is_stored_it_reads_as_hdf5_reads_it(
    monkeypatch, installed, storage, dtype
):
    if installed:
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = np.random.default_rng(0).integers(0, 200, (8, 7)).astype(dtype)
    with h5py.File(io.BytesIO(), "w") as file:
        values = read_array(file.create_dataset("data", data=expected, **storage))
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == np.dtype(dtype).newbyteorder("=")


def test_a_chunk_that_was_never_written_reads_as_the_fill_value():
    with h5py.File(io.BytesIO(), "w") as file:
        layout = {"chunks": (4, 4), "compression": "gzip", "fillvalue": 7}
        dataset = file.create_dataset("data", (8, 8), "u1", **layout)
        dataset[:4, :4] = 1
        expected = np.full((8, 8), 7)
        expected[:4, :4] = 1
        np.testing.assert_array_equal(read_array(dataset), expected)


def test_a_broken_chunk_is_a_frame_error():
    content = bytearray(odim_composite(np.ones((400, 400)), BIG, TIME))
    with h5py.File(io.BytesIO(bytes(content))) as file:
        dataset = file["dataset1/data1/data"]
        chunk = dataset.id.get_chunk_info(0)
    for at in range(chunk.byte_offset + 2, chunk.byte_offset + chunk.size):
        content[at] ^= 0x5A
    with pytest.raises(FrameError, match="unreadable HDF5 file"):
        read(bytes(content))


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
