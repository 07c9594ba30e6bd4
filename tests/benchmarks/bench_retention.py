"""A month of forecasts: what it costs to find and open the newest, and the last day, as it ages.

    python -m tests.benchmarks.bench_retention [--days 30] [--a-day 288] [--every 5]

Forecasts of a tiny grid are published day by day, and days older than two are compacted, as
`squall prune` does. Every few days, after an hour of the newest day, three readings are timed, the
shortest of five: the newest by `latest.json`, the last 24 hours as one dataset, and all as one
dataset. Opened is lazily: no pixels are read. The first two should not grow with age; the last
opens a store a compacted day.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from pipelines.forecasts import (
    forecast_dataset,
    latest_init_time,
    open_forecast,
    open_forecasts,
    published,
)
from pipelines.grid import Grid
from pipelines.publishing import publish
from pipelines.retention import compact_days
from pipelines.sources.synthetic import PROJECTION
from pipelines.times import clock_set_to
from tests.benchmarks.paired import table

FIRST = pd.Timestamp("2024-06-01")
DAY, HOUR = pd.Timedelta("1D"), pd.Timedelta("1h")
GRID = Grid.from_corner(PROJECTION, 0, 0, (2000, 2000), (8, 8))
ROUNDS = 5


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--a-day", type=int, default=288)
    parser.add_argument("--every", type=int, default=5, help="days between readings")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for number in range(given.days + 1):
            start = FIRST + number * DAY
            times = pd.date_range(start, start + DAY, periods=given.a_day + 1)[:-1]
            for init_time in times:
                if number < given.days or init_time < start + HOUR:
                    publish_one(root, init_time.floor("min"))
            with clock_set_to(start + DAY):
                compact_days(root, "bench", start - DAY, grace=pd.Timedelta(0).to_pytimedelta())
            if number % given.every == 0:
                rows.append([str(number), *readings(root), *objects(root)])
    names = ["age, days", "newest ms", "last 24 h ms", "all ms", "single stores", "objects"]
    print(table(names, rows))


def publish_one(root: str, init_time: pd.Timestamp) -> None:
    """A forecast of nothing, at the moment of its init_time."""
    rain_rate = xr.DataArray(
        np.zeros((3, *GRID.shape)),
        dims=("lead_time", "y", "x"),
        coords=GRID.coords(lonlat=False)
        | {
            "lead_time": pd.timedelta_range("5min", periods=3, freq="5min"),
            "init_time": init_time.to_datetime64(),
        },
    )
    with clock_set_to(init_time):
        publish(root, "bench", forecast_dataset(rain_rate, {"model": "persistence"}))


def readings(root: str) -> list[str]:
    """Milliseconds of the three readings."""

    def newest() -> xr.Dataset:
        init_time = latest_init_time(root, "bench")
        assert init_time is not None
        return open_forecast(root, "bench", init_time)

    def last_day() -> xr.Dataset:
        end = latest_init_time(root, "bench")
        assert end is not None
        return open_forecasts(root, "bench", start=end - DAY)

    ways: list[Callable[[], xr.Dataset]] = [
        newest,
        last_day,
        lambda: open_forecasts(root, "bench"),
    ]
    return [f"{milliseconds(way):.0f}" for way in ways]


def milliseconds(way: Callable[[], object]) -> float:
    """The shortest of a few."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        way()
        taken.append(time.perf_counter() - began)
    return 1000 * min(taken)


def objects(root: str) -> list[str]:
    """Single stores, and files of all kinds."""
    singles = sum(one.day is None for one in published(root, "bench"))
    return [str(singles), str(sum(path.is_file() for path in Path(root).rglob("*")))]


if __name__ == "__main__":
    main()
