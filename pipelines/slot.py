"""One valid time: its files, and which of them becomes the archive's frame. A Dask task each."""

import hashlib
from dataclasses import dataclass, replace

import pandas as pd

from pipelines.archive import Status, opened
from pipelines.decode import Decoded, IngestSettings, decode, decoder, like
from pipelines.errors import FrameError, GridMismatchError
from pipelines.grid import Grid
from pipelines.manifest import ManifestRow, frame_row
from pipelines.sources import FrameFile, get_source
from pipelines.sources.base import content_of
from pipelines.times import now, time_text, utc
from pipelines.workers import run_parallel

FETCHED_S = 60.0
"""So long a file that ended its reader may take to be fetched again, for its hash."""


@dataclass(frozen=True)
class SlotResult:
    """What became of the files of one valid time.

    `rows` are the manifest rows that are new or changed; `fits` says whether any file read now is a
    frame of this archive, `wrong_grid` the other grid that any has. `errors` has a line for each
    file that could not be read.
    """

    time: pd.Timestamp
    rows: list[ManifestRow]
    status: Status
    written: bool = False
    fits: bool = False
    wrong_grid: str | None = None
    errors: tuple[str, ...] = ()


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
    archive = opened(archive_url, version)
    rows = {(row.key, row.sha256): row for row in previous}
    decoded: dict[str, Decoded] = {}
    wrong_grid: str | None = None
    errors: list[str] = []
    for file in files:
        row = _row(file, settings)
        try:
            content = _read(file, settings)
            row = replace(row, sha256=hashlib.sha256(content).hexdigest())
            decoded[row.sha256] = decode(content, file, archive, settings)
            row = replace(row, **decoded[row.sha256].facts)
        except FrameError as error:
            wrong_grid = str(error.found) if isinstance(error, GridMismatchError) else wrong_grid
            errors.append(f"{file.name}: {error}")
            known = rows.get((row.key, row.sha256))
            if known is not None and known.outcome != "bad":
                continue  # what was read once is not lost by settings that do not fit it
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
        errors=tuple(errors),
    )


def give_up(
    archive_url: str,
    version: str,
    settings: IngestSettings,
    files: list[FrameFile],
    previous: list[ManifestRow],
) -> SlotResult:
    """The result of a slot whose files end the process that reads them: bad, and what was stays."""
    error = _deadly()
    tasks = [(file, settings) for file in files]
    hashes = run_parallel(_sha256, tasks, workers=1, on_death=_no_sha256, deadline_s=FETCHED_S)
    bad = [replace(_row(file, settings), outcome="bad", error=str(error)) for file in files]
    rows = [replace(row, sha256=sha256) for row, sha256 in zip(bad, hashes, strict=True)]
    frame = frame_row(previous)
    status = Status[frame.outcome.upper()] if frame else Status.BAD
    errors = tuple(f"{file.name}: {error}" for file in files)
    return SlotResult(files[0].valid_time, rows, status, errors=errors)


def look(file: FrameFile, settings: IngestSettings) -> tuple[Grid, dict[str, str]] | FrameError:
    """What an archive of frames like a file's is made with (`like`), or why it is no frame."""
    try:
        return like(_read(file, settings), settings)
    except FrameError as error:
        return error


def look_away(file: FrameFile, settings: IngestSettings) -> FrameError:
    """The same of a file that ends the process that reads it."""
    return _deadly()


def _sha256(file: FrameFile, settings: IngestSettings) -> str:
    try:
        return hashlib.sha256(_read(file, settings)).hexdigest()
    except FrameError:  # it has gone: it is tried again when it is listed again
        return ""


def _no_sha256(file: FrameFile, settings: IngestSettings) -> str:
    return ""


def _deadly() -> FrameError:
    return FrameError(
        "reading it ends the process",
        found="one that died, or had to be ended because it did not come back",
        expected="a file that can be read, in the memory that a worker has",
        remedy="look at the file and at the workers' memory",
    )


def _read(file: FrameFile, settings: IngestSettings) -> bytes:
    """A file's content; `FrameError` where it has gone or is closed to us."""
    try:
        return content_of(get_source(settings.source), file)
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
        decoder=decoder(settings),
        ingested=time_text(now()),
    )
