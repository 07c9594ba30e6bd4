"""Real MRMS and OPERA files as independent readers read them: eccodes and GDAL.

The other GRIB and HDF5 readers bring their own copies of the C libraries, which do not always bear
each other in one process: they read in a process of their own and leave arrays behind.
"""

import gzip
import hashlib
import json
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source, grib2
from pipelines.units import MARSHALL_PALMER, pack, rain_rate_from_reflectivity

ECCODES = """
import json, sys, pyproj, eccodes, numpy as np
path, out = sys.argv[1:]
with open(path, "rb") as file:
    message = eccodes.codes_grib_new_from_file(file)
names = ["Ni", "Nj", "latitudeOfFirstGridPointInDegrees", "longitudeOfFirstGridPointInDegrees",
         "latitudeOfLastGridPointInDegrees", "longitudeOfLastGridPointInDegrees",
         "iDirectionIncrementInDegrees", "jDirectionIncrementInDegrees", "earthMajorAxis",
         "earthMinorAxis", "discipline", "parameterCategory", "parameterNumber", "validityDate",
         "validityTime"]
print(json.dumps({name: eccodes.codes_get(message, name) for name in names}))
np.save(out, eccodes.codes_get_values(message))
"""
GDAL = """
import json, sys, rasterio, numpy as np
path, out = sys.argv[1:]
with rasterio.open(path) as file:
    np.save(out, file.read(1))
    print(json.dumps({"transform": file.transform[:6], "crs": file.crs.to_wkt()}))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Run a reading script in a process of its own: what it printed, and its array."""

    def read(script, path, library):
        pytest.importorskip(library)
        out = tmp_path_factory.mktemp("elsewhere") / "values.npy"
        command = [sys.executable, "-c", script, str(path), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), np.load(out)

    return read


def files(radar_data, folder):
    return sorted(path for path in (radar_data / folder).iterdir() if path.is_file())


@pytest.fixture(scope="module")
def mrms(radar_data):
    """A real MRMS file, and it as a frame."""
    path = files(radar_data, "mrms")[3]
    return path, get_source("mrms").read(path.read_bytes())


def test_mrms_values_grid_and_time_are_those_of_eccodes(mrms, elsewhere):
    path, frame = mrms
    keys, values = elsewhere(ECCODES, path, "eccodes")
    values = values.reshape(keys["Nj"], keys["Ni"])
    expected = np.where(values < 0, np.nan, values).astype(np.float32)
    np.testing.assert_array_equal(frame.values, expected)
    np.testing.assert_array_equal(frame["observed"], values >= 0)
    assert {-3.0, 0.0} <= set(np.unique(values))
    assert (frame.values > 10).sum() > 1000

    grid = Grid.of(frame)
    assert grid.x[0] == pytest.approx(keys["longitudeOfFirstGridPointInDegrees"] - 360, abs=1e-9)
    assert grid.y[0] == pytest.approx(keys["latitudeOfFirstGridPointInDegrees"], abs=1e-9)
    # The file's last point is itself off by 2e-6 degrees: 20.005001 N, 299.994998 E.
    assert grid.x[-1] == pytest.approx(keys["longitudeOfLastGridPointInDegrees"] - 360, abs=3e-6)
    assert grid.y[-1] == pytest.approx(keys["latitudeOfLastGridPointInDegrees"], abs=3e-6)
    steps = keys["iDirectionIncrementInDegrees"], keys["jDirectionIncrementInDegrees"]
    np.testing.assert_allclose(np.diff(grid.x), steps[0], atol=1e-9)
    np.testing.assert_allclose(-np.diff(grid.y), steps[1], atol=1e-9)
    ellipsoid = grid.crs.ellipsoid
    assert ellipsoid.semi_major_metre == keys["earthMajorAxis"]
    assert ellipsoid.semi_minor_metre == keys["earthMinorAxis"]
    time = pd.to_datetime(f"{keys['validityDate']}{keys['validityTime']:04d}", format="%Y%m%d%H%M")
    assert pd.Timestamp(frame["time"].item()) == time


def test_mrms_grid_and_rain_are_those_of_gdal(mrms, elsewhere):
    path, frame = mrms
    about, values = elsewhere(GDAL, path, "rasterio")
    np.testing.assert_allclose(frame.values[frame["observed"]], values[values >= 0], atol=1e-5)
    west, north = Grid.of(frame).corners_lonlat()["UL"]
    dx, _, gdal_west, _, dy, gdal_north = about["transform"]
    assert (dx, dy) == (pytest.approx(0.01, abs=1e-8), pytest.approx(-0.01, abs=1e-8))
    assert (west, north) == (
        pytest.approx(gdal_west, abs=1e-5),
        pytest.approx(gdal_north, abs=1e-5),
    )


def test_mrms_by_eccodes_and_gzipped_is_the_same_frame(mrms, monkeypatch):
    path, frame = mrms
    pytest.importorskip("gribberish")
    pytest.importorskip("eccodes")
    monkeypatch.setattr(grib2, "LIBRARIES", ("eccodes",))
    again = get_source("mrms").read(gzip.compress(path.read_bytes(), 1))
    assert again.identical(frame)


def test_a_broken_picture_inside_an_mrms_file_is_a_frame_error(mrms, capfd):
    content = bytearray(mrms[0].read_bytes())
    for at in range(5000, 9000):
        content[at] ^= 0x5A
    with pytest.raises(FrameError, match="unreadable GRIB2 file"):
        get_source("mrms").read(bytes(content))
    capfd.readouterr()  # the library's own words


def test_every_mrms_file_has_the_time_of_its_name_and_the_same_grid(radar_data, mrms):
    source = get_source("mrms")
    found = source.find(str(radar_data / "mrms"))
    assert [f.valid_time.minute for f in found] == list(range(0, 16, 2))
    for file in found:
        with open(file.url.removeprefix("file://"), "rb") as opened:
            (message,) = grib2.messages(opened.read())
        assert message.reference_time == file.valid_time
        assert message.grid().matches(Grid.of(mrms[1]))


@pytest.mark.parametrize(
    ("folder", "quantity"), [("opera-nimbus", "RATE"), ("opera-cirrus", "DBZH")]
)
def test_opera_values_are_those_of_gdal(radar_data, elsewhere, folder, quantity):
    path = files(radar_data, folder)[1]
    about, values = elsewhere(GDAL, f'HDF5:"{path}"://dataset1/data1/data', "rasterio")
    frame = get_source("odim").read(path.read_bytes())
    nodata, undetect = values == -9999000, values == -8888000
    expected = (
        values if quantity == "RATE" else rain_rate_from_reflectivity(values, MARSHALL_PALMER)
    )
    expected = np.where(nodata, np.nan, np.where(undetect, 0, expected))
    np.testing.assert_array_equal(frame.values, expected.astype(np.float32))
    assert frame.attrs["odim_quantity"] == quantity

    grid = Grid.of(frame)
    dx, _, west, _, dy, north = about["transform"]
    assert grid.pixel == (pytest.approx(dx, abs=0.01), pytest.approx(-dy, abs=0.01))
    off_m = 3.0 if folder == "opera-nimbus" else 1e-3  # GDAL takes the file's corner as it is
    assert grid.x[0] - grid.pixel[0] / 2 == pytest.approx(west, abs=off_m)
    assert grid.y[0] + grid.pixel[1] / 2 == pytest.approx(north, abs=off_m)


@pytest.mark.parametrize(("folder", "within_m"), [("opera-cirrus", 1e-3), ("opera-nimbus", 3.0)])
def test_all_four_corners_of_opera_files_follow_from_one(radar_data, folder, within_m):
    """CIRRUS' are exact. NIMBUS' own are 2.7 m off: its pixels lie on CIRRUS' all the same."""
    path = files(radar_data, folder)[0]
    grid = Grid.of(get_source("odim").read(path.read_bytes()))
    with h5py.File(path) as file:
        where = dict(file["where"].attrs)
    for corner, (lon, lat) in grid.corners_lonlat().items():
        file_lon, file_lat = float(where[f"{corner}_lon"]), float(where[f"{corner}_lat"])
        _, _, distance_m = grid.crs.get_geod().inv(lon, lat, file_lon, file_lat)
        assert distance_m < within_m, corner
    dx, dy = grid.pixel
    # The false origin puts the upper left corner at (0, 0).
    assert grid.x[0] - dx / 2 == pytest.approx(0, abs=1e-6)
    assert grid.y[0] + dy / 2 == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "folder"), [("mrms", "mrms"), ("odim", "opera-nimbus"), ("odim", "opera-cirrus")]
)
def test_the_same_file_gives_the_same_bytes_twice(radar_data, source, folder):
    content = files(radar_data, folder)[-1].read_bytes()
    digests = {
        hashlib.sha256(pack(get_source(source).read(content).values)[0].tobytes()).hexdigest()
        for _ in range(2)
    }
    assert len(digests) == 1
