"""Crashes: a writer is killed fifty times, at any moment, while a reader looks on.

Killed are ingest (new frames, corrections, broken files, an axis that grows both ways) and
compaction. The reader is stock xarray. What must hold: it never sees a value that is neither
missing nor right, and what is resumed ends as if nothing had happened.
"""

import multiprocessing
import random
import time
import traceback
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines import storage
from pipelines.archive import USABLE, open_archive
from pipelines.compact import compact, training_url
from pipelines.ingest import IngestSettings, ingest
from pipelines.manifest import read_manifest

ROUNDS = 50
TODAY = pd.date_range("2024-06-02T00:00", periods=12, freq="5min")
YESTERDAY = pd.date_range("2024-06-01T12:00", periods=4, freq="5min")
TOMORROW = pd.date_range("2024-06-03T01:00", periods=4, freq="5min")

pytestmark = pytest.mark.slow
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pipelines.compact", "pipelines.sources.odim", "xarray"])


def rain_rate_of(time, correction=0):
    """A rain rate by which a frame is known: no two are the same."""
    return float((time - YESTERDAY[0]) / pd.Timedelta("5min") + 1 + 0.5 * correction)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, send, grid):
    """Three folders: today's files with corrections and broken ones; yesterday's; tomorrow's."""
    folder = tmp_path_factory.mktemp("radar")
    for name, times in {"a": TODAY, "b": YESTERDAY, "c": TOMORROW}.items():
        for number, valid_time in enumerate(times):
            field = np.full(grid.shape, rain_rate_of(valid_time))
            send(folder / name, valid_time, field)
            if number % 5 == 1:
                field = np.full(grid.shape, rain_rate_of(valid_time, correction=1))
                send(folder / name, valid_time, field, name="_corrected", after="20min")
            if number % 7 == 2:
                send(folder / name, valid_time, field, name="_broken", after="30min", keep=0.5)
    return [str(folder / name) for name in "abc"]


def write(url, folders):
    """What is killed: three ingests, of which two stretch the axis, each with a compaction."""
    for folder in folders:
        ingest(url, IngestSettings(location=folder, timestep="5min", workers=1))
        compact(url, workers=1)


def look(url, stop, seen):
    """Read the archive over and over; report what is neither missing nor right, and any error."""
    looks, wrong = 0, []
    try:
        while not stop.is_set():
            for store in (url, training_url(url)):
                if storage.exists(f"{store}/zarr.json"):
                    wrong += wrong_values(store)
                    looks += 1
    except BaseException:
        wrong.append(traceback.format_exc())
    seen.send((looks, wrong))


def wrong_values(store):
    """What a stock reader sees in a store that is neither missing nor right."""
    dataset = xr.open_zarr(storage.zarr_store(store), chunks=None)
    status = dataset["status"].values  # before the pixels: what it names is there
    frames = dataset["rain_rate"].values
    missing = np.isnan(frames)
    least, most = (
        extreme(np.where(missing, -1, frames), axis=(1, 2)) for extreme in (np.min, np.max)
    )
    number = (dataset["time"].values - YESTERDAY[0].to_datetime64()) / np.timedelta64(5, "m") + 1
    right = (least == most) & np.isin(least - number, [0, 0.5])
    usable = np.isin(status, [int(code) for code in USABLE])
    bad = ~(right | (missing.all(axis=(1, 2)) & ~usable))
    return [f"{store} at {time}" for time in dataset["time"].values[bad]]


def contents(url):
    """All that an archive holds, but for the moment at which each manifest row was made."""
    stores = [open_archive(store).load() for store in (url, training_url(url))]
    rows = [
        [asdict(row) | {"ingested": None} for row in read_manifest(store)]
        for store in (url, training_url(url))
    ]
    return stores, rows


def test_fifty_kills_change_nothing_and_no_reader_sees_a_wrong_value(folders, tmp_path):
    undisturbed = f"file://{tmp_path}/undisturbed.zarr"
    warm_up = processes.Process(target=time.sleep, args=(0,))
    warm_up.start()
    warm_up.join()
    began = time.perf_counter()
    writer = processes.Process(target=write, args=(undisturbed, folders))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    duration = time.perf_counter() - began
    stores, rows = contents(undisturbed)

    moments = random.Random(0)
    kills, lives, looks = 0, 0, 0
    while (kills < ROUNDS or looks <= ROUNDS) and lives < ROUNDS:
        url = f"file://{tmp_path}/{lives}.zarr"
        stop, (told, seen) = processes.Event(), processes.Pipe(duplex=False)
        reader = processes.Process(target=look, args=(url, stop, seen))
        reader.start()
        finished = False
        while not finished:
            writer = processes.Process(target=write, args=(url, folders))
            writer.start()
            if kills < ROUNDS:
                writer.join(moments.uniform(0, duration))
            else:
                writer.join()
            if writer.exitcode is None:
                writer.kill()
                kills += 1
            writer.join()
            assert writer.exitcode in (0, -9)
            finished = writer.exitcode == 0
        stop.set()
        assert told.poll(60), "the reader is stuck"
        looked, wrong = told.recv()
        reader.join()
        assert wrong == []
        looks += looked
        lives += 1

        resumed, resumed_rows = contents(url)
        for store, reference in zip(resumed, stores, strict=True):
            xr.testing.assert_equal(store, reference)
        assert resumed_rows == rows
    print(f"{kills} kills in {lives} lives, {looks} looks")
    assert looks > ROUNDS
