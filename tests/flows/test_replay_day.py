"""A day of the nowcast service, with all that goes wrong in one: nothing is lost, nothing leaks."""

import gc
import logging
import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import xarray as xr

from flows.replay import run_replay
from flows.settings import load_settings
from models.explanation import UNEXPLAINED
from models.registry import promote, save_model
from models.replay import Outage, ReplaySettings, Round
from models.training import NetworkSettings, TrainSettings
from pipelines import storage
from pipelines.forecasts import folder_url, published
from pipelines.sources.synthetic import SyntheticRadar

pytestmark = pytest.mark.slow

HOURS = 24
RADAR = SyntheticRadar(size=64, frames=12 * HOURS, cells=8)
BEGIN, END = RADAR.times[0], RADAR.times[-1]
LEAD_TIMES = 6
SETTLED_H = 4
"""By then all has been loaded and every cache is full."""
MOST_GROWTH_MB = 5.0


def process_bytes(process):
    """Memory of its own. Mapped files do not count: libraries come and go with who shares them."""
    return sum(mapped.anonymous for mapped in process.memory_maps())


@dataclass
class Watch:
    """Memory (MB) and open files of this process and its children, every simulated hour.

    Children that were there before, such as other tests' servers, do not count.
    """

    before: frozenset[psutil.Process] = field(
        default_factory=lambda: frozenset(psutil.Process().children(recursive=True))
    )
    samples: list[tuple[float, float, int, int]] = field(default_factory=list)
    rounds: int = 0

    def __call__(self, done: Round) -> None:
        self.rounds += 1
        if done.began < BEGIN + len(self.samples) * pd.Timedelta("1h"):
            return
        gc.collect()  # what is garbage is no leak
        parent = psutil.Process()
        children = set(parent.children(recursive=True)) - self.before
        self.samples.append(
            (
                process_bytes(parent) / 1e6,
                sum(map(process_bytes, children)) / 1e6,
                parent.num_fds(),
                sum(child.num_fds() for child in children),
            )
        )


def network(root):
    """An untrained network of 4 past frames, the champion ``net``."""
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(4,)))
    torch.manual_seed(0)
    weights = settings.build_network().state_dict()
    known = {"past_frames": 4, "timestep": RADAR.timestep, "archive": {}, "metrics": {}}
    promote(root, "net", save_model(root, "net", weights, settings, **known))


@pytest.fixture(scope="module")
def day(tmp_path_factory, send):
    """The report of the day, and what was sampled."""
    root, folder = (tmp_path_factory.mktemp(name) for name in ("root", "provider"))
    random = np.random.default_rng(0)
    for time, rain in zip(RADAR.times, RADAR.rain_rate(), strict=True):
        kind = random.random()
        if kind > 0.01:
            send(folder, time, rain, grid=RADAR.grid, keep=0.5 if kind < 0.03 else 1.0)
        if kind > 0.98:
            send(folder, time, rain * 1.1, grid=RADAR.grid, name="_corrected", after="25min")
    network(str(root))
    settings = load_settings(
        root=str(root),
        product="test",
        ingest={"source": "odim", "location": str(folder), "timestep": "5min", "workers": 1},
        nowcast={"model": "net", "lead_time": "30min", "serving": {"threads": 1}},
        verify={"workers": 1, "scales_km": [], "baselines": [], "thresholds_mm_h": [1.0]},
    )
    outages = (
        Outage(begin="2024-06-01T03:00", length="40min"),
        Outage(begin="2024-06-01T14:30", length="100min"),
    )
    how = ReplaySettings(late=0.1, late_by="7min", missing=0.02, outages=outages)
    watch = Watch()
    logging.disable(logging.WARNING)  # pytest keeps every record
    try:
        report = run_replay(settings, BEGIN, END, how, output=str(root / "replay"), tell=watch)
    finally:
        logging.disable(logging.NOTSET)
    print(report)
    table = pd.DataFrame(
        watch.samples, columns=["MB", "MB of children", "files", "files of children"]
    )
    print(table.round(1).to_string())
    return report, table


def complete(url):
    """A forecast with every lead time, in which every chunk can be read."""
    with xr.open_zarr(storage.zarr_store(url)) as forecast:
        rain_rate = forecast["rain_rate"].load()
        assert rain_rate.shape == (LEAD_TIMES, 64, 64)
        return bool(np.isfinite(rain_rate.values).any(axis=(1, 2)).all())


def test_no_forecast_is_missing_but_for_a_reason(day):
    report, _ = day
    assert UNEXPLAINED not in report.missing.values()
    reasons = Counter(report.missing.values())
    assert reasons["the frame never came"] == len(report.arrivals.lost)
    assert {
        "there is no file of that time",
        "the frame could not be read",
        "the frame came after 1h of newer ones",
    } < set(reasons)
    made = {one.init_time for one in report.published}
    assert made == set(report.init_times) - set(report.missing)
    assert all(one.trouble is None for one in report.rounds)


def test_every_forecast_is_complete_and_nothing_is_left_beside_them(day):
    report, _ = day
    stores = published(report.root, "test")
    assert len(stores) == len(report.published)
    assert all(complete(one.url) for one in stores)
    names = {one.url.rsplit("/", 1)[-1] for one in stores}
    there = set(os.listdir(storage.local_path(folder_url(report.root, "test"))))
    assert there == names | {"latest.json", "latest.lock"}


def test_the_network_made_all_but_those_it_had_too_few_frames_for(day):
    """None by advection for want of time, or because its process had died."""
    report, _ = day
    models = Counter(one.model.partition("/")[0] for one in report.published)
    assert models["net"] > 0.9 * len(report.published)
    reasons = [one.fallback_reason for one in report.published if one.fallback_reason]
    assert all(reason.startswith("TooFewFramesError") for reason in reasons)
    assert report.superseded > 20


def test_memory_and_open_files_do_not_grow(day):
    """From the fourth hour to the last eight. Every forecast kept would be 18 MB."""
    _, table = day
    assert len(table) == HOURS
    assert table["MB of children"].iloc[-1] > 100, "the network's process is there"
    settled = table[SETTLED_H:]
    growth = settled.tail(8).median() - settled.head(4).median()
    assert growth["MB"] < MOST_GROWTH_MB
    assert growth["MB of children"] < MOST_GROWTH_MB
    assert settled["files"].max() <= settled["files"].iloc[0] + 2
    assert settled["files of children"].max() <= settled["files of children"].iloc[0] + 2
