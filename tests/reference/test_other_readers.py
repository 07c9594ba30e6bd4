"""Real files and our stores as other libraries read them: pysteps, rioxarray."""

import contextlib
import io

import numpy as np
import pytest
import xarray as xr

from pipelines.grid import Grid
from pipelines.sources import get_source


def pysteps_importers():
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.io import importers
    return importers


def test_knmi_values_are_those_of_pysteps(radar_data):
    path = radar_data / "knmi/RAD_NL25_RAP_5min_201008260300.h5"
    accumulation, *_ = pysteps_importers().import_knmi_hdf5(str(path), qty="ACRR", accutime=5.0)
    frame = get_source("knmi").read(path.read_bytes())
    np.testing.assert_allclose(frame, accumulation * 12, rtol=1e-6)
    assert np.nanmax(accumulation) > 0


def test_nimbus_values_are_those_of_pysteps(radar_data):
    path = sorted((radar_data / "opera-nimbus").glob("T_PAAH22*.hdf"))[1]
    expected, _, metadata = pysteps_importers().import_odim_hdf5(str(path), qty="RATE")
    frame = get_source("odim").read(path.read_bytes())
    rain = frame.values > 0
    assert rain.any()
    np.testing.assert_allclose(frame.values[rain], expected[rain], rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(frame.values), np.isnan(expected))
    grid = Grid.of(frame)
    dx, dy = grid.pixel
    assert grid.x[0] - dx / 2 == pytest.approx(metadata["x1"], abs=5)
    assert grid.y[0] + dy / 2 == pytest.approx(metadata["y2"], abs=5)


def test_rioxarray_finds_the_archives_projection_and_corner(archive):
    pytest.importorskip("rioxarray")
    rain_rate = xr.open_zarr(archive.url)["rain_rate"]
    assert rain_rate.rio.crs.to_dict()["proj"] == "laea"
    west, _, _, north = rain_rate.rio.bounds()
    dx, dy = archive.grid.pixel
    assert west == pytest.approx(archive.grid.x[0] - dx / 2)
    assert north == pytest.approx(archive.grid.y[0] + dy / 2)
    assert rain_rate.rio.resolution() == (dx, -dy)
