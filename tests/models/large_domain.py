"""A forecast of 3500×7000 pixels by a tiny network in tiles, and what memory that takes.

python -m tests.models.large_domain [FOLDER of MRMS files]: prints a line of JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from models.isolation import peak_bytes
from models.prediction import NetworkForecaster
from models.registry import Model
from models.tiling import Tiled
from models.training import NetworkSettings, TrainSettings
from pipelines.grid import Grid
from pipelines.sources import SOURCES

SHAPE = 3500, 7000
TIMESTEP = pd.Timedelta("2min")
PAST, LEADS = 3, pd.timedelta_range(TIMESTEP, periods=5, freq=TIMESTEP)
TILE, OVERLAP = 512, 64


def made_up() -> xr.DataArray:
    """Rain in every tile."""
    grid = Grid.from_corner("EPSG:4326", -130.0, 55.0, (0.01, 0.01), SHAPE)
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    field = (8 * np.sin(y / 40) ** 2 * np.cos(x / 50) ** 2).astype(np.float32)
    times = pd.date_range("2024-06-01", periods=PAST, freq=TIMESTEP, name="time")
    coords = grid.coords(lonlat=False) | {"time": times}
    return xr.DataArray(np.stack([field] * PAST), dims=("time", "y", "x"), coords=coords)


def real(folder: Path) -> xr.DataArray:
    """The first MRMS frames of a folder."""
    files = sorted(folder.glob("*.grib2"))[:PAST]
    frames = [SOURCES["mrms"].read(file.read_bytes()) for file in files]
    return xr.concat(frames, "time")


def main() -> None:
    """Forecast, measure, print."""
    torch.set_num_threads(2)
    past = real(Path(sys.argv[1])) if sys.argv[1:] else made_up()
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(2,), patch_size=8))
    torch.manual_seed(0)
    network = settings.build_network().eval()
    forecaster = NetworkForecaster(Model("net", "1", network, settings, "", PAST, TIMESTEP, {}))
    Tiled(forecaster, 64, 8).predict(past[:, :100, :100], LEADS)  # all there is to load
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_bytes()
    forecast = Tiled(forecaster, TILE, OVERLAP).predict(past, LEADS)
    took = peak_bytes() - before
    print(
        json.dumps(
            {
                "shape": forecast.shape,
                "took": took,
                "forecast": forecast.nbytes,
                "known": float(forecast.notnull().mean()),
                "observed": float(past.notnull().any("time").mean()),
                "wet": float((forecast > 0).mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
