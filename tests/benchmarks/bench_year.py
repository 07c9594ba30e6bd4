"""A year of 5-minute frames: ingest killed half way and resumed; time, and memory by length.

    python -m tests.benchmarks.bench_year [--frames 105120] [--workers 2] [--kill-at 0.4]

The provider's folder is made here: one 8-byte file a frame, which its source turns into a rain
field of 765×700 pixels (the size of KNMI's), a seeded pattern that moves. Listing, planning,
hashing, packing, writing and committing are the product's own. The ingest runs in a process group
of its own. When the part `--kill-at` of the frames is committed, the whole group is killed with
SIGKILL, main process and workers, and started again.

What must hold: the second run writes the frames that were not committed and no other. That is told
by its report, and by the modification times of the frames' objects. A twelfth of the frames is
ingested alone besides, for what memory a short archive takes.
"""

import argparse
import functools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.archive import USABLE, Archive
from pipelines.decode import IngestSettings
from pipelines.errors import NotFoundError
from pipelines.grid import Grid
from pipelines.ingest import ingest
from pipelines.sources import SOURCES
from pipelines.sources.base import FoundByName, frame
from pipelines.units import unpack
from tests.benchmarks.paired import table

START = pd.Timestamp("2023-01-01T00:00")
TIMESTEP = pd.Timedelta("5min")
SHAPE = 765, 700
NAME = re.compile(r"year_(?P<time>\d{12})\.bin$")
KILO, MEGA = 1e3, 1e6


class MovingRain(FoundByName):
    """Eight bytes, a frame's number, as a rain field."""

    name = "moving-rain"
    title = "a made-up pattern that moves"
    format = "eight bytes"
    variable = "number"
    timestep: pd.Timedelta | None = TIMESTEP
    licence = "none"
    location: str | None = None
    decoder = "moving-rain/1"
    pattern = NAME
    example = "year_202301010000.bin"

    def read(self, content: bytes) -> xr.DataArray:
        (number,) = struct.unpack(">Q", content)
        rain_rate, outside = pattern()
        moved = np.roll(rain_rate, (2 * number, 3 * number), axis=(0, 1))
        moved[outside] = np.nan
        return frame(moved, grid(), START + number * TIMESTEP)


SOURCES[MovingRain.name] = MovingRain()  # workers import this script too: it is their main module


@functools.cache
def grid() -> Grid:
    crs = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378137 +b=6356752 +x_0=0 +y_0=0"
    return Grid.from_corner(crs, 0.0, -3650e3, (1000.0, 1000.0), SHAPE)


@functools.cache
def pattern() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rain rate in KNMI's steps of 0.12 mm/h, on a torus; and what lies beyond the radars."""
    noise = np.random.default_rng(7).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 12, mode="wrap")
    strength = np.clip(smooth / smooth.std() - 0.8, 0, None)
    rain_rate = (np.rint(8 * strength**1.5 / 0.12) * 0.12).astype(np.float32)
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return rain_rate, np.hypot(y - SHAPE[0] / 2, x - SHAPE[1] / 2) > 320


def write_folder(folder: Path, frames: int) -> None:
    """A folder a day, a file a frame."""
    for number in range(frames):
        valid_time = START + number * TIMESTEP
        day = folder / f"{valid_time:%Y%m%d}"
        if number % 288 == 0:
            day.mkdir(parents=True)
        (day / f"year_{valid_time:%Y%m%d%H%M}.bin").write_bytes(struct.pack(">Q", number))


# The process that is killed ----------------------------------------------------------------------


def child(url: str, folder: str, workers: int, until: int, told: str) -> None:
    """Ingest, and tell the report."""
    began = time.perf_counter()
    end = START + (until - 1) * TIMESTEP
    settings = IngestSettings(source=MovingRain.name, location=folder, workers=workers)
    report = ingest(url, settings, end=end)
    told_of = {
        "found": report.found,
        "settled": report.settled,
        "outcomes": dict(report.outcomes),
        "frames": len(report.frames),
        "seconds": time.perf_counter() - began,
    }
    Path(told).write_text(json.dumps(told_of))


@dataclass
class Watched:
    """One run as seen from outside; memory is resident, in bytes.

    `peaks` has, by how many frames were committed, the largest memory until then of the main
    process and of any worker. `first_s` is how long it took until something was committed.
    """

    began: float
    seconds: float = 0.0
    first_s: float | None = None
    killed: bool = False
    committed: int = 0
    peaks: dict[int, tuple[int, int]] = field(default_factory=dict)
    report: dict[str, object] = field(default_factory=dict)


def watch(url: str, folder: Path, workers: int, until: int, kill_at: int | None) -> Watched:
    """Run `child` and look on; kill it and all that it started once `kill_at` frames are there."""
    told = folder.parent / "report.json"
    told.unlink(missing_ok=True)
    arguments = [url, str(folder), str(workers), str(until), str(told)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.bench_year", "--child", *arguments],
        start_new_session=True,
    )
    seen = Watched(began=time.time())
    before = committed(url)
    peak, looked = (0, 0), 0.0
    while process.poll() is None:
        peak = tuple(map(max, peak, memory(process.pid)))  # type: ignore[assignment]
        if time.time() - looked > 2:
            looked = time.time()
            seen.committed = committed(url)
            seen.peaks[seen.committed] = peak
            if seen.committed > before and seen.first_s is None:
                seen.first_s = looked - seen.began
            if kill_at is not None and seen.committed >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                seen.killed = True
                break
        time.sleep(0.1)
    assert process.wait() == (-signal.SIGKILL if seen.killed else 0)
    seen.seconds = time.time() - seen.began
    seen.committed = committed(url)
    seen.peaks[seen.committed] = peak
    if told.exists():
        seen.report = json.loads(told.read_text())
    return seen


def memory(pid: int) -> tuple[int, int]:
    """Resident bytes: the main process, and the largest of the workers."""
    try:
        main = psutil.Process(pid)
        others = main.children(recursive=True)
        return main.memory_info().rss, max((_rss(one) for one in others), default=0)
    except psutil.NoSuchProcess:
        return 0, 0


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def committed(url: str) -> int:
    """How many frames are committed."""
    try:
        return int(Archive(url).status().isin(USABLE).sum())
    except NotFoundError:
        return 0


# The year ----------------------------------------------------------------------------------------


def shards(url: str) -> dict[int, float]:
    """When each slot's object was written, by slot."""
    folder = Path(url.removeprefix("file://")) / "rain_rate" / "c"
    return {int(path.parent.parent.name): path.stat().st_mtime for path in folder.glob("*/0/0")}


def run(work: Path, frames: int, workers: int, kill_at: float) -> None:
    url, alone = f"file://{work}/year.zarr", f"file://{work}/month.zarr"
    folder = work / "radar"
    write_folder(folder, frames)
    month = frames // 12
    short = watch(alone, folder, workers, month, None)
    first = watch(url, folder, workers, frames, int(kill_at * frames))
    assert first.killed, "it was done before it could be killed"
    archive = Archive(url)
    done = archive.usable_times()
    resumed_at = time.time()
    second = watch(url, folder, workers, frames, None)

    written = shards(url)
    slots = {archive.slot(valid_time) for valid_time in done}
    redone = sum(written[slot] > resumed_at for slot in slots)
    in_second = sum(at > resumed_at for at in written.values())
    assert committed(url) == frames
    assert second.report["frames"] == frames - len(done) == in_second
    assert redone == 0
    for number in (0, len(done) - 1, len(done), frames - 1):  # as made, or off by half a step
        expected = MovingRain().read(struct.pack(">Q", number)).values
        stored = archive.read_stored(slice(number, number + 1))[0]
        np.testing.assert_allclose(unpack(stored), expected, atol=0.00501)
    third = watch(url, folder, workers, frames, None)
    assert third.report["frames"] == 0

    size = sum(path.stat().st_size for path in work.glob("year.zarr/rain_rate/c/*/0/0"))
    head = ("run", "frames committed", "s", "ms/frame", "s to first", "MB main", "MB worker")
    rows = []
    for name, seen, since in (
        ("a twelfth, an archive of its own", short, 0),
        ("all, killed", first, 0),
        ("all, resumed", second, len(done)),
        ("all, again: nothing to do", third, frames),
    ):
        new = seen.committed - since
        main, worker = seen.peaks[max(seen.peaks)]
        rows.append(
            (
                name,
                f"{new}",
                f"{seen.seconds:.1f}",
                f"{seen.seconds / new * KILO:.2f}" if new else "",
                f"{seen.first_s:.1f}" if seen.first_s else "",
                f"{main / MEGA:.0f}",
                f"{worker / MEGA:.0f}" if worker else "none",
            )
        )
    print(table(head, rows))
    print(f"\n{len(done)} frames were committed when it was killed; the second run wrote")
    print(f"{second.report['frames']} by its report, {in_second} by the objects' times, and")
    print(f"{redone} of those that were committed. {size / frames / KILO:.1f} kB a frame.\n")
    peaks = []
    for part in (1, 3, 6, 9, 12):
        least = part * frames // 12
        for seen in (first, second):
            reached = [count for count in seen.peaks if count >= least]
            if reached and not (seen is second and least <= len(done)):
                main, worker = seen.peaks[min(reached)]
                peaks.append((f"{min(reached)}", f"{main / MEGA:.0f}", f"{worker / MEGA:.0f}"))
    print(table(("frames in the archive", "peak MB main", "peak MB of any worker"), peaks))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        url, folder, workers, until, told = sys.argv[2:]
        child(url, folder, int(workers), int(until), told)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=105120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-at", type=float, default=0.4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        run(Path(work), args.frames, args.workers, args.kill_at)


if __name__ == "__main__":
    main()
