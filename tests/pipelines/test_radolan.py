"""RADOLAN composites: a line of text, then 12 bits of rain and 4 of flags for each pixel."""

import bz2
import gzip
import io
import tarfile

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source

pytest.importorskip("wradlib")

SECONDARY, NODATA, CLUTTER = 0x1000, 0x2000, 0x8000


def composite(
    pixels=(), *, product="RW", precision=1, minutes=60, shape=(900, 900), version=3, tail=""
):
    """A composite whose southernmost row begins with `pixels`; all else is 0."""
    stored = np.zeros(shape, "<u2")
    stored[0, : len(pixels)] = pixels
    head = (
        f"{product}010050100000624BY{{size:7d}}VS{version:2d}SW   2.13.1PR E-{precision:02d}"
        f"INT{minutes:4d}GP{shape[0]:4d}x{shape[1]:4d}{tail}MS 10<boo,ros>  "
    )
    size = len(head.format(size=0)) + 1 + stored.nbytes
    return head.format(size=size).encode() + b"\x03" + stored.tobytes()


def read(content):
    return get_source("radolan").read(content)


def test_rw_is_millimetres_in_an_hour():
    frame = read(composite([0, 1, 125]))
    np.testing.assert_allclose(frame.values[-1, :3], [0, 0.1, 12.5], rtol=1e-6)
    assert frame.attrs["cell_methods"] == "time: mean (interval: 60 min, ends at time)"
    assert frame.attrs["radolan_product"] == "RW"
    assert pd.Timestamp(frame["time"].item()) == pd.Timestamp("2024-06-01T00:50")


@pytest.mark.parametrize("product", ["RY", "YW"])
def test_five_minute_products_are_twelve_times_as_much_an_hour(product):
    frame = read(composite([0, 1, 125], product=product, precision=2, minutes=5))
    np.testing.assert_allclose(frame.values[-1, :3], [0, 0.12, 15], rtol=1e-6)
    assert frame.attrs["cell_methods"] == "time: mean (interval: 5 min, ends at time)"


def test_nodata_and_clutter_are_missing_and_interpolated_rain_is_rain():
    frame = read(composite([0, NODATA | 2500, CLUTTER | 2490, CLUTTER | 20, SECONDARY | 20]))
    np.testing.assert_array_equal(frame.values[-1, :5], [0, np.nan, np.nan, np.nan, 2])
    assert frame["observed"].values.sum() == 900 * 900 - 3


def test_rows_run_from_north_to_south():
    frame = read(composite([125]))
    assert frame.values[-1, 0] == 12.5
    assert (frame.values[:-1] == 0).all()
    assert frame["y"].values[0] > frame["y"].values[-1]


@pytest.mark.parametrize(
    ("shape", "version", "corners"),
    [
        # DWD's published corners, degrees east and north.
        (
            (900, 900),
            3,
            {
                "LL": (3.5889, 46.9526),
                "LR": (14.6209, 47.0705),
                "UR": (15.7208, 54.7405),
                "UL": (2.0715, 54.5877),
            },
        ),
        (
            (1100, 900),
            3,
            {
                "LL": (4.6759, 46.1929),
                "LR": (15.4801, 46.1827),
                "UR": (17.1128, 55.5342),
                "UL": (3.0889, 55.5482),
            },
        ),
        # DE1200 on WGS 84: what pysteps and DWD's projdef say of the lower left corner.
        ((1200, 1100), 5, {"LL": (3.566994635, 45.69642538)}),
    ],
    ids=["900x900", "1100x900", "1200x1100"],
)
def test_the_corners_are_those_dwd_publishes(shape, version, corners):
    own = Grid.of(read(composite(shape=shape, version=version))).corners_lonlat()
    atol = 6e-5 if version < 5 else 1e-8
    for name, expected in corners.items():
        np.testing.assert_allclose(own[name], expected, atol=atol, rtol=0, err_msg=name)


def test_the_earth_is_dwds_sphere_before_format_version_5():
    assert Grid.of(read(composite())).crs.ellipsoid.semi_major_metre == 6370040
    assert Grid.of(read(composite(version=5))).crs.ellipsoid.semi_major_metre == 6378137


def rv(minutes, pixels=()):
    settings = {"product": "RV", "precision": 2, "minutes": 5, "version": 5}
    return composite(pixels, **settings, shape=(1200, 1100), tail=f"VV {minutes:03d}")


def test_an_analysis_of_the_forecasts_is_a_frame_and_a_forecast_is_none():
    assert read(rv(0, [100])).values[-1, 0] == pytest.approx(12)
    with pytest.raises(FrameError, match=r"\+005 min"):
        read(rv(5))


def test_compressed_files_and_the_forecasts_tar_are_the_same_frame():
    plain = rv(0, [100])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as archive:
        for minutes in (5, 0):
            content = rv(minutes, [100 + minutes])
            info = tarfile.TarInfo(f"DE1200_RV2406010050_{minutes:03d}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for content in (gzip.compress(plain, 1), bz2.compress(plain, 1), buffer.getvalue()):
        assert read(content).identical(read(plain))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        composite()[:-1],
        composite()[:40],
        bz2.compress(composite(), 1)[:-10],
        b"RX" + composite()[2:],
        composite(shape=(800, 900)),
    ],
    ids=["empty", "pixels", "header", "bz2", "product", "grid"],
)
def test_a_truncated_or_foreign_file_is_a_frame_error(content):
    with pytest.raises(FrameError, match="fetch the file again"):
        read(content)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("raa01-rw_10000-2406010050-dwd---bin", True),
        ("raa01-ry_10000-2406010050-dwd---bin.gz", True),
        ("raa01-yw_10000-2406010050-dwd---bin.bz2", True),
        ("DE1200_RV2406010050_000.bz2", True),
        ("DE1200_RV2406010050.tar.bz2", True),
        ("DE1200_RV2406010050_005.bz2", False),
        ("raa01-rx_10000-2406010050-dwd---bin.gz", False),
    ],
)
def test_the_time_is_in_the_name(tmp_path, name, found):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "raa01-rw_10000-2406010150-dwd---bin.gz").write_bytes(b"x")
    times = [file.valid_time for file in get_source("radolan").find(str(tmp_path))]
    assert (times[0] == pd.Timestamp("2024-06-01T00:50")) is found
