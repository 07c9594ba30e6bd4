"""One valid time: its files, and which of them becomes the archive's frame. A Dask task each."""

import datetime as dt
import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from pipelines import storage
from pipelines.archive import Archive, Status
from pipelines.errors import FrameError, GridMismatchError, SquallError
from pipelines.grid import Grid
from pipelines.manifest import ManifestRow, frame_row
from pipelines.section import Section
from pipelines.sources import FrameFile, get_source
from pipelines.times import Duration, format_duration, now, time_text, utc
from pipelines.units import count, pack

CLOCKS_DIFFER = pd.Timedelta("1h")
"""A valid time so much later than now is a clock that differs; later ones are misdated."""


class IngestSettings(Section):
    """Where frames come from and how they are taken in."""

    source: str = Field("odim", description="Format of the files: see `squall sources`.")
    location: str | None = Field(
        None, description="Folder or URL (s3://…) where the provider's files appear."
    )
    timestep: Duration | None = Field(
        None, description="Spacing of frames; the source's own, or the files' own, by default."
    )
    workers: int = Field(2, ge=1, le=256, description="Dask worker processes on this machine.")
    scheduler: str | None = Field(
        None, description="Address of a Dask scheduler; a local one is started by default."
    )
    earliest: dt.datetime = Field(
        dt.datetime(1990, 1, 1), description="Frames before this are misdated: bad, UTC."
    )
    late_after: Duration = Field(
        pd.Timedelta("10min").to_pytimedelta(),
        description="A frame that arrives longer than this after its valid time is late.",
    )
    history_after: Duration = Field(
        pd.Timedelta("1D").to_pytimedelta(),
        description="Arrival longer than this after the valid time is history being loaded: ok.",
    )


@dataclass(frozen=True)
class SlotResult:
    """What became of the files of one valid time.

    `rows` are the manifest rows that are new or changed; `fits` says whether any file read now is a
    frame of this archive, `wrong_grid` the other grid that any has.
    """

    time: pd.Timestamp
    rows: list[ManifestRow]
    status: Status
    written: bool
    fits: bool
    wrong_grid: str | None


@dataclass(frozen=True)
class Decoded:
    """A file's content as the archive stores it: integers (y, x), and what there is to say."""

    stored: NDArray[np.uint16]
    facts: dict[str, Any]


def ingest_slot(
    archive_url: str,
    version: str,
    settings: IngestSettings,
    files: list[FrameFile],
    previous: list[ManifestRow],
) -> SlotResult:
    """Take the files of one valid time: the newest readable content becomes the frame.

    `previous` are the manifest's rows of that time. What becomes of a file follows from all files
    that were ever seen (see `_settle`), so the order of arrival does not count. `version` is the
    archive's, as planned with: a worker opens each version once.
    """
    archive = _open(archive_url, version)
    rows = {(row.key, row.sha256): row for row in previous}
    decoded: dict[str, Decoded] = {}
    wrong_grid: str | None = None
    for file in files:
        row = _row(file, settings)
        try:
            content = _read(file)
            row = replace(row, sha256=hashlib.sha256(content).hexdigest())
            decoded[row.sha256] = _decode(content, file, archive, settings)
            row = replace(row, **decoded[row.sha256].facts)
        except FrameError as error:
            wrong_grid = str(error.found) if isinstance(error, GridMismatchError) else wrong_grid
            row = replace(row, outcome="bad", error=str(error))
        rows[row.key, row.sha256] = row
    settled = _settle(list(rows.values()), settings)
    before, frame = frame_row(previous), frame_row(settled)
    written = frame is not None and frame.sha256 in decoded and not _same(before, frame)
    if frame is not None and written:
        archive.write_frame(files[0].valid_time, decoded[frame.sha256].stored)
    return SlotResult(
        files[0].valid_time,
        rows=[row for row in settled if row not in previous],
        status=Status[frame.outcome.upper()] if frame else Status.BAD,
        written=written,
        fits=bool(decoded),
        wrong_grid=wrong_grid,
    )


def give_up(
    archive_url: str,
    version: str,
    settings: IngestSettings,
    files: list[FrameFile],
    previous: list[ManifestRow],
) -> SlotResult:
    """The result of a slot whose files end the process that reads them: bad, and what was stays."""
    error = FrameError(
        "reading it ends the process",
        found="a worker that died three times",
        expected="a file that can be read, in the memory that a worker has",
        remedy="look at the file and at the workers' memory",
    )
    rows = [replace(_row(file, settings), outcome="bad", error=str(error)) for file in files]
    rows = [
        replace(row, sha256=hashlib.sha256(storage.read_bytes(row.key)).hexdigest()) for row in rows
    ]
    frame = frame_row(previous)
    status = Status[frame.outcome.upper()] if frame else Status.BAD
    return SlotResult(files[0].valid_time, rows, status, written=False, fits=False, wrong_grid=None)


@lru_cache(maxsize=4)
def _open(archive_url: str, version: str) -> Archive:
    """An archive, opened once per process and version."""
    return Archive(archive_url)


def _read(file: FrameFile) -> bytes:
    """A file's content; `FrameError` where it has gone or is closed to us."""
    try:
        return storage.read_bytes(file.url)
    except (FileNotFoundError, PermissionError) as error:
        raise FrameError(
            "a file that was listed and cannot be read",
            found=type(error).__name__,
            expected="a file that stays until it is read, with leave to read it",
            remedy="it is tried again when it is listed again",
        ) from error


def _settle(rows: list[ManifestRow], settings: IngestSettings) -> list[ManifestRow]:
    """The rows of one valid time with the outcome that each has beside the others.

    The content received last is the frame. Of several files with that content the one received
    first is the frame's own (only if that was late, the frame is late), the others are duplicates.
    Ties go by name. Readable files of other content are superseded.
    """
    readable = [row for row in rows if row.outcome != "bad"]
    if not readable:
        return rows
    content = max(readable, key=_rank).sha256
    first = min((row for row in readable if row.sha256 == content), key=_rank)

    def outcome(row: ManifestRow) -> str:
        if row.outcome == "bad":
            return "bad"
        if row.sha256 != content:
            return "superseded"
        if row is not first:
            return "duplicate"
        delay = utc(row.received) - utc(row.valid_time)
        return "late" if settings.late_after < delay <= settings.history_after else "ok"

    return [replace(row, outcome=outcome(row)) for row in rows]


def _rank(row: ManifestRow) -> tuple[str, str]:
    return row.received, row.key


def _same(one: ManifestRow | None, other: ManifestRow) -> bool:
    """Whether two files give the same pixels."""
    return one is not None and (one.sha256, one.decoder) == (other.sha256, other.decoder)


def _decode(content: bytes, file: FrameFile, archive: Archive, settings: IngestSettings) -> Decoded:
    """What the archive stores of a file's content; `FrameError` where it does not fit."""
    if not plausible(file.valid_time, settings):
        raise FrameError(
            "a frame from an impossible time",
            found=time_text(file.valid_time),
            expected=f"{time_text(utc(settings.earliest))} to now",
            remedy="check the file's name; for older archives set ingest.earliest",
        )
    frame = _frame(content, settings)
    inside = pd.Timestamp(frame["time"].item())
    if inside != file.valid_time:
        raise FrameError(
            "name and content differ in time",
            found=f"{time_text(inside)} inside {file.name}",
            expected=time_text(file.valid_time),
            remedy="check the file with its provider; rename it if the content is right",
        )
    if file.valid_time not in archive.times:
        raise FrameError(
            "a time that is not on the archive's axis",
            found=time_text(file.valid_time),
            expected=f"{time_text(archive.times[0])} or a time that is whole timesteps of "
            f"{format_duration(archive.timestep)} away",
            remedy="use another product for another timestep",
        )
    grid = Grid.of(frame)
    if not grid.matches(archive.grid):
        raise GridMismatchError(
            "a grid that is not the archive's",
            found=str(grid),
            expected=str(archive.grid),
            remedy="ingest it into another product",
        )
    stored, clipped = pack(frame.values)
    counts = count(stored)
    fraction = round(counts.observed / stored.size, 4)
    facts = {**counts._asdict(), "clipped": clipped, "observed_fraction": fraction}
    return Decoded(stored, facts)


def _frame(content: bytes, settings: IngestSettings) -> xr.DataArray:
    """What the source makes of a content; whatever goes wrong in there is the file's fault."""
    try:
        return get_source(settings.source).read(content)
    except SquallError:
        raise
    except Exception as error:
        raise FrameError(
            "a file that its reader cannot make sense of",
            found=f"{type(error).__name__}: {error}",
            expected=f"a complete file of source {settings.source}",
            remedy="fetch the file again; if it repeats, report it with the file",
        ) from error


def plausible(time: pd.Timestamp, settings: IngestSettings) -> bool:
    """Whether a radar can have seen this: a misdated file must not stretch the axis."""
    return utc(settings.earliest) <= time <= now() + CLOCKS_DIFFER


def _row(file: FrameFile, settings: IngestSettings) -> ManifestRow:
    """The row of a file that has not been read yet: no hash."""
    source = get_source(settings.source)
    return ManifestRow(
        valid_time=time_text(file.valid_time),
        outcome="ok",
        key=file.url,
        size=file.size,
        received=time_text(file.received),
        sha256="",
        source=source.name,
        decoder=source.decoder,
        ingested=time_text(now()),
    )
