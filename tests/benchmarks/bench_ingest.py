"""Ingest against the plain way, against bare decoding, and what a year of a source takes on disk.

    python -m tests.benchmarks.bench_ingest FOLDER [--workers 2] [--rounds 5] [--repeat 8]

FOLDER has `mrms/`, `opera-cirrus/`, `opera-nimbus/`, `knmi/` and `fmi-pgm/` with real files. The
few MRMS and CIRRUS files become more by being copied with later reference times; every copy is a
frame of its own.

Each row compares the throughput of ours, from file to committed frame (read, checked, packed,
shard written, manifest and status committed), with another way. The ways take turns, a pair a
round; the ratio is the median of the rounds' ratios, its range beside it.

* plain: `cfgrib` (or pysteps' importer) and xarray's ``to_zarr(append_dim="time")``, one file
  after the other in one process, as a user would write it. Fewer files per round.
* bare: nothing but ``gribberish.parse_grib_array`` of the same files, nothing kept, nothing sent;
  once in a plain `multiprocessing` pool of as many processes, once in the very Dask workers that
  ingest uses, whose C library keeps memory (`pipelines.workers.KEEP_MEMORY`).

Both sides are warm: workers run, each has decoded a frame, and the archive and the plain store have
their first frame. "New archive" has its creation in our time (its grid is read from the first file;
on projected grids longitude and latitude of every pixel are computed and stored), "start of the
workers" that of the Dask processes; the other side stays warm.
"""

import argparse
import contextlib
import functools
import multiprocessing
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyproj  # noqa: F401  (before any GRIB or HDF5 reader)

from pipelines import storage
from pipelines.compact import compact, training_url
from pipelines.decode import IngestSettings
from pipelines.ingest import ingest
from pipelines.sources import get_source
from pipelines.workers import local_cluster
from tests.benchmarks.paired import Paired, in_turns, seconds, table

REFERENCE_TIME = 16 + 12
"""Where a GRIB2 message has its year: section 0 takes 16 bytes, section 1 tells it 12 bytes in."""
YEAR = pd.Timedelta("365D")


def more_mrms(folder: Path, into: Path, repeat: int) -> list[Path]:
    """`repeat` copies of every file, each later by the whole series than the one before."""
    names = sorted(folder.glob("*.grib2"))
    times = [pd.to_datetime(path.stem[-15:], format="%Y%m%d-%H%M%S") for path in names]
    span = times[-1] - times[0] + (times[1] - times[0])
    made = []
    for number in range(repeat):
        for path, own in zip(names, times, strict=True):
            time = own + number * span
            content = bytearray(path.read_bytes())
            assert _clock(content) == (own.year, own.month, own.day, own.hour, own.minute, 0)
            struct.pack_into(">HBBBBB", content, REFERENCE_TIME, *time.timetuple()[:6])
            made.append(into / f"PrecipRate_00.00_{time:%Y%m%d-%H%M%S}.grib2")
            made[-1].write_bytes(content)
    return made


def _clock(content: bytearray) -> tuple[int, ...]:
    return struct.unpack_from(">HBBBBB", content, REFERENCE_TIME)


def more_odim(folder: Path, into: Path, repeat: int, timestep: pd.Timedelta) -> list[Path]:
    """`repeat` copies of every file, at successive timesteps from the first."""
    import h5py

    names = sorted(folder.glob("*.hdf"))
    time = pd.to_datetime(names[0].stem[-14:], format="%Y%m%d%H%M%S")
    made = []
    for number in range(repeat * len(names)):
        own = names[number % len(names)]
        made.append(into / f"{own.stem[:-14]}{time + number * timestep:%Y%m%d%H%M%S}.hdf")
        shutil.copyfile(own, made[-1])
        with h5py.File(made[-1], "r+") as file:
            what = file["what"].attrs
            what["date"] = f"{time + number * timestep:%Y%m%d}".encode()
            what["time"] = f"{time + number * timestep:%H%M%S}".encode()
    return made


def ours(settings: IngestSettings, frames: int, into: Path, *, new: bool = False) -> float:
    """Seconds for a frame: all of a folder into an archive that has one frame, or into a `new` one.

    The archive goes again.
    """
    with tempfile.TemporaryDirectory(dir=into) as place:
        url = f"file://{place}/archive.zarr"
        if not new:
            assert settings.location is not None
            files = get_source(settings.source).find(settings.location)
            frames -= len(ingest(url, settings, files[:1]).frames)
        began = time.perf_counter()
        report = ingest(url, settings)
        assert len(report.frames) == frames, report
        return (time.perf_counter() - began) / frames


def plain(open_frame: Callable[[Path], Any], paths: list[Path], into: Path) -> float:
    """Seconds for a frame: xarray's own way of growing a store that has its first frame."""
    with tempfile.TemporaryDirectory(dir=into) as place, storage.consolidating():
        open_frame(paths[0]).to_zarr(f"{place}/plain.zarr", mode="w")
        began = time.perf_counter()
        for path in paths[1:]:
            open_frame(path).to_zarr(f"{place}/plain.zarr", append_dim="time")
        return (time.perf_counter() - began) / (len(paths) - 1)


def open_grib(path: Path) -> Any:
    import xarray as xr

    dataset = xr.open_dataset(path, engine="cfgrib", backend_kwargs={"indexpath": ""})
    return dataset.expand_dims("time").drop_vars(["step", "heightAboveSea", "valid_time"])


def open_odim(path: Path, quantity: str) -> Any:
    """pysteps' field as it is: dBZ stays dBZ, which ours turns into a rain rate besides."""
    import xarray as xr
    from pysteps.io.importers import import_odim_hdf5

    field, _, _ = import_odim_hdf5(str(path), qty=quantity)
    time = pd.to_datetime(path.stem[-14:], format="%Y%m%d%H%M%S")
    return xr.Dataset({"field": (("time", "y", "x"), field[None])}, coords={"time": [time]})


def bare(path: str) -> int:
    """Decode, and let go."""
    import gribberish

    return int(gribberish.parse_grib_array(Path(path).read_bytes(), 0).size)


def bench_mrms(folder: Path, work: Path, workers: int, rounds: int, repeat: int) -> list[Any]:
    """Ingest of MRMS against the plain way and against bare decoding."""
    from distributed import Client

    own = work / "mrms"
    own.mkdir()
    paths = more_mrms(folder, own, repeat)
    names = [str(path) for path in paths]
    some = paths[: max(4, len(paths) // 8)]
    settings = IngestSettings(source="mrms", location=str(own), workers=workers)
    processes = multiprocessing.get_context("spawn")

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(processes.Pool(workers))
        pool.map(bare, names)  # its processes are there before Dask changes the environment
        scheduler = stack.enter_context(local_cluster(workers))
        client = stack.enter_context(Client(scheduler))
        warm = settings.model_copy(update={"scheduler": scheduler})

        def in_dask() -> None:
            client.gather(client.map(bare, names, pure=False))

        def in_pool() -> None:
            pool.map(bare, names, chunksize=1)

        ways: dict[str, Callable[[], float]] = {
            "pool": lambda: seconds(in_pool) / len(paths),
            "ours": lambda: ours(warm, len(paths), work),
            "dask": lambda: seconds(in_dask) / len(paths),
            "start": lambda: ours(settings, len(paths), work, new=True),
            "plain": lambda: plain(open_grib, some, work),
        }
        times = in_turns(ways, rounds)
    name = f"MRMS, {len(paths)} frames, {workers} workers"
    return [
        Paired(times["ours"], times["plain"]).row(f"{name}, against cfgrib + to_zarr", "≥ 3"),
        Paired(times["start"], times["plain"]).row("… new archive, start of the workers", ""),
        Paired(times["ours"], times["pool"]).row("… against bare gribberish, pool", "≥ 0.7"),
        Paired(times["start"], times["pool"]).row("… new archive, start of the workers", ""),
        Paired(times["ours"], times["dask"]).row("… against bare gribberish, our workers", ""),
    ]


def bench_odim(
    name: str, quantity: str, paths: list[Path], work: Path, workers: int, rounds: int
) -> list[Any]:
    """Ingest of OPERA composites against pysteps' importer."""
    folder = str(paths[0].parent)
    one = IngestSettings(source="odim", location=folder, timestep=TIMESTEPS[name], workers=1)
    open_frame = functools.partial(open_odim, quantity=quantity)
    some = paths[: max(4, len(paths) // 2)]
    with local_cluster(workers) as scheduler:
        many = one.model_copy(update={"scheduler": scheduler, "workers": workers})
        ways: dict[str, Callable[[], float]] = {
            "one": lambda: ours(one, len(paths), work),
            "plain": lambda: plain(open_frame, some, work),
            "many": lambda: ours(many, len(paths), work),
            "new": lambda: ours(many, len(paths), work, new=True),
        }
        times = in_turns(ways, rounds)
    name = f"{name}, {len(paths)} frames"
    against = "against pysteps + to_zarr"
    return [
        Paired(times["one"], times["plain"]).row(f"{name}, 1 process, {against}", "≥ 2"),
        Paired(times["many"], times["plain"]).row(f"… {workers} workers", "≥ 2"),
        Paired(times["new"], times["plain"]).row(f"… {workers} workers, new archive", ""),
    ]


TIMESTEPS = {
    "mrms": pd.Timedelta("2min"),
    "opera-cirrus": pd.Timedelta("5min"),
    "opera-nimbus": pd.Timedelta("15min"),
    "knmi": pd.Timedelta("5min"),
    "fmi-pgm": pd.Timedelta("5min"),
}
"""Folders under FOLDER and the spacing of their frames."""


def size(url: str) -> int:
    """Bytes of a store's rain rate."""
    folder = storage.local_path(url)
    assert folder is not None
    return sum(path.stat().st_size for path in (folder / "rain_rate").rglob("*") if path.is_file())


def bench_disk(folder: Path, work: Path, name: str) -> tuple[str, ...]:
    """Bytes of the real frames in both layouts, and what a year of such frames takes."""
    source = "odim" if name.startswith("opera") else name
    url = f"file://{work}/disk-{name}.zarr"
    settings = IngestSettings(
        source=source, location=str(folder / name), timestep=TIMESTEPS[name], workers=1
    )
    frames = len(ingest(url, settings).frames)
    compact(url, workers=1)
    live, training = size(url) / frames, size(training_url(url)) / frames
    given = sum(path.stat().st_size for path in (folder / name).iterdir()) / frames
    a_year = YEAR / TIMESTEPS[name]
    return (
        name,
        str(frames),
        *(f"{one / 1e3:.0f}" for one in (given, live, training)),
        f"{a_year:.0f}",
        *(f"{one * a_year / 1e9:.0f}" for one in (given, live, training)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=8, help="copies of each MRMS and CIRRUS file")
    parser.add_argument("--only", choices=["mrms", "odim", "disk"])
    args = parser.parse_args()
    folder = args.folder.resolve()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        rows: list[Any] = []
        if args.only in (None, "mrms"):
            rows += bench_mrms(folder / "mrms", work, args.workers, args.rounds, args.repeat)
        if args.only in (None, "odim"):
            for name, quantity in (("opera-cirrus", "DBZH"), ("opera-nimbus", "RATE")):
                (work / name).mkdir()
                paths = more_odim(folder / name, work / name, args.repeat, TIMESTEPS[name])
                paths = paths[: 2 * args.repeat]
                for path in sorted((work / name).iterdir())[len(paths) :]:
                    path.unlink()
                rows += bench_odim(name, quantity, paths, work, args.workers, args.rounds)
        if rows:
            head = ("ingest", "ours ms/frame", "other ms/frame", "throughput, times", "goal")
            print(table(head, rows))
        if args.only in (None, "disk"):
            head = ("source", "frames", "kB file", "kB live", "kB training", "frames a year")
            head += ("GB files", "GB live", "GB training")
            print(table(head, [bench_disk(folder, work, name) for name in TIMESTEPS]))


if __name__ == "__main__":
    main()
