"""FMI's GeoTIFF composites: what the bytes mean is XML text in a tag."""

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source

rasterio = pytest.importorskip("rasterio")

# With gain 0.5 and offset −32 the bytes 64, 110 and 144 are 0, 23 and 40 dBZ.
STORED = np.array([[0, 255, 64], [110, 144, 0]], np.uint8)
METADATA = (
    "<GDALMetadata>"
    '<Item name="Observation time" format="YYYYMMDDhhmm">201609281605</Item>'
    '<Item name="Quantity" unit="dBZ">Corrected reflectivity</Item>'
    '<Item name="Gain">0.500000</Item><Item name="Offset">-32.000000</Item>'
    '<Item name="Nodata">255</Item><Item name="Undetect">0</Item>'
    "</GDALMetadata>"
)


def composite(stored=STORED, metadata=METADATA, **profile):
    from rasterio.io import MemoryFile

    profile = {
        "crs": "EPSG:3067",
        "transform": rasterio.Affine(250.0, 0, -196500.0, 0, -250.0, 8084500.0),
    } | profile
    rows, columns = stored.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", dtype=stored.dtype, count=1, width=columns, height=rows, **profile
        ) as file:
            file.write(stored, 1)
            file.update_tags(GDAL_METADATA=metadata)
        return bytes(memory.getbuffer())


def read(content):
    return get_source("fmi-geotiff").read(content)


def test_a_byte_becomes_rain_by_the_relation_for_finland():
    frame = read(composite())
    # R = (10^(dBZ/10)/223)^(1/1.53)
    expected = [[0, np.nan, 0.029185], [0.929883, 12.0099, 0]]
    np.testing.assert_allclose(frame.values, expected, rtol=1e-4)
    assert frame.attrs["z_r_relation"] == "Leinonen et al. 2012, Finland: a=223, b=1.53"
    assert pd.Timestamp(frame["time"].item()) == pd.Timestamp("2016-09-28T16:05")


def test_undetect_is_dry_and_nodata_is_missing():
    np.testing.assert_array_equal(read(composite())["observed"].values, STORED != 255)


def test_what_the_bytes_mean_is_the_files_own():
    metadata = METADATA.replace("0.500000", "1.0").replace("-32.000000", "-41.0")
    metadata = metadata.replace(">255<", ">144<").replace('"Undetect">0', '"Undetect">255')
    frame = read(composite(metadata=metadata))
    # 64 and 110 are 23 and 69 dBZ now; 144 is missing, 255 dry, and 0 is −41 dBZ.
    assert frame.values[0, 2] == pytest.approx(0.929883, rel=1e-5)
    assert np.isnan(frame.values[1, 1])
    assert frame.values[0, 1] == 0
    assert frame.values[0, 0] == pytest.approx(6.103e-5, rel=1e-3)


def test_the_grid_is_the_files_own():
    grid = Grid.of(read(composite()))
    assert grid.x.tolist() == [-196375.0, -196125.0, -195875.0]
    assert grid.y.tolist() == [8084375.0, 8084125.0]
    assert grid.crs.to_epsg() == 3067


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": METADATA.replace("dBZ", "m/s")},
        {"metadata": METADATA.replace("Gain", "Loss")},
        {"metadata": METADATA[:-8]},
        {"metadata": METADATA.replace("201609281605", "soon")},
        {"stored": STORED.astype(np.uint16)},
        {"transform": rasterio.Affine(250.0, 3.0, 0, 0, -250.0, 0)},
        {"crs": None},
    ],
    ids=["unit", "no-gain", "half-xml", "time", "type", "rotated", "no-crs"],
)
def test_a_file_that_cannot_be_understood_is_a_frame_error(changes):
    with pytest.raises(FrameError):
        read(composite(**changes))


@pytest.mark.parametrize("keep", [0, 8, 100, -1])
def test_a_truncated_file_is_a_frame_error(keep):
    content = composite(np.zeros((64, 64), np.uint8), compress="deflate")
    with pytest.raises(FrameError, match="fetch the file again"):
        read(content[:keep])


def test_the_time_is_in_the_name(tmp_path):
    (tmp_path / "201609281605_FINUTM.tif").write_bytes(b"x")
    (file,) = get_source("fmi-geotiff").find(str(tmp_path))
    assert file.valid_time == pd.Timestamp("2016-09-28T16:05")
