"""Compaction: frames of the live layout into blocks of the training layout, verified.

The training archive lies beside the live one (`training_url`) and has a manifest of its own, which
says what it holds. A block is written where the two manifests differ, read back and compared before
it is committed there. Only then, and only where asked, does the live archive let go of old frames:
their status becomes ``moved`` first, their objects go after. A late or corrected frame of a moved
slot is taken in by ingest as ever; the next compaction puts it into its block.
"""

import contextlib
import itertools
import logging
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines import storage
from pipelines.archive import (
    OWN_ATTRIBUTES,
    TRAINING,
    USABLE,
    Archive,
    Status,
    create,
    opened,
)
from pipelines.axis import chunk_indices
from pipelines.errors import NotFoundError, SquallError
from pipelines.lock import exclusive
from pipelines.manifest import ManifestRow, frame_rows
from pipelines.progress import bar
from pipelines.times import time_text
from pipelines.units import MISSING
from pipelines.workers import run_parallel

log = logging.getLogger(__name__)

Frames = dict[str, ManifestRow]
"""The rows of the files that are an archive's frames, by valid time."""


class VerificationError(SquallError):
    """A block that does not hold what it should. Nothing has been dropped."""


@dataclass
class CompactReport:
    """Blocks written and found up to date, frames in the training archive, frames dropped here."""

    training_url: str
    written: int = 0
    current: int = 0
    frames: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        return (
            f"{self.written} blocks of {TRAINING.frames} timesteps written and verified, "
            f"{self.current} up to date, {self.frames} frames in "
            f"{storage.display(self.training_url)}, {self.dropped} dropped from the live archive"
        )


def training_url(archive_url: str) -> str:
    """Where the training layout of an archive is."""
    return storage.normalise(archive_url).removesuffix(".zarr") + ".training.zarr"


def best_for_training(archive_url: str) -> str:
    """The layout of an archive that training reads: the training layout where there is one."""
    url = training_url(archive_url)
    return url if storage.exists(url) else archive_url


def compact(
    archive_url: str,
    *,
    drop_before: pd.Timestamp | None = None,
    workers: int = 2,
    scheduler: str | None = None,
    progress: bool = False,
) -> CompactReport:
    """Bring the training archive up to date; then drop live frames before `drop_before`, if given.

    Memory per worker is that of one shard column, 24 × 512 × 512 pixels, whatever the archive's
    size. Raises `VerificationError`, with nothing dropped, where a block does not read back as
    written or a frame is not what the manifest says.
    """
    with exclusive(archive_url):
        live = Archive(archive_url)
        url = training_url(archive_url)
        training = _training(live, url)
        report = CompactReport(url)
        here, there = _held(live), _held(training)
        blocks = _blocks(live, training)
        stale = [block for block in blocks if _differ(_of(here, block), _of(there, block))]
        report.current = len(blocks) - len(stale)
        versions = (live.version, training.version)
        tasks = [
            (archive_url, url, versions, block[0], block[-1], _of(here, block)) for block in stale
        ]
        results = run_parallel(write_block, tasks, workers=workers, scheduler=scheduler)
        with contextlib.closing(results), bar(len(tasks), "compact", "block", shown=progress) as b:
            for statuses, block in results:
                new, old = _of(here, block), _of(there, block)
                gone = [replace(row, outcome="superseded") for row in old.values()]
                training.commit([*gone, *new.values()], statuses)
                report.written += 1
                b.update()
        report.frames = len(training.usable_times())
        if drop_before is not None:
            report.dropped = _drop(live, training, drop_before, here)
    log.info("compaction of %s: %s", archive_url, report)
    return report


def _training(live: Archive, url: str) -> Archive:
    """The training archive with an axis that covers the live one's."""
    try:
        training = Archive(url)
    except NotFoundError:
        attrs = {
            name: str(value)
            for name, value in live.group.attrs.items()
            if name not in OWN_ATTRIBUTES
        }
        return create(
            url, live.grid, live.times[0], live.times[-1], live.timestep, attrs, layout=TRAINING
        )
    training.extend(live.times[0], live.times[-1])
    return training


def _held(archive: Archive) -> Frames:
    """The files behind the frames that an archive holds, or held before they moved."""
    status = archive.status()
    times = {time_text(time) for time in status.index[status.isin([*USABLE, Status.MOVED])]}
    return {time: row for time, row in frame_rows(archive.url).items() if time in times}


def _blocks(live: Archive, training: Archive) -> list[pd.DatetimeIndex]:
    """The times of the write units of the training archive in which the live one has frames."""
    status = live.status()
    holds = training.times.get_indexer(status.index[status.isin([*USABLE, Status.MOVED])])
    starts = (np.unique(holds // TRAINING.frames) * TRAINING.frames).tolist()
    return [training.times[start : start + TRAINING.frames] for start in starts]


def _of(frames: Frames, block: pd.DatetimeIndex) -> Frames:
    return {text: frames[text] for text in map(time_text, block) if text in frames}


def _differ(here: Frames, there: Frames) -> bool:
    """Whether the two archives' frames of a block come from other files or decoders."""
    return {time: _content(row) for time, row in here.items()} != {
        time: _content(row) for time, row in there.items()
    }


def _content(row: ManifestRow) -> tuple[str, str]:
    return row.sha256, row.decoder


def write_block(
    live_url: str,
    url: str,
    versions: tuple[str, str],
    first: pd.Timestamp,
    last: pd.Timestamp,
    frames: Frames,
) -> tuple[dict[pd.Timestamp, Status], pd.DatetimeIndex]:
    """Copy the frames from `first` to `last` into their block, read it back, compare. A Dask task.

    Returns the statuses to commit, and the times.
    """
    live, training = opened(live_url, versions[0]), opened(url, versions[1])
    times = pd.date_range(first, last, freq=live.timestep)
    status, held = live.status().reindex(times, fill_value=Status.MISSING), training.status()
    here = status.isin(USABLE).to_numpy()
    moved = ((status == Status.MOVED) & held.reindex(times).isin(USABLE)).to_numpy()
    slots = slice(training.slot(first), training.slot(last) + 1)
    totals = np.zeros((len(times), 2), np.int64)
    for y, x in _columns(live.grid.shape):
        block = np.full((len(times), y.stop - y.start, x.stop - x.start), MISSING, np.uint16)
        for k in np.flatnonzero(here).tolist():
            slot = live.slot(times[k])
            block[k] = live.read_stored(slice(slot, slot + 1), y, x)[0]
        if moved.any():
            block[moved] = training.read_stored(slots, y, x)[moved]
        training.write_block(slots, y, x, block)
        if not np.array_equal(training.read_stored(slots, y, x), block):
            raise VerificationError(
                "a block does not read back as it was written",
                found=f"other pixels in rows {y}, columns {x} from {time_text(first)}",
                expected="what the live archive holds",
                remedy="check the disk or bucket, then compact again; nothing was dropped",
            )
        totals += _sums(block)
    statuses = {}
    for k, time in enumerate(times):
        statuses[time] = Status.MISSING
        if here[k] or moved[k]:
            row = frames.get(time_text(time))
            _check(time, row, totals[k])
            statuses[time] = Status.LATE if row and row.outcome == "late" else Status.OK
    return statuses, times


def _columns(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The shards' rows and columns."""
    assert TRAINING.shard is not None
    ys, xs = (
        [
            slice(start, min(start + TRAINING.shard, size))
            for start in range(0, size, TRAINING.shard)
        ]
        for size in shape
    )
    return list(itertools.product(ys, xs))


def _sums(stored: NDArray[np.uint16]) -> NDArray[np.int64]:
    """(time, y, x) → (time, 2): pixels observed, and the sum of their integers."""
    missing = np.count_nonzero(stored == MISSING, axis=(1, 2))
    observed = stored[0].size - missing
    total = stored.sum(axis=(1, 2), dtype=np.int64) - missing * MISSING
    return np.stack([observed, total], axis=1)


def _check(time: pd.Timestamp, row: ManifestRow | None, sums: NDArray[np.int64]) -> None:
    """Raise where a frame is not what the manifest says it is (rows from before say nothing)."""
    expected = None if row is None or row.total is None else (row.observed, row.total)
    if row is None or (expected is not None and expected != tuple(sums.tolist())):
        raise VerificationError(
            f"the frame at {time_text(time)} is not what the manifest says",
            found=f"{sums[0]} pixels observed, {sums[1]} hundredths of mm/h in all",
            expected=f"{expected} of {row.key}" if row else "a row of the file it came from",
            remedy="run `squall archive validate --repair`, then ingest; nothing was dropped",
        )


def _drop(live: Archive, training: Archive, before: pd.Timestamp, frames: Frames) -> int:
    """Let go of the live frames before a time, each of which the training archive has."""
    status = live.status()
    old = status.index < before
    ready = old & status.isin(USABLE).to_numpy()
    times = pd.DatetimeIndex(status.index[ready])
    there = _held(training)
    for time in times:
        held, row = there.get(time_text(time)), frames[time_text(time)]
        if held is None or _content(held) != _content(row):
            raise VerificationError(
                f"the frame at {time_text(time)} is not in the training archive",
                found="no row of its file there",
                expected=row.key,
                remedy="compact again; nothing was dropped",
            )
    live.commit([], dict.fromkeys(times, Status.MOVED))
    gone = {live.slot(time) for time in status.index[old & (live.status() == Status.MOVED)]}
    base = storage.join(live.url, "rain_rate")
    for key, (slot, *_) in chunk_indices(live.url, live.root_metadata, "rain_rate").items():
        if slot in gone:
            storage.remove(f"{base}/{key}")
    return len(times)
