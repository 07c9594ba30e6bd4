"""Sources against independent readers, on real files where there are some."""

import numpy as np
import pandas as pd
import pyproj
import pytest
from PIL import Image

from pipelines.grid import Grid
from pipelines.sources import get_source
from pipelines.units import FINLAND_RAIN, rain_rate_from_reflectivity


def metres_between(one, other):
    return pyproj.Geod(ellps="WGS84").inv(*one, *other)[2]


@pytest.mark.parametrize("time", ["201609281445", "201609281600", "201609281800"])
def test_an_fmi_pgm_reads_as_pysteps_reads_it(radar_data, time):
    from pysteps.io.importers import import_fmi_pgm

    (path,) = (radar_data / "fmi-pgm").glob(f"{time}_*.pgm.gz")
    frame = get_source("fmi-pgm").read(path.read_bytes())
    reflectivity_dbz, _, metadata = import_fmi_pgm(str(path), gzipped=True)
    assert pd.Timestamp(frame["time"].item()) == pd.to_datetime(time)
    observed = np.isfinite(reflectivity_dbz)
    np.testing.assert_array_equal(frame["observed"], observed)
    wet = reflectivity_dbz > -32  # undetect decodes to −32 dBZ
    assert wet.sum() > 10_000
    expected = rain_rate_from_reflectivity(reflectivity_dbz[wet], FINLAND_RAIN)
    np.testing.assert_allclose(frame.values[wet], expected, rtol=1e-6)
    assert (frame.values[observed & ~wet] == 0).all()
    grid = Grid.of(frame)
    dx, dy = grid.pixel
    edges = (grid.x[0] - dx / 2, grid.x[-1] + dx / 2, grid.y[-1] - dy / 2, grid.y[0] + dy / 2)
    expected_edges = [metadata[name] for name in ("x1", "x2", "y1", "y2")]
    np.testing.assert_allclose(edges, expected_edges, atol=1.0)
    corners = grid.corners_lonlat()  # the header's own: bottomleft and topright
    assert metres_between(corners["LL"], (18.6, 57.93)) < 1
    assert metres_between(corners["UR"], (34.903, 69.005)) < 1


def test_forty_fmi_pgms_are_found_five_minutes_apart_and_have_one_grid(radar_data):
    source = get_source("fmi-pgm")
    files = source.find(str(radar_data / "fmi-pgm"))
    expected = pd.date_range("2016-09-28T14:45", periods=40, freq="5min")
    assert [file.valid_time for file in files] == list(expected)
    frames = [
        source.read((radar_data / "fmi-pgm" / file.name).read_bytes()) for file in files[::13]
    ]
    assert all(Grid.of(frames[0]).matches(Grid.of(frame)) for frame in frames)


def test_an_fmi_geotiff_reads_as_another_tiff_reader_reads_it(radar_data):
    rasterio = pytest.importorskip("rasterio")
    path = radar_data / "fmi-geotiff/201609281605_FINUTM.tif"
    frame = get_source("fmi-geotiff").read(path.read_bytes())
    with Image.open(path) as picture:  # libtiff, not GDAL
        stored = np.asarray(picture)
        dx, dy, _ = picture.tag_v2[33550]
        _, _, _, west, north, _ = picture.tag_v2[33922]
    assert frame.shape == (7316, 4963)
    np.testing.assert_array_equal(frame["observed"], stored != 255)
    for byte, rows in {110: 3, 144: 3, 0: 3}.items():
        expected = 0 if byte == 0 else rain_rate_from_reflectivity(byte / 2 - 32, FINLAND_RAIN)
        assert (stored == byte).sum() > rows
        np.testing.assert_allclose(frame.values[stored == byte], expected, rtol=1e-6)
    grid = Grid.of(frame)
    assert grid.x[0] == pytest.approx(west + dx / 2, abs=1e-3)
    assert grid.y[0] == pytest.approx(north - dy / 2, abs=1e-3)
    with rasterio.open(path) as file:
        right, bottom = file.bounds.right, file.bounds.bottom
    assert grid.x[-1] + dx / 2 == pytest.approx(right, abs=1e-3)
    assert grid.y[-1] - dy / 2 == pytest.approx(bottom, abs=1e-3)


def test_fmis_two_formats_show_the_same_rain(radar_data):
    """PGM (1 km) and GeoTIFF (250 m) of the same moment agree where both see it."""
    pytest.importorskip("rasterio")
    (path,) = (radar_data / "fmi-pgm").glob("201609281605_*.pgm.gz")
    pgm = get_source("fmi-pgm").read(path.read_bytes())
    content = (radar_data / "fmi-geotiff/201609281605_FINUTM.tif").read_bytes()
    tiff = get_source("fmi-geotiff").read(content)
    x, y = np.meshgrid(pgm["x"][::5], pgm["y"][::5])
    convert = pyproj.Transformer.from_crs(Grid.of(pgm).crs, Grid.of(tiff).crs, always_xy=True)
    x, y = convert.transform(x, y)
    grid = Grid.of(tiff)
    columns = np.rint((x - grid.x[0]) / grid.pixel[0]).astype(int).clip(0, grid.shape[1] - 1)
    rows = np.rint((grid.y[0] - y) / grid.pixel[1]).astype(int).clip(0, grid.shape[0] - 1)
    one, other = pgm.values[::5, ::5], tiff.values[rows, columns]
    both = np.isfinite(one) & np.isfinite(other)
    assert np.corrcoef(one[both] > 0.1, other[both] > 0.1)[0, 1] > 0.8


def test_a_meteoswiss_gif_reads_as_pysteps_reads_it(tmp_path):
    from pysteps.io.importers import import_mch_gif

    index = np.tile(np.arange(256, dtype=np.uint8), (640, 3))[:, :710]
    path = tmp_path / "AQC161361200_00005.801.gif"
    picture = Image.fromarray(index).convert("P")
    picture.putdata(index.ravel().tolist())
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, 0)])
    picture.save(path, optimize=False)
    frame = get_source("meteoswiss").read(path.read_bytes())
    accumulation_mm, _, metadata = import_mch_gif(str(path), "AQC", "mm", 5.0)
    measured = (index < 251) | (index == 255)  # pysteps takes 251–254, no measurement, for dry
    np.testing.assert_allclose(frame.values[measured], accumulation_mm[measured] * 12, rtol=1e-6)
    grid = Grid.of(frame)
    assert (grid.x[0] - 500, grid.x[-1] + 500) == (metadata["x1"], metadata["x2"])
    assert (grid.y[-1] - 500, grid.y[0] + 500) == (metadata["y1"], metadata["y2"])
    own = pyproj.Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    theirs = pyproj.Transformer.from_crs(metadata["projection"], "EPSG:4326", always_xy=True)
    for corner in ((255e3, -160e3), (965e3, 480e3)):
        assert metres_between(own.transform(*corner), theirs.transform(*corner)) < 1


def test_a_rainfields_file_reads_as_pysteps_reads_it(tmp_path):
    import netCDF4
    from pysteps.io.importers import import_bom_rf3

    path = tmp_path / "2_20180616_100000.prcp-c10.nc"
    rng = np.random.default_rng(7)
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("x", 512)
        file.createDimension("y", 512)
        proj = file.createVariable("proj", "i1")
        proj.grid_mapping_name = "albers_conical_equal_area"
        proj.standard_parallel = np.array([-18.0, -36.0])
        proj.longitude_of_central_meridian = 144.752
        proj.latitude_of_projection_origin = -37.852
        for name, sign in (("x", 1), ("y", -1)):
            coordinate = file.createVariable(name, "f4", name)
            coordinate.units = "km"
            coordinate[:] = sign * (np.arange(512) * 0.5 - 127.75)
        for name, seconds in (("start_time", 1529142600), ("valid_time", 1529143200)):
            time = file.createVariable(name, "i4")
            time.units = "seconds since 1970-01-01 00:00:00 UTC"
            time[...] = seconds
        rain = file.createVariable("precipitation", "i2", ("y", "x"), fill_value=-1)
        rain.setncatts({"scale_factor": 0.05, "add_offset": 0.0, "units": "kg m-2"})
        rain.grid_mapping = "proj"
        rain.set_auto_maskandscale(False)
        rain[:] = rng.integers(-1, 200, (512, 512))
    frame = get_source("bom").read(path.read_bytes())
    accumulation_mm, _, metadata = import_bom_rf3(str(path))
    np.testing.assert_allclose(
        frame.values, np.ma.filled(accumulation_mm, np.nan) * 60 / metadata["accutime"], rtol=1e-6
    )
    grid = Grid.of(frame)
    # pysteps takes the outer pixels' centres for the domain's edges.
    assert (grid.x[0], grid.x[-1]) == (metadata["x1"], metadata["x2"])
    assert (grid.y[-1], grid.y[0]) == (metadata["y1"], metadata["y2"])


def test_a_radolan_composite_reads_as_pysteps_reads_it(tmp_path):
    pytest.importorskip("wradlib")
    from pysteps.io.importers import import_dwd_radolan

    stored = np.random.default_rng(7).integers(0, 4096, (900, 900)).astype("<u2")
    stored[::3, ::2] = 0x29C4  # nodata
    head = "RW010050100000624BY1620134VS 3SW   2.13.1PR E-01INT  60GP 900x 900MS 62<"
    path = tmp_path / "raa01-rw_10000-2406010050-dwd---bin"
    path.write_bytes(head.encode().ljust(133, b" ") + b"\x03" + stored.tobytes())
    frame = get_source("radolan").read(path.read_bytes())
    rain_rate_mm_h, _, _ = import_dwd_radolan(str(path), "RW")
    # pysteps takes 0.01 from every value, so that dry pixels are negative; south comes first.
    np.testing.assert_allclose(frame.values, rain_rate_mm_h[::-1] + 0.01, rtol=1e-6)
