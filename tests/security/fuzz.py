"""Broken files by the hundred thousand, into every reader.

    python -m tests.security.fuzz --files 100000

Each is a good file of a source with a few bytes flipped, cut, doubled, moved, or put in from
another. Allowed is what an archive can live with: an error of ours, or a frame that is one (rain
that is not negative nor infinite, on a grid of its size). Where a format has a checksum over all
(gzip), a frame has to be the one of the good file. Not allowed: any other exception, a process that
dies, more than ten seconds, more than `MEMORY` bytes. A file is known by its format and number, so
each can be made again: `--format knmi --first 1234 --files 1`. With `--real FOLDER` the good files
are providers' own: the first of each folder in it that is called like a source.
"""

import argparse
import collections
import functools
import gzip
import multiprocessing as mp
import random
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import xarray as xr

from pipelines.decode import IngestSettings, read
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.sources import SOURCES
from pipelines.sources.synthetic import SyntheticRadar, write_archive
from pipelines.units import pack

SLOWEST_S = 10.0
MEMORY = 4 * 2**30
"""Address space of a process that reads, its libraries included."""
NUMBERS = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def seeds() -> dict[str, tuple[str, bytes]]:
    """The source and a good file of each format, as the tests of the sources make them."""
    from tests.pipelines import (
        test_bom,
        test_cf,
        test_fmi_geotiff,
        test_fmi_pgm,
        test_knmi,
        test_meteoswiss,
        test_mrms,
        test_radolan,
    )

    pgm, grib = test_fmi_pgm.composite(), test_mrms.message()
    with tempfile.TemporaryDirectory() as folder:
        write_archive(Path(folder), SyntheticRadar(frames=12))
        odim = min(Path(folder).rglob("*.h5")).read_bytes()
    return {
        "knmi": ("knmi", test_knmi.composite()),
        "odim": ("odim", odim),
        "mrms": ("mrms", grib),
        "mrms.gz": ("mrms", gzip.compress(grib, mtime=0)),
        "fmi-pgm": ("fmi-pgm", pgm),
        "fmi-pgm.gz": ("fmi-pgm", gzip.compress(pgm, mtime=0)),
        "fmi-geotiff": ("fmi-geotiff", test_fmi_geotiff.composite()),
        "meteoswiss": ("meteoswiss", test_meteoswiss.composite()),
        "bom": ("bom", test_bom.rainfields()),
        "cf": ("cf", test_cf.netcdf4(test_cf.dataset())),
        "radolan": ("radolan", test_radolan.composite()),
    }


def real_seeds(folder: Path) -> dict[str, tuple[str, bytes]]:
    """The same of files of the providers, in folders called like their sources."""
    found = {}
    for source in sorted(SOURCES.keys() & {path.name for path in folder.iterdir()}):
        path = min(path for path in (folder / source).iterdir() if path.is_file())
        suffix = ".gz" if path.suffix == ".gz" else ""
        found[source + suffix] = (source, path.read_bytes())
    return found


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few changes, each of a kind that files suffer."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not made:
            break
        at = rng.randrange(len(made))
        length = min(rng.choice((1, 2, 4, 8, 64, 512)), len(made) - at)
        match rng.randrange(7):
            case 0:
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at : at + length] = bytes([rng.choice(NUMBERS)]) * length
            case 2:
                made[at : at + length] = rng.randbytes(length)
            case 3:
                del made[at : at + length]
            case 4:
                made[at:at] = made[at : at + length]
            case 5:
                start = rng.randrange(len(other))
                made[at : at + length] = other[start : start + length]
            case 6:
                del made[at:]
    return bytes(made)


def nth(name: str, number: int, real: str = "") -> tuple[str, bytes]:
    """The source and content of a broken file."""
    all_seeds = seeds_once(real)
    source, content = all_seeds[name]
    rng = random.Random(f"{name} {number}")
    other = all_seeds[rng.choice(sorted(all_seeds))][1]
    return source, mutated(content, other, rng)


@functools.cache
def seeds_once(real: str = "") -> dict[str, tuple[str, bytes]]:
    """`real_seeds` of a folder, or `seeds`; made once a process."""
    return real_seeds(Path(real)) if real else seeds()


def outcome(name: str, number: int, good: xr.DataArray, real: str = "") -> str:
    """What became of a file: an error of ours, the frame it was, another; or what is wrong."""
    source, content = nth(name, number, real)
    try:
        frame = read(content, IngestSettings(source=source))
        Grid.of(frame)
    except SquallError as error:
        memory = isinstance(error.__cause__, MemoryError)
        return "WRONG out of memory" if memory else "refused"
    except BaseException as error:
        return f"WRONG {type(error).__name__}: {error}"
    values = frame.values
    if values.shape != (frame.sizes["y"], frame.sizes["x"]) or np.isinf(values).any():
        return "WRONG no frame"
    if (values < 0).any():
        return "WRONG negative rain"
    pack(values)
    if frame.identical(good) or np.array_equal(values, good.values, equal_nan=True):
        return "the same rain"
    return "WRONG rain despite a checksum" if name.endswith(".gz") else "other rain"


@dataclass
class Report:
    """Of one format."""

    outcomes: collections.Counter = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    peak_bytes: int = 0


def _child(pipe: Connection, name: str, real: str) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, content = seeds_once(real)[name]
    good = read(content, IngestSettings(source=source))
    pipe.send("ready")
    while (number := pipe.recv()) is not None:
        begin = time.perf_counter()
        made = outcome(name, number, good, real)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((made, time.perf_counter() - begin, peak))


def run(name: str, first: int, files: int, real: str = "") -> Report:
    """Read so many broken files of a format, in a process that is replaced where it dies."""
    report, context = Report(), mp.get_context("spawn")
    process = pipe = None
    for number in range(first, first + files):
        if process is None:
            pipe, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, name, real), daemon=True)
            process.start()
            theirs.close()
            assert pipe.recv() == "ready", "the good file is read"
        try:
            pipe.send(number)
            if not pipe.poll(SLOWEST_S):
                raise TimeoutError
            made, seconds, peak = pipe.recv()
            report.slowest_s = max(report.slowest_s, seconds)
            report.peak_bytes = max(report.peak_bytes, peak)
        except (EOFError, OSError, TimeoutError) as error:
            slow = isinstance(error, TimeoutError)
            process.kill()
            process.join()
            made = "WRONG too slow" if slow else f"WRONG died ({process.exitcode})"
            process = None
        report.outcomes[made.split(":")[0]] += 1
        if made.startswith("WRONG"):
            report.wrong.append(f"--format {name} --first {number} --files 1: {made}")
    if process is not None and pipe is not None:
        pipe.send(None)
        process.join(10)
    return report


def main() -> None:
    """Print a line a format, and every file that went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=100_000, help="of all formats together")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--format", help="only this one")
    parser.add_argument("--real", default="", help="a folder of providers' files, by source")
    given = parser.parse_args()
    names = [given.format] if given.format else list(seeds_once(given.real))
    wrong: list[str] = []
    print(
        "| format | files | refused | the same rain | other rain | wrong | slowest | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        files = -(-given.files // len(names))
        report = run(name, given.first, files, given.real)
        wrong += report.wrong
        counts = [report.outcomes[kind] for kind in ("refused", "the same rain", "other rain")]
        cells = [name, files, *counts, len(report.wrong), f"{report.slowest_s:.2f} s"]
        print("|", *(f"{cell} |" for cell in [*cells, f"{report.peak_bytes / 1e6:.0f} MB"]))
        sys.stdout.flush()
    print(*wrong[:200], sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
