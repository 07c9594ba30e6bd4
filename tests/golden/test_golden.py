"""The golden stores keep opening, with stock xarray and with ours, and hold what they held.

They were written by `make.py`, each format by the code of its day, and are read as they lie:
nothing here writes them.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.archive import Archive, Status
from pipelines.forecasts import latest_init_time, open_forecasts
from pipelines.grid import Grid
from pipelines.manifest import read_manifest
from pipelines.sources.synthetic import PROJECTION
from tests.golden.make import FORMAT, make

FOLDERS = [path for path in sorted(Path(__file__).parent.iterdir()) if path.name.isdigit()]
ARCHIVE = "archive/golden.zarr"
FORECAST = "forecasts/golden/20240601T0505Z.zarr"
TIMES = pd.date_range("2024-06-01T05:00", periods=4, freq="5min")


def field(slot):
    values = (100.0 * slot + np.arange(64)) / 100
    values[0], values[-1] = np.nan, 655.34
    return values.reshape(8, 8)


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"format {folder.name}")
def folder(request):
    """The stores of one format. The files are the same after every test here."""
    before = contents(request.param)
    yield request.param
    assert contents(request.param) == before


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for name in ("archive", "forecasts")
        for path in (folder / name).rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_the_golden_archive_opens_with_stock_xarray(folder):
    archive = xr.open_zarr(folder / ARCHIVE).load()
    assert list(archive["time"].values) == list(TIMES)
    assert archive["status"].values.tolist() == [1, 2, 0, 3]
    for slot in (0, 1):
        np.testing.assert_allclose(archive["rain_rate"][slot], field(slot), rtol=0, atol=1e-9)
    assert archive["rain_rate"][2:].isnull().all()
    assert archive["rain_rate"].attrs["units"] == "mm h-1"
    np.testing.assert_array_equal(archive["x"], np.arange(-7000.0, 8000.0, 2000.0))
    np.testing.assert_array_equal(archive["y"], np.arange(7000.0, -8000.0, -2000.0))
    assert float(archive["lat"].mean()) == pytest.approx(52.0, abs=0.01)
    assert archive.attrs["license"] == "CC0-1.0"


def test_the_golden_archive_opens_with_ours(folder):
    archive = Archive(str(folder / ARCHIVE))
    assert list(archive.times) == list(TIMES)
    assert archive.status().tolist() == [Status.OK, Status.LATE, Status.MISSING, Status.BAD]
    frames = archive.read_frames(archive.usable_times()).values
    np.testing.assert_array_equal(frames, np.stack([field(0), field(1)]).astype(np.float32))
    grid = Grid.from_corner(PROJECTION, -8000.0, 8000.0, (2000.0, 2000.0), (8, 8))
    assert archive.grid.matches(grid)


def test_the_golden_manifest_reads(folder):
    rows = read_manifest(str(folder / ARCHIVE))
    assert [row.outcome for row in rows] == ["ok", "late", "bad"]
    assert [row.size for row in rows] == [100, 101, 103]
    assert rows[2].error == "unreadable HDF5 file"


def test_the_golden_forecast_opens_with_stock_xarray(folder):
    forecast = xr.open_zarr(folder / FORECAST).load()
    assert forecast["rain_rate"].dims == ("lead_time", "y", "x")
    for lead_time in pd.to_timedelta([5, 10, 15], unit="min"):
        frame = forecast["rain_rate"].sel(lead_time=lead_time)
        np.testing.assert_allclose(frame, field(1), rtol=0, atol=1e-9)
    assert forecast["init_time"].values == TIMES[1]
    valid_times = pd.date_range("2024-06-01T05:10", periods=3, freq="5min")
    assert list(forecast["valid_time"].values) == list(valid_times)
    assert forecast.attrs["model"] == "persistence"
    assert forecast.attrs["quality"] == "good"
    assert forecast.attrs["input_times"] == ["2024-06-01T05:00:00Z", "2024-06-01T05:05:00Z"]
    assert forecast.attrs["publish_time"] == "2024-06-01T05:10:00Z"


def test_the_golden_forecast_opens_with_ours(folder):
    forecasts = open_forecasts(str(folder), "golden")
    assert dict(forecasts.sizes) == {"init_time": 1, "lead_time": 3, "y": 8, "x": 8}
    assert latest_init_time(str(folder), "golden") == TIMES[1]


def test_todays_code_writes_the_newest_format(tmp_path):
    newest = FOLDERS[-1]
    assert newest.name == FORMAT
    make(str(tmp_path))
    for store in (ARCHIVE, FORECAST):
        new = xr.open_zarr(tmp_path / store).load()
        xr.testing.assert_identical(new, xr.open_zarr(newest / store).load())
    assert contents(tmp_path).keys() == contents(newest).keys()
    assert read_manifest(str(tmp_path / ARCHIVE)) == read_manifest(str(newest / ARCHIVE))
    assert json.loads((newest / "archive/golden.zarr/zarr.json").read_text()) == json.loads(
        (tmp_path / "archive/golden.zarr/zarr.json").read_text()
    )
