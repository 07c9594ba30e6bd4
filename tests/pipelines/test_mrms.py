"""MRMS GRIB2: values, grid and time of messages built here, and files that are none."""

import gzip
import importlib.metadata
import importlib.util
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FrameError, SquallError
from pipelines.grid import Grid
from pipelines.sources import get_source, grib2
from pipelines.units import pack

RAIN_RATE = np.array([[0.0, 1.5, -3.0, -1.0], [148.8, 0.1, 0.0, 7.0], [0.0, 0.0, 2.0, -3.0]])
"""mm/h; −3 is no coverage, −1 missing."""
BODY = 5  # octets of a section's length and number


def section(number, body):
    return struct.pack(">IB", BODY + len(body), number) + body


def signed(value):
    """GRIB's signs: the first bit."""
    return abs(value) | (0x80000000 if value < 0 else 0)


def message(
    values=RAIN_RATE,
    *,
    parameter=(209, 6, 1),
    shape=None,
    corner=(54_995_000, 230_005_000),
    earth=2,
    grid_template=0,
    flags=48,
    scan=0,
    bitmap=None,
    parts=1_000_000,
    time=(2024, 6, 1, 0, 2, 0),
):
    """A GRIB2 message as MRMS lays it out, simply packed in tenths of mm/h by 16 bits."""
    rows, columns = shape or values.shape
    (north, west), south = corner, corner[0] - 10_000 * (rows - 1)
    given = values.ravel() if bitmap is None else values.ravel()[bitmap.ravel()]
    tenths = np.rint(given * 10 + 30).astype(">u2")
    identification = struct.pack(">HHBBBHBBBBBBB", 161, 0, 255, 1, 3, *time, 2, 7)
    grid = struct.pack(">BIBBHB15x", 0, rows * columns, 0, 0, grid_template, earth) + struct.pack(
        ">IIIIIIBIIIIB",
        *(columns, rows, 1, parts, signed(north), west, flags),
        *(signed(south), west + 10_000 * (columns - 1), 10_000, 10_000, scan),
    )
    product = struct.pack(
        ">HHBBBBBHBBIBBIBBI", 0, 0, *parameter[1:], 8, 0, 97, 0, 0, 0, 0, 102, 0, 0, 255, 0, 0
    )
    packing = struct.pack(">IHfHHBB", given.size, 0, -30.0, 0, 1, 16, 0)
    bits = b"\xff" if bitmap is None else b"\0" + np.packbits(bitmap).tobytes()
    sections = b"".join(
        section(number, body)
        for number, body in (
            (1, identification),
            (3, grid),
            (4, product),
            (5, packing),
            (6, bits),
            (7, tenths.tobytes()),
        )
    )
    head = b"GRIB\0\0" + struct.pack(">BBQ", parameter[0], 2, 16 + len(sections) + 4)
    return head + sections + b"7777"


def read(content):
    return get_source("mrms").read(content)


@pytest.fixture(params=grib2.LIBRARIES)
def library(request, monkeypatch):
    """Each library in turn, as if it were the only one installed."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(grib2, "LIBRARIES", (request.param,))
    return request.param


def test_no_coverage_and_missing_are_not_observed_and_zero_is_dry(library):
    frame = read(message())
    expected = np.where(RAIN_RATE < 0, np.nan, RAIN_RATE)
    np.testing.assert_array_equal(frame.values, expected.astype(np.float32))
    np.testing.assert_array_equal(frame["observed"], RAIN_RATE >= 0)
    assert frame.dtype == np.float32
    assert pack(frame.values)[0].tolist()[0] == [0, 150, 65535, 65535]


def test_what_a_bitmap_leaves_out_is_not_observed(library):
    bitmap = np.ones(RAIN_RATE.shape, bool)
    bitmap[1, 1:3] = False
    frame = read(message(bitmap=bitmap))
    np.testing.assert_array_equal(frame["observed"], (RAIN_RATE >= 0) & bitmap)
    assert frame.values[1, 3] == 7.0


def test_the_time_is_the_messages():
    frame = read(message(time=(2019, 12, 31, 23, 58, 0)))
    assert pd.Timestamp(frame["time"].item()) == pd.Timestamp("2019-12-31T23:58")


def test_the_grid_is_the_messages_with_longitudes_from_minus_180():
    grid = Grid.of(read(message()))
    # 230.005°E is −129.995°; centres lie half a pixel of 0.01° inside.
    np.testing.assert_allclose(grid.x, [-129.995, -129.985, -129.975, -129.965], atol=1e-12)
    np.testing.assert_allclose(grid.y, [54.995, 54.985, 54.975], atol=1e-12)
    assert grid.is_geographic
    ellipsoid = grid.crs.ellipsoid
    assert (ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre) == (6378160, 6356775)


@pytest.mark.parametrize(
    ("corner", "west", "north"),
    [
        ((21_005_000, 140_005_000), 140.0, 21.01),
        ((-10_005_000, 184_005_000), -176.0, -10.0),
        ((5_000, 180_005_000), -180.0, 0.01),
        ((5_000, 5_000), 0.0, 0.01),
        ((5_000, 0), -0.005, 0.01),
    ],
    ids=["east of Greenwich", "south of the equator", "date line", "Greenwich", "across Greenwich"],
)
def test_the_upper_left_corner_may_be_anywhere(corner, west, north):
    grid = Grid.of(read(message(corner=corner)))
    lon, lat = grid.corners_lonlat()["UL"]
    assert (lon, lat) == (pytest.approx(west, abs=1e-9), pytest.approx(north, abs=1e-9))


@pytest.mark.parametrize(("earth", "axis_m"), [(0, 6367470), (4, 6378137), (5, 6378137)])
def test_the_shape_of_the_earth_is_the_messages(earth, axis_m):
    grid = Grid.of(read(message(earth=earth)))
    assert grid.crs.ellipsoid.semi_major_metre == axis_m


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ({"earth": 7}, "shape of the earth: found code 7"),
        ({"scan": 64}, "another order"),
        ({"flags": 0}, "another order"),
        ({"grid_template": 30}, r"found grid template 3\.30"),
        ({"shape": (3, 5)}, "12 values for"),
        ({"parts": 0}, "in a degree"),
        ({"time": (2024, 13, 1, 0, 0, 0)}, "month"),
    ],
)
def test_a_header_that_cannot_be_used_is_a_frame_error(fault, match):
    with pytest.raises(FrameError, match=match):
        read(message(**fault))


def test_the_libraries_give_the_same_frame(monkeypatch):
    frames = []
    for name in grib2.LIBRARIES:
        pytest.importorskip(name)
        monkeypatch.setattr(grib2, "LIBRARIES", (name,))
        frames.append(read(message()))
    assert frames[0].identical(frames[1])


def test_gzipped_or_not_is_the_same_frame():
    assert read(gzip.compress(message())).identical(read(message()))


def test_of_several_messages_the_precipitation_rate_is_read():
    other = message(np.full((2, 2), 9.0), parameter=(209, 6, 0))
    later = message(np.full((2, 2), 5.0))
    assert read(other + message() + later).identical(read(message()))


def test_another_product_is_a_frame_error_that_names_it():
    with pytest.raises(
        FrameError, match="found GRIB2 parameter 209-9-0, 209-6-2; expected 209-6-1"
    ):
        read(message(parameter=(209, 9, 0)) + message(parameter=(209, 6, 2)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no GRIB at all, but long enough to be one",
        b"GRIB",
        b"GRIB" + bytes(200),
        message() + b"and more",
        message()[:7] + b"\1" + message()[8:],
        gzip.compress(message())[:-9],
        gzip.compress(b""),
        b"\x1f\x8b" + bytes(30),
    ],
    ids=["empty", "text", "word", "zeros", "tail", "edition 1", "cut gzip", "gzip of none", "gzip"],
)
def test_what_is_no_grib2_file_is_a_frame_error(content):
    with pytest.raises(FrameError):
        read(content)


@given(st.integers(0, len(message()) - 1), st.booleans())
def test_a_file_cut_anywhere_is_a_frame_error(kept, zipped):
    cut = message()[:kept]
    with pytest.raises(FrameError):
        read(gzip.compress(cut) if zipped else cut)


@given(st.integers(0, len(message()) - 1), st.integers(1, 255))
def test_a_file_with_one_wrong_byte_is_a_frame_or_a_frame_error(at, difference):
    content = bytearray(message())
    content[at] ^= difference
    try:
        frame = read(bytes(content))
    except FrameError:
        return
    assert Grid.of(frame).shape == frame.shape


def test_without_a_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SquallError, match=r"pip install squall\[formats\]") as caught:
        read(message())
    assert not isinstance(caught.value, FrameError)
    assert grib2.decoder("mrms", 1) == "mrms/1 no-grib-library"


def test_the_manifest_names_the_library():
    library = grib2.installed_library()
    version = importlib.metadata.version(library)
    assert get_source("mrms").decoder == f"mrms/1 {library}/{version}"


@pytest.mark.parametrize(
    "name",
    [
        "MRMS_PrecipRate_00.00_20240601-000200.grib2.gz",
        "20240601/MRMS_PrecipRate_00.00_20240601-000200.grib2",
        "PrecipRate_00.00_20240601-000200.grib2",
    ],
)
def test_the_time_is_in_the_name(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "MRMS_RadarOnly_QPE_01H_00.00_20240601-000200.grib2.gz").write_bytes(b"x")
    (file,) = get_source("mrms").find(str(tmp_path))
    assert file.valid_time == pd.Timestamp("2024-06-01T00:02")
