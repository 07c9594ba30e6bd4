"""`squall export`: from the words of the command to a file."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from cyclopts import App

from flows.export_command import export
from pipelines.errors import ExistsError, NotFoundError
from pipelines.forecasts import forecast_dataset
from pipelines.publishing import publish

pytest.importorskip("h5netcdf")


@pytest.fixture
def squall(tmp_path, monkeypatch, grid):
    """The command in an empty folder, with a forecast at 05:00 and one at 05:05."""
    monkeypatch.chdir(tmp_path)
    for minute in (0, 5):
        rain_rate = xr.DataArray(
            np.full((2, *grid.shape), minute + 0.5, "f4"),
            dims=("lead_time", "y", "x"),
            coords=grid.coords(lonlat=False)
            | {
                "lead_time": pd.timedelta_range("5min", periods=2, freq="5min"),
                "init_time": np.datetime64(f"2024-06-01T05:{minute:02}", "ns"),
            },
        )
        publish(str(tmp_path / "root"), "test", forecast_dataset(rain_rate, {"model": "x"}))
    app = App(name="squall")
    app.command(export)

    def run(*words):
        where = ["--root", str(tmp_path / "root"), "--product", "test"]
        app(["export", *words, *where], exit_on_error=False, result_action="return_value")

    return run


def test_the_newest_forecast_becomes_a_netcdf_file(squall, capsys):
    squall("newest.nc")
    with xr.open_dataset("newest.nc") as opened:
        assert float(opened["rain_rate"].max()) == 5.5
    assert "20240601T0505Z.zarr" in capsys.readouterr().out


def test_a_forecast_is_named_by_its_init_time_and_revision(squall, tmp_path):
    at_five = ("--init-time", "2024-06-01T05:00Z")
    squall("old.zarr", "--format", "mlwp", *at_five, "--revision", "1")
    assert float(xr.open_zarr(tmp_path / "old.zarr")["rain_rate"].max()) == 0.5
    with pytest.raises(NotFoundError):
        squall("none.nc", *at_five, "--revision", "2")


def test_one_variable_becomes_a_geotiff(squall):
    rasterio = pytest.importorskip("rasterio")
    squall("rain.tif", "--format", "cog", "--variable", "rain_rate")
    with rasterio.open("rain.tif") as file:
        assert file.read().max() == 5.5


def test_a_target_that_exists_is_an_error(squall, tmp_path):
    squall("newest.nc")
    before = (tmp_path / "newest.nc").read_bytes()
    with pytest.raises(ExistsError, match=r"newest\.nc"):
        squall("newest.nc")
    assert (tmp_path / "newest.nc").read_bytes() == before
