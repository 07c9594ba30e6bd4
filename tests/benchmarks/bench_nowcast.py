"""How long a forecast of a whole KNMI composite takes: the default network and pysteps, in turns.

    python -m tests.benchmarks.bench_nowcast FOLDER --init-times 20

FOLDER holds KNMI files (765×700 pixels, 5 min); without one, synthetic frames of that size. Every
way forecasts 90 min ahead from every init_time, one way after the other; the table has the median
and the 95th percentile of its seconds, and the median of its ratios to the first way, init_time by
init_time. The network is the one of `TrainSettings`' defaults with random weights, which takes as
long as a trained one; `isolated` is the same in a child process, what goes there and back included.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from models.baselines import build_baseline
from models.evaluation import spread
from models.forecaster import Forecaster
from models.isolation import Isolated
from models.prediction import get_forecaster
from models.registry import save_model
from models.tiling import Tiled
from models.training import NetworkSettings, TrainSettings
from pipelines.progress import bar
from pipelines.sources import SOURCES
from pipelines.sources.synthetic import SyntheticRadar
from pipelines.times import lead_times

from .paired import seconds, table
from .train_step import keep_memory

TIMESTEP, PAST = pd.Timedelta("5min"), 6
ROWS, COLUMNS = 765, 700
TILE, OVERLAP = 384, 128


def real(folder: Path, init_times: int) -> Iterator[xr.DataArray]:
    """Past frames of so many init_times, spread over a folder of KNMI files."""
    files = sorted(folder.glob("*.h5"))
    for newest in spread(pd.RangeIndex(PAST - 1, len(files)), init_times):
        content = (file.read_bytes() for file in files[newest - PAST + 1 : newest + 1])
        yield xr.concat([SOURCES["knmi"].read(one) for one in content], "time")


def synthetic(init_times: int) -> Iterator[xr.DataArray]:
    """The same without files."""
    radar = SyntheticRadar(size=ROWS, frames=PAST + init_times - 1, cells=60)
    frames = xr.DataArray(
        radar.rain_rate(),
        dims=("time", "y", "x"),
        coords=radar.grid.coords(lonlat=False) | {"time": radar.times},
    )
    for first in range(init_times):
        yield frames[first : first + PAST, :, :COLUMNS]


def networks(root: str) -> dict[str, str]:
    """The default network in a registry, computed both ways: its ids."""
    ids = {}
    for compute in ("exact", "bf16"):
        settings = TrainSettings(network=NetworkSettings(compute=compute))
        torch.manual_seed(0)
        weights = settings.build_network().state_dict()
        known = {"past_frames": PAST, "timestep": TIMESTEP, "archive": {}, "metrics": {}}
        ids[compute] = f"{compute}/{save_model(root, compute, weights, settings, **known)}"
    return ids


def main() -> None:
    """Forecast in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--init-times", type=int, default=20)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ahead", default="90min")
    options = parser.parse_args()
    keep_memory("tests.benchmarks.bench_nowcast")
    torch.set_num_threads(options.threads)
    ahead = lead_times(TIMESTEP, pd.Timedelta(options.ahead))
    pasts = list(
        real(options.folder, options.init_times)
        if options.folder
        else synthetic(options.init_times)
    )
    with tempfile.TemporaryDirectory() as root:
        ids = networks(root)
        recipe = partial(get_forecaster, root, ids["exact"])
        ways: dict[str, Forecaster] = {"network, exact": recipe()}
        ways["network, bf16"] = get_forecaster(root, ids["bf16"])
        ways[f"network, exact, tiles of {TILE}"] = Tiled(recipe(), TILE, OVERLAP)
        ways["network, exact, isolated"] = isolated = Isolated(recipe, threads=options.threads)
        ways["advection (pysteps)"] = build_baseline("advection")
        steps = f"STEPS, {options.members} members (pysteps)"
        ways[steps] = build_baseline("steps", members=options.members)
        took: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():  # what is imported and loaded at the first time
            way.predict(pasts[0][:, 300:428, 300:428], ahead[:2])
        load = [os.getloadavg()[0]]
        with bar(len(pasts) * len(ways), "nowcasts", "forecast", shown=True) as shown:
            for past in pasts:
                for name, way in ways.items():
                    took[name].append(seconds(partial(way.predict, past, ahead)))
                    shown.update()
                load.append(os.getloadavg()[0])
        peak = isolated.peak_bytes
        isolated.close()
    print(
        f"{len(pasts)} init_times of {'×'.join(map(str, pasts[0].shape[1:]))} pixels, "
        f"{'real' if options.folder else 'synthetic'}; {len(ahead)} lead times; "
        f"{options.threads} threads; load {min(load):.1f} to {max(load):.1f}; "
        f"the child process needed {peak / 1e6:.0f} MB at most"
    )
    first = next(iter(took.values()))
    rows = []
    for name, times in took.items():
        ratios = [time / of_first for time, of_first in zip(times, first, strict=True)]
        p50, p95 = np.quantile(times, [0.5, 0.95])
        rows.append((name, f"{p50:.1f}", f"{p95:.1f}", f"{statistics.median(ratios):.2f}"))
    print(table(("forecast", "p50 s", "p95 s", "× the first"), rows))


if __name__ == "__main__":
    main()
