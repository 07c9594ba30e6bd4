"""Every real file at hand against GDAL's raw numbers, turned into mm/h here by hand.

GDAL is the second reader: its own HDF5, GRIB, PNM and TIFF drivers know nothing of ours.
"""

import gzip
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources import get_source
from pipelines.units import pack

pytestmark = pytest.mark.slow

rasterio = pytest.importorskip("rasterio")


def raw(url: str) -> np.ndarray:
    with rasterio.open(url) as file:
        return file.read(1)


def marshall_palmer(reflectivity_dbz):
    return (10 ** (reflectivity_dbz / 10) / 200) ** (1 / 1.6)


def finland(reflectivity_dbz):
    return (10 ** (reflectivity_dbz / 10) / 223) ** (1 / 1.53)


def knmi(path: Path, tmp_path: Path) -> np.ndarray:
    counts = raw(f"HDF5:{path}://image1/image_data").astype(float)
    return np.where(counts == 65535, np.nan, counts * 0.01 * 12)


def opera(path: Path, tmp_path: Path) -> np.ndarray:
    values = raw(f"HDF5:{path}://dataset1/data1/data").astype(float)
    if "opera-cirrus" in str(path):
        rain_rate = marshall_palmer(np.where(values < -8e6, np.nan, values))
    else:
        rain_rate = np.where(values < -8e6, np.nan, values)  # mm/h, or mm over one hour
    rain_rate[values == -8888000] = 0
    return rain_rate


def mrms(path: Path, tmp_path: Path) -> np.ndarray:
    values = raw(str(path)).astype(np.float32)
    values[values < 0] = np.nan
    return values


def fmi_pgm(path: Path, tmp_path: Path) -> np.ndarray:
    plain = tmp_path / "plain.pgm"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    return from_counts(raw(str(plain)))


def fmi_geotiff(path: Path, tmp_path: Path) -> np.ndarray:
    return from_counts(raw(str(path)))


def from_counts(counts: np.ndarray) -> np.ndarray:
    """FMI's bytes: dBZ = (v − 64) / 2, 0 undetected, 255 not observed."""
    table = finland((np.arange(256) - 64) / 2)
    table[0], table[255] = 0, np.nan
    return table[counts]


@pytest.mark.parametrize(
    ("source", "folder", "pattern", "by_hand"),
    [
        ("knmi", "knmi", "*.h5", knmi),
        ("odim", "opera-nimbus", "*.hdf", opera),
        ("odim", "opera-cirrus", "*.h*", opera),
        ("mrms", "mrms", "*.grib2*", mrms),
        ("fmi-pgm", "fmi-pgm", "*.pgm.gz", fmi_pgm),
        ("fmi-geotiff", "fmi-geotiff", "*.tif", fmi_geotiff),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_every_file_holds_what_gdal_says(radar_data, tmp_path, source, folder, pattern, by_hand):
    paths = sorted((radar_data / folder).glob(pattern))
    assert len(paths) == len(list((radar_data / folder).iterdir()))
    for path in paths:
        content = path.read_bytes()
        frame = get_source(source).read(content)
        expected = by_hand(path, tmp_path)
        observed = np.isfinite(expected)
        assert np.array_equal(np.isfinite(frame.values), observed), path
        stored, clipped = pack(frame.values)
        ours, expected, stored = frame.values[observed], expected[observed], stored[observed]
        assert expected.max() > 0, path
        assert (np.abs(ours - expected) <= 1e-7 + 1e-6 * expected).all(), path
        within = np.minimum(expected, 655.34)
        assert np.abs(stored / 100 - within).max() <= 0.005 + 1e-6 * within.max(), path
        assert clipped == (expected > 655.345).sum(), path
