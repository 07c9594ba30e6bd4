"""Compaction is killed at any moment while readers look on, ours and stock xarray.

What must hold: every forecast is there exactly once, with its own values, for whoever finishes a
read within the grace period; and what is resumed ends as if nothing had happened.
"""

import multiprocessing
import random
import shutil
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.forecasts import forecast_dataset, open_forecasts, parse_name, published
from pipelines.once import sweep
from pipelines.publishing import publish
from pipelines.retention import compact_days
from pipelines.times import clock_set_to

KILLS = 24
FIRST = pd.Timestamp("2024-06-01")
BEFORE = FIRST + pd.Timedelta("2D")
CORRECTED = FIRST + pd.Timedelta("5D")
GRACE = pd.Timedelta("3s").to_pytimedelta()
HOURS = (1, 2, 3, 22, 23, 25, 26, 49)
"""Init times on three days; of the last, the newest forecast's, nothing is compacted."""
REVISED = (2, 25)

pytestmark = pytest.mark.slow
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pipelines.retention", "xarray"])


def rain_rate_of(hours, revision):
    """A rain rate by which a forecast is known: no two are the same."""
    return hours + revision / 100


NEWEST = [rain_rate_of(hours, 2 if hours in REVISED else 1) for hours in HOURS]
AT_FIRST = [rain_rate_of(hours, 1) for hours in HOURS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, grid):
    """A root with forecasts, two of them in two revisions, the second known since `CORRECTED`."""
    root = tmp_path_factory.mktemp("prepared")
    every = [(hours, 1) for hours in HOURS] + [(hours, 2) for hours in REVISED]
    for hours, revision in every:
        rain_rate = xr.DataArray(
            np.full((2, *grid.shape), rain_rate_of(hours, revision)),
            dims=("lead_time", "y", "x"),
            coords=grid.coords(lonlat=False)
            | {
                "lead_time": pd.timedelta_range("5min", periods=2, freq="5min"),
                "init_time": (FIRST + pd.Timedelta(hours=hours)).to_datetime64(),
            },
        )
        attrs = {"model": "persistence", "inputs_sha256": str(revision)}
        with clock_set_to(CORRECTED if revision == 2 else CORRECTED - pd.Timedelta("1D")):
            publish(str(root), "test", forecast_dataset(rain_rate, attrs))
    return root


def folder_of(root):
    return Path(root) / "forecasts/test"


def old_singles(root):
    keys = map(parse_name, (path.name for path in folder_of(root).iterdir()))
    return [key for key in keys if key is not None and key[0] < BEFORE]


def write(root):
    """What is killed: compaction, until nothing of the old days' single stores is left."""
    while old_singles(root):
        compact_days(str(root), "test", BEFORE, grace=GRACE)
        time.sleep(0.02)


def values_of(dataset):
    """The one rain rate of each row; NaN for one that has several, or a missing pixel."""
    pixels = dataset["rain_rate"].values.reshape(dataset["init_time"].size, -1)
    return np.where((pixels == pixels[:, :1]).all(axis=1), pixels[:, 0], np.nan).round(2).tolist()


def ours(root):
    """What our reader gives that is not right."""
    wrong = []
    for at, expected in ((None, NEWEST), (CORRECTED - pd.Timedelta("1h"), AT_FIRST)):
        found = values_of(open_forecasts(str(root), "test", known_at=at))
        if found != expected:
            wrong.append(f"known at {at}: {found}")
    return wrong


def stock(root):
    """What stock xarray sees in any store that is there, and is not that store's."""
    wrong = []
    for path in [*folder_of(root).glob("2*.zarr"), *folder_of(root).glob("days/2*.zarr")]:
        try:
            dataset = xr.open_zarr(path)
        except FileNotFoundError:  # removed since it was listed
            if path.parent.name == "days":
                wrong.append(f"{path} is gone")
            continue
        hours = (pd.DatetimeIndex(np.atleast_1d(dataset["init_time"])) - FIRST) / pd.Timedelta("1h")
        revisions = np.atleast_1d(dataset.get("revision", dataset.attrs.get("revision")))
        expected = [rain_rate_of(*one) for one in zip(hours, revisions, strict=True)]
        found = values_of(dataset)
        if not np.allclose(found, expected, rtol=0, atol=1e-6):
            wrong.append(f"{path}: {found}")
    return wrong


def look(root, looks_at, stop, seen):
    """Look over and over; report what is wrong, and any error, of looks within the grace period."""
    looks, slow, wrong = 0, 0, []
    while not stop.is_set():
        began = time.monotonic()
        try:
            found = looks_at(root)
        except Exception:
            found = [traceback.format_exc()]
        if time.monotonic() - began < GRACE.total_seconds():
            looks += 1
            wrong += found
        else:
            slow += 1
    seen.send((looks, slow, wrong))


def contents(root):
    forecasts = [open_forecasts(str(root), "test").load()]
    return forecasts + [one.open().load() for one in published(str(root), "test")]


def test_kills_of_compaction_lose_nothing_and_no_reader_sees_a_wrong_value(prepared, tmp_path):
    moments = random.Random(0)
    expected = contents(prepared)
    kills, lives, looks = 0, 0, 0
    while kills < KILLS:
        root = tmp_path / str(lives)
        shutil.copytree(prepared, root)
        stop = processes.Event()
        readers = []
        for looks_at in (ours, stock):
            told, seen = processes.Pipe(duplex=False)
            reader = processes.Process(target=look, args=(root, looks_at, stop, seen))
            reader.start()
            readers.append((reader, told))
        finished = False
        while not finished:
            writer = processes.Process(target=write, args=(root,))
            writer.start()
            # Early: while a day is written. Later: while single stores are removed.
            writer.join(moments.uniform(0, 2) if kills % 2 else moments.uniform(2, 6))
            if writer.exitcode is None and kills < KILLS:
                writer.kill()
                kills += 1
            writer.join()
            assert writer.exitcode in (0, -9)
            finished = writer.exitcode == 0
        stop.set()
        for reader, told in readers:
            assert told.poll(120), "the reader is stuck"
            looked, _, wrong = told.recv()
            reader.join()
            assert wrong == []
            looks += looked
        lives += 1
        assert old_singles(root) == []
        for found, before in zip(contents(root), expected, strict=True):
            xr.testing.assert_identical(found, before)
        sweep(str(folder_of(root) / "days"), older_than_s=0)
        names = {path.name for path in (folder_of(root) / "days").iterdir()}
        assert names == {"20240601.zarr", "20240602.zarr"}
        shutil.rmtree(root)
    print(f"{kills} kills in {lives} lives, {looks} looks")
    assert looks > KILLS
