"""A year of a service at 5 minutes: what a round, a reader and the watch cost as it ages.

    python -m tests.benchmarks.bench_age [--ages 3 30 91 182 365]

On a tiny grid, so that what grows can only be catalogue. Every frame of the year goes through
ingest, 105120 of them. Forecasts older than two days are compacted days, as `squall prune` makes
them: one day is published and compacted by the product's own code, the others are copies of it
whose times are moved. At each age the last two days have a store a forecast, and the location has
two days of files; then three more files come, and a round is run after each. Counted are files
opened and folders listed under the root, which no other work on the machine disturbs; milliseconds
are the shortest of three. Nothing but "all" should grow: that opens a store a day.
"""

import argparse
import functools
import json
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from tqdm import tqdm

from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import Service, run_round
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.decode import IngestSettings
from pipelines.due import agenda
from pipelines.forecast_days import FORECAST, INDEX, day_url
from pipelines.forecasts import (
    folder_url,
    forecast_dataset,
    latest_init_time,
    open_forecast,
    open_forecasts,
)
from pipelines.grid import Grid
from pipelines.ingest import ingest
from pipelines.publishing import publish
from pipelines.retention import compact_days
from pipelines.sources import SOURCES
from pipelines.sources.base import FrameFile, frame
from pipelines.sources.synthetic import PROJECTION
from pipelines.times import clock_set_to, init_time_label
from pipelines.watch import look
from tests.benchmarks.bench_year import MovingRain
from tests.benchmarks.paired import table

PRODUCT, START = "bench", pd.Timestamp("2023-01-01")
DAY, TIMESTEP = pd.Timedelta("1D"), pd.Timedelta("5min")
ROUNDS, LIVE_DAYS = 3, 2


@functools.cache
def grid() -> Grid:
    return Grid.from_corner(PROJECTION, 0, 0, (2000, 2000), (8, 8))


class TinyRain(MovingRain):
    """Eight bytes, a frame's number, as a few pixels of rain."""

    name, decoder = "tiny-rain", "tiny-rain/1"

    def read(self, content: bytes) -> xr.DataArray:
        (number,) = struct.unpack(">Q", content)
        rain_rate = np.full(grid().shape, number % 7, np.float32)
        return frame(rain_rate, grid(), START + number * TIMESTEP)


SOURCES[TinyRain.name] = TinyRain()

progress = functools.partial(tqdm, mininterval=5)
operations: Counter[str] = Counter()
watched: list[str] = []


def count(event: str, arguments: tuple[Any, ...]) -> None:
    """Of every file opened and folder listed under the root."""
    seen = event in ("open", "os.listdir", "os.scandir") and watched
    if seen and str(arguments[0]).startswith(watched[0]):
        operations["opened" if event == "open" else "listed"] += 1


def file_of(folder: Path, valid_time: pd.Timestamp) -> FrameFile:
    """The provider's file of a frame, written now."""
    path = folder / f"year_{valid_time:%Y%m%d%H%M}.bin"
    path.write_bytes(struct.pack(">Q", (valid_time - START) // TIMESTEP))
    return FrameFile(valid_time, valid_time, f"file://{path}", 8)


def publish_one(root: str, init_time: pd.Timestamp) -> None:
    """A forecast of nothing, at the moment of its init_time."""
    rain_rate = xr.DataArray(
        np.zeros((3, *grid().shape)),
        dims=("lead_time", "y", "x"),
        coords=grid().coords(lonlat=False)
        | {
            "lead_time": pd.timedelta_range("5min", periods=3, freq="5min"),
            "init_time": init_time.to_datetime64(),
        },
    )
    with clock_set_to(init_time):
        publish(root, PRODUCT, forecast_dataset(rain_rate, {"model": "persistence"}))


def times_of(start: pd.Timestamp, end: pd.Timestamp) -> pd.DatetimeIndex:
    return pd.date_range(start, end, freq=TIMESTEP, inclusive="left")


def copy_day(root: str, date: pd.Timestamp) -> None:
    """The first day's store once more, as another day's."""
    folder = folder_url(root, PRODUCT)
    first, other = (Path(day_url(folder, day).removeprefix("file://")) for day in (START, date))
    shutil.copytree(first, other)
    group = zarr.open_group(str(other), mode="r+", use_consolidated=False)
    for name in ("init_time", "valid_time"):
        units = pd.Timedelta(1, str(group[name].attrs["units"]).split()[0])  # type: ignore[arg-type]
        group[name][...] = np.asarray(group[name]) + (date - START) // units  # type: ignore[index]
    group.attrs[INDEX] = {init_time_label(at): [1] for at in times_of(date, date + DAY)}
    assert FORECAST in group
    with storage.consolidating():
        zarr.consolidate_metadata(str(other))


def grow(root: str, files: Path, since: pd.Timestamp, until: pd.Timestamp) -> None:
    """From one age to the next: frames, compacted days, and the last days' single stores."""
    new = [file_of(files, at) for at in progress(times_of(since, until), "files", unit="file")]
    settings = IngestSettings(source=TinyRain.name, location=str(files), workers=1)
    ingest(archive_url(root, PRODUCT), settings, files=new, progress=True)
    for path in sorted(files.iterdir())[: -LIVE_DAYS * len(times_of(START, START + DAY))]:
        path.unlink()
    folder = folder_url(root, PRODUCT)
    for single in Path(folder.removeprefix("file://")).glob("*.zarr"):
        shutil.rmtree(single)
    old = pd.date_range(START, until - LIVE_DAYS * DAY, inclusive="left")
    for date in progress(old, "days", unit="day"):
        if date > START and not storage.exists(day_url(folder, date)):
            copy_day(root, date)
    for at in progress(
        times_of(until - LIVE_DAYS * DAY, until), "forecasts", unit="forecast", mininterval=5
    ):
        publish_one(root, at)


def cost(what: Callable[[], object]) -> tuple[float, int, int]:
    """Milliseconds, files opened, folders listed."""
    operations.clear()
    began = time.perf_counter()
    what()
    return 1e3 * (time.perf_counter() - began), operations["opened"], operations["listed"]


def ways(root: str, files: Path, age: pd.Timestamp) -> dict[str, Callable[[], object]]:
    """What is measured."""
    later = iter(times_of(age, age + DAY))

    def a_round() -> None:
        at = next(later)
        file_of(files, at)
        settings = IngestSettings(source=TinyRain.name, location=str(files), workers=1)
        with (
            clock_set_to(at),
            Nowcaster(root, "persistence", NowcastSettings(lead_time="15min")) as nowcaster,
        ):
            made = list(run_round(Service(root, PRODUCT, settings, nowcaster)))
        assert [(one.init_time, one.state) for one in made] == [(at, "published")], made

    def newest() -> pd.Timestamp:
        init_time = latest_init_time(root, PRODUCT)
        assert init_time is not None
        return init_time

    def due() -> None:
        agenda(root, PRODUCT, "{}", (), since=pd.Timedelta("3h"))

    def watch() -> None:
        with clock_set_to(newest()):
            look(root, PRODUCT)

    return {
        "round": a_round,
        "newest": lambda: open_forecast(root, PRODUCT, newest()),
        "24 h": lambda: open_forecasts(root, PRODUCT, start=newest() - DAY),
        "due, 3 h": due,
        "status": watch,
        "all": lambda: open_forecasts(root, PRODUCT),
    }


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ages", type=int, nargs="+", default=[3, 30, 91, 182, 365])
    ages = parser.parse_args().ages
    rows = []
    with tempfile.TemporaryDirectory() as work:
        root, files = f"{work}/root", Path(work) / "files"
        files.mkdir()
        for at in progress(times_of(START, START + DAY), "first day", unit="forecast"):
            publish_one(root, at)
        publish_one(root, START + DAY)  # the newest day is never compacted
        with clock_set_to(START + 3 * DAY):
            compact_days(root, PRODUCT, START + DAY, grace=pd.Timedelta(0).to_pytimedelta())
        sys.addaudithook(count)
        since = START
        for age in ages:
            until = START + age * DAY
            grow(root, files, since, until)
            watched[:] = [root]
            row = [f"{age}"]
            for way in ways(root, files, until).values():
                measured = [cost(way) for _ in range(ROUNDS)]
                milliseconds, opened, listed = (min(each) for each in zip(*measured, strict=True))
                row.append(f"{milliseconds:.0f}; {opened} + {listed}")
            watched.clear()
            rows.append(row)
            print(json.dumps(row), flush=True)
            since = until + ROUNDS * TIMESTEP
    names = [f"{name}: ms; opened + listed" for name in ways("", Path(), START)]
    print(table(("age, days", *names), rows))


if __name__ == "__main__":
    main()
