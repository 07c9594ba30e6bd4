"""FMI's PGM composites: a header in comments, bytes of half a dBZ."""

import gzip

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source

# Bytes 64, 110 and 144 are 0, 23 and 40 dBZ.
STORED = np.array([[0, 255, 64], [110, 144, 0]], np.uint8)
HEADER = {
    "obstime": "201609281600",
    "param": "CorrectedReflectivity",
    "metersperpixel_x": "253250.760095",  # FMI's own area, 3 pixels wide and 2 high
    "metersperpixel_y": "612772.325671",
    "projection": "radar {",
    "type": "stereographic",
    "centrallongitude": "25",
    "centrallatitude": "90",
    "truelatitude": "60",
    "bottomleft": "18.600000 57.930000",
    "topright": "34.903000 69.005000",
}


def composite(stored=STORED, **changes):
    lines = [f"# {name} {value}" for name, value in (HEADER | changes).items() if value]
    rows, columns = stored.shape
    head = "\n".join(["P5", "# composite_area FIN", *lines, "# }", f"{columns} {rows}", "255", ""])
    return head.encode() + stored.tobytes()


def read(content):
    return get_source("fmi-pgm").read(content)


def test_a_byte_becomes_rain_by_the_relation_for_finland():
    frame = read(composite())
    # 0 dBZ: (1/223)^(1/1.53) = 0.029185; 23 dBZ: (199.53/223)^(1/1.53) = 0.929883;
    # 40 dBZ: (10000/223)^(1/1.53) = 12.0099.
    expected = [[0, np.nan, 0.029185], [0.929883, 12.0099, 0]]
    np.testing.assert_allclose(frame.values, expected, rtol=1e-4)
    assert frame.attrs["z_r_relation"] == "Leinonen et al. 2012, Finland: a=223, b=1.53"


def test_undetect_is_dry_and_nodata_is_missing():
    observed = read(composite())["observed"].values
    np.testing.assert_array_equal(observed, STORED != 255)


def test_the_corners_are_the_headers():
    corners = Grid.of(read(composite())).corners_lonlat()
    np.testing.assert_allclose(corners["LL"], (18.6, 57.93), atol=1e-5)
    np.testing.assert_allclose(corners["UR"], (34.903, 69.005), atol=1e-5)


def test_the_lower_left_corner_is_the_origin_of_the_projection():
    grid = Grid.of(read(composite()))
    dx, dy = grid.pixel
    assert grid.x[0] - dx / 2 == pytest.approx(0, abs=0.01)
    assert grid.y[-1] - dy / 2 == pytest.approx(0, abs=0.5)


def test_gzipped_and_plain_files_are_the_same_frame():
    assert read(gzip.compress(composite())).identical(read(composite()))


def test_the_time_is_the_headers():
    assert pd.Timestamp(read(composite())["time"].item()) == pd.Timestamp("2016-09-28T16:00")


@pytest.mark.parametrize(
    "changes",
    [
        {"param": "HClass"},
        {"type": "gnomonic"},
        {"obstime": "soon"},
        {"obstime": None},
        {"bottomleft": "10.0 57.93"},
        {"metersperpixel_y": "999.6"},
        {"centrallatitude": "north"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_header_that_cannot_be_understood_is_a_frame_error(changes):
    with pytest.raises(FrameError):
        read(composite(**changes))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        composite()[:-1],
        composite()[:20],
        gzip.compress(composite())[:-20],
        b"P6 3 2 255\n" + bytes(18),
    ],
    ids=["empty", "pixel-short", "header", "gzip", "colour"],
)
def test_a_truncated_or_foreign_file_is_a_frame_error(content):
    with pytest.raises(FrameError, match="fetch the file again"):
        read(content)


@pytest.mark.parametrize("name", ["201609281600_FIN.pgm", "201609281600_fmi.radar_FIN.pgm.gz"])
def test_the_time_is_in_the_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (file,) = get_source("fmi-pgm").find(str(tmp_path))
    assert file.valid_time == pd.Timestamp("2016-09-28T16:00")
