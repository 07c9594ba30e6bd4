"""Reading training samples: ours against xarray and xbatcher, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_samples

Builds an archive in the training layout from smooth random rain that packs as radar does (to a
twentieth of its float32), then reads the same random crops by every way in turn, round by round, so
that whatever else the machine does hits all of them alike. Prints the median milliseconds per
sample, and the median over rounds of the ratio to the fastest of ours. Crops begin at chunk corners
(aligned) or anywhere; xbatcher has its aligned patches only.

Reads come from the operating system's page cache: this times decoding and copying, not a disk.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipelines.archive import CHUNK, TRAINING, Archive, Status, create
from pipelines.grid import Grid
from pipelines.reading import SampleReader
from pipelines.sources.synthetic import PROJECTION
from pipelines.units import pack

FRAMES = TRAINING.frames
WET = 1.5
"""Standard deviations above which it rains: a fifteenth of the pixels."""
START, TIMESTEP = pd.Timestamp("2024-06-01"), pd.Timedelta("5min")

Crop = NDArray[np.floating]
Way = Callable[[int, int, int], Crop]


def rain(frames: int, size: int, seed: int = 0) -> Iterator[NDArray[np.uint16]]:
    """Stored frames (y, x): noise smoothed over 12 pixels; its wettest part is rain.

    It drifts and grows within a chunk, so that no frame repeats another's numbers.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((size + frames, size + 2 * frames)).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), 12)
    field /= field.std()
    for k in range(frames):
        here = field[k : k + size, 2 * k : 2 * k + size]
        yield pack((8 + k % FRAMES) * np.maximum(here - WET, 0))[0]


def build(url: str, frames: int, size: int) -> Archive:
    """The archive, a block of frames at a time."""
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (size, size))
    end = START + TIMESTEP * (frames - 1)
    archive = create(url, grid, START, end, TIMESTEP, layout=TRAINING)
    array, source = archive.group["rain_rate"], rain(frames, size)
    for first in range(0, frames, FRAMES):
        array[first : first + FRAMES] = np.stack([next(source) for _ in range(FRAMES)])
    archive.commit([], dict.fromkeys(archive.times, Status.OK))
    return archive


def ways(url: str) -> dict[str, Way]:
    """Every way to read a crop of `FRAMES` frames and `CHUNK`² pixels, by slot, row and column."""
    import xbatcher

    def window(*corner: int) -> tuple[slice, slice, slice]:
        t, y, x = (slice(k, k + n) for k, n in zip(corner, (FRAMES, CHUNK, CHUNK), strict=True))
        return t, y, x

    def ours(fast: bool) -> Way:
        reader = SampleReader(url, fast)
        return lambda *corner: reader.read(*window(*corner))

    def xarray(chunks: dict[str, int] | None) -> Way:
        rain_rate = xr.open_zarr(url, chunks=chunks)["rain_rate"]
        return lambda *corner: (
            rain_rate.isel(dict(zip(rain_rate.dims, window(*corner), strict=True))).load().values
        )

    def by_xbatcher(chunks: dict[str, int] | None) -> Way:
        rain_rate = xr.open_zarr(url, chunks=chunks)["rain_rate"]
        batches = xbatcher.BatchGenerator(
            rain_rate, {"time": FRAMES, "y": CHUNK, "x": CHUNK}, preload_batch=False
        )
        across = [length // n for length, n in zip(rain_rate.shape, (1, CHUNK, CHUNK), strict=True)]

        def read(t: int, y: int, x: int) -> Crop:
            batch = (t // FRAMES * across[1] + y // CHUNK) * across[2] + x // CHUNK
            return batches[batch].load().values

        return read

    return {
        "ours, tensorstore": ours(fast=True),
        "ours, zarr-python": ours(fast=False),
        "xarray, chunks={} (dask)": xarray({}),
        "xarray, chunks=None": xarray(None),
        "xbatcher, chunks={} (dask)": by_xbatcher({}),
        "xbatcher, chunks=None": by_xbatcher(None),
    }


def seconds(way: Way, corner: tuple[int, int, int], expected: Crop) -> float:
    """How long one crop takes; it must be the right one."""
    start = time.perf_counter()
    crop = way(*corner)
    taken = time.perf_counter() - start
    np.testing.assert_array_equal(crop.astype(np.float32), expected)
    return taken


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=288)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        archive = build(f"{folder}/rain.zarr", options.frames, options.size)
        stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        pixels = options.frames * options.size**2
        print(f"{options.frames} frames of {options.size}²")
        print(f"the archive is {4 * pixels / stored:.1f} times smaller than float32")
        readers = ways(archive.url)
        taken: dict[tuple[str, str], list[float]] = {}
        lengths = np.array([options.frames - FRAMES, *[options.size - CHUNK] * 2])
        for round_ in range(-2, options.rounds):  # the first two are for warming up
            anywhere = rng.integers(0, lengths + 1)
            corners = {
                "aligned": anywhere // (FRAMES, CHUNK, CHUNK) * (FRAMES, CHUNK, CHUNK),
                "unaligned": anywhere,
            }
            for kind, corner in corners.items():
                place = tuple(int(k) for k in corner)
                expected = SampleReader(archive.url, fast=False).read(
                    *(slice(k, k + n) for k, n in zip(place, (FRAMES, CHUNK, CHUNK), strict=True))
                )
                for name in rng.permutation(list(readers)):
                    if kind == "unaligned" and name.startswith("xbatcher"):
                        continue  # it has its patches only
                    result = seconds(readers[name], place, expected)
                    if round_ >= 0:
                        taken.setdefault((name, kind), []).append(result)
    _report(taken, [(name, kind) for kind in ("aligned", "unaligned") for name in readers])


def _report(taken: dict[tuple[str, str], list[float]], order: list[tuple[str, str]]) -> None:
    best = "ours, tensorstore"
    print("time in units of (a) ours through tensorstore, same crop; (b) the same, unaligned")
    print(f"{'way':28} {'crop':10} {'ms':>7} {'(a)':>6} {'(b)':>6}")
    for name, kind in order:
        if (name, kind) in taken:
            mine = np.array(taken[name, kind])
            same = np.median(mine / taken[best, kind])
            hard = np.median(mine / taken[best, "unaligned"])
            print(f"{name:28} {kind:10} {np.median(mine) * 1e3:7.1f} {same:6.2f} {hard:6.2f}")


if __name__ == "__main__":
    main()
