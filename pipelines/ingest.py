"""Ingest: files of a source into the archive, in parallel, in any order, as often as you like.

The plan is made from listing and manifest alone: a file that is settled (same key, size, arrival
and decoder) is not read again. What is left is grouped by valid time; each group is one Dask task
that reads, checks, packs and writes one frame, so tasks never share a write unit. The process that
planned is the only one that commits manifest and status.

A file that cannot become a frame ends as a manifest row with its error and, where its slot holds
nothing better, as status bad. It never stops the run.
"""

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from pipelines import storage
from pipelines.archive import (
    Archive,
    ManifestRow,
    Status,
    create,
    read_manifest,
)
from pipelines.errors import FrameError, GridMismatchError, NoFramesError, NotFoundError
from pipelines.grid import Grid
from pipelines.progress import bar
from pipelines.section import Section
from pipelines.sources import FrameFile, get_source
from pipelines.times import Duration, format_duration, now, time_text, utc
from pipelines.units import pack
from pipelines.workers import run_parallel

log = logging.getLogger(__name__)

COMMIT_FRAMES = 24
"""Frames per commit of manifest and status."""


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
    late_after: Duration = Field(
        pd.Timedelta("10min").to_pytimedelta(),
        description="A frame that arrives longer than this after its valid time is late.",
    )
    history_after: Duration = Field(
        pd.Timedelta("1D").to_pytimedelta(),
        description="Arrival longer than this after the valid time is history being loaded: ok.",
    )


@dataclass
class IngestReport:
    """What an ingest did.

    `outcomes` counts files by outcome; `frames` lists the valid times newly committed, in order of
    their commit; `errors` has a line for each bad file; `settled` files needed no reading.
    """

    archive_url: str
    found: int = 0
    settled: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    frames: list[pd.Timestamp] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        return f"{self.found} files: {counts or 'nothing new'}, {self.settled} already settled"


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


def arrival(file: FrameFile, history_after: pd.Timedelta) -> pd.Timestamp:
    """When a frame became known: its file's arrival, or its valid time where it is history."""
    return file.valid_time if file.received - file.valid_time > history_after else file.received


def ingest(
    archive_url: str,
    settings: IngestSettings,
    files: Iterable[FrameFile] | None = None,
    *,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    progress: bool = False,
) -> IngestReport:
    """Take the files at the settings' location (or `files`) into the archive; create it if need be.

    Raises `NoFramesError` where there are none, and `GridMismatchError` where the archive exists
    and every readable file has another grid than the archive's: then the wrong archive was named.
    """
    source = get_source(settings.source)
    if files is None:
        if settings.location is None:
            raise NoFramesError(
                "no location to ingest from",
                found="ingest.location is not set",
                expected="a folder or URL with the provider's files",
                remedy="name it: `squall ingest DIR --source NAME`, or set ingest.location",
            )
        files = source.find(settings.location, start, end)
    files = list(files)
    report = IngestReport(archive_url, found=len(files))
    try:
        archive = Archive(archive_url)
    except NotFoundError:
        archive = _create_for(archive_url, files, settings)
    todo, previous = _plan(archive, files, source.decoder)
    report.settled = len(files) - sum(len(group) for group in todo)
    if todo:
        archive.extend(_axis_end(_newest(group[0].valid_time for group in todo)))
        listed = {file.url for file in files}
        rows = [row for known in previous.values() for row in known]
        fits = any(row.outcome != "bad" and row.key in listed for row in rows)
        _run(archive, todo, previous, settings, report, fits=fits, progress=progress)
    log.info("ingest into %s: %s", archive_url, report)
    return report


def _create_for(url: str, files: list[FrameFile], settings: IngestSettings) -> Archive:
    """An archive on the grid of the first readable file, with whole days of slots."""
    source = get_source(settings.source)
    problems = []
    for file in files:
        try:
            grid = Grid.of(source.read(storage.read_bytes(file.url)))
            break
        except FrameError as error:
            problems.append(error)
    else:
        raise NoFramesError(
            f"no readable {source.name} frame",
            found=f"{len(files)} file(s), the first: {problems[0] if problems else 'none'}",
            expected="at least one complete file",
            remedy="check that the source is right (`squall sources`) and the files are whole",
        )
    times = pd.DatetimeIndex(sorted({file.valid_time for file in files}))
    timestep = _timestep(times, settings)
    day = times[0].floor("D")
    start = times[0] - (times[0] - day) // timestep * timestep
    log.info("creating %s: %s every %s", url, grid, timestep)
    return create(
        url,
        grid,
        start,
        _axis_end(_newest(times)),
        timestep,
        {"source": source.title, "license": source.licence},
    )


def _newest(times: Iterable[pd.Timestamp]) -> pd.Timestamp:
    """The newest time that can be true: a file misnamed into the future must not grow the axis."""
    times = list(times)
    return max((time for time in times if time <= now() + pd.Timedelta("1D")), default=min(times))


def _axis_end(time: pd.Timestamp) -> pd.Timestamp:
    """The last moment of a day: the axis grows by whole days."""
    return time.floor("D") + pd.Timedelta("1D") - pd.Timedelta("1ns")


def _timestep(times: pd.DatetimeIndex, settings: IngestSettings) -> pd.Timedelta:
    """As set; else the source's own; else the commonest spacing of the files."""
    own = get_source(settings.source).timestep
    if settings.timestep is not None:
        return pd.Timedelta(settings.timestep)
    if own is not None:
        return own
    if len(times) < 2:
        raise NoFramesError(
            "the timestep is unknown",
            found="one frame",
            expected="at least two frames, or the setting ingest.timestep",
            remedy="add `--timestep 5min`",
        )
    return pd.Timedelta(pd.Series(times.diff()[1:]).mode().iloc[0])


def _plan(
    archive: Archive, files: list[FrameFile], decoder: str
) -> tuple[list[list[FrameFile]], dict[str, list[ManifestRow]]]:
    """Groups of files by valid time that need reading, and the manifest's rows of those times.

    Rows of a slot whose status is missing are of a commit that died half way: they do not count.
    """
    days = {time_text(file.valid_time)[:10] for file in files}
    known: dict[str, list[ManifestRow]] = {}
    for row in read_manifest(archive.url, sorted(days)):
        known.setdefault(row.valid_time, []).append(row)
    status = archive.status()
    for time in [text for text in known if status.get(utc(text)) == Status.MISSING]:
        del known[time]

    def settled(file: FrameFile) -> bool:
        return any(
            (row.key, row.size, row.received, row.decoder)
            == (file.url, file.size, time_text(file.received), decoder)
            for row in known.get(time_text(file.valid_time), [])
        )

    groups: dict[pd.Timestamp, list[FrameFile]] = {}
    for file in files:
        if not settled(file):
            groups.setdefault(file.valid_time, []).append(file)
    return [groups[time] for time in sorted(groups)], known


def _run(
    archive: Archive,
    todo: list[list[FrameFile]],
    previous: dict[str, list[ManifestRow]],
    settings: IngestSettings,
    report: IngestReport,
    *,
    fits: bool,
    progress: bool,
) -> None:
    """Read what is to do and commit it. `fits`: whether a file listed with it is a frame here."""
    existing = bool(previous) or len(archive.usable_times()) > 0
    pending: list[SlotResult] = []
    wrong_grid: str | None = None
    current = archive.status()
    tasks = [
        (archive.url, settings, group, previous.get(time_text(group[0].valid_time), []))
        for group in todo
    ]
    results = run_parallel(
        ingest_slot, tasks, workers=settings.workers, scheduler=settings.scheduler
    )
    with contextlib.closing(results), bar(len(tasks), "ingest", "frame", shown=progress) as shown:
        for result in results:
            shown.update()
            pending.append(result)
            wrong_grid = wrong_grid or result.wrong_grid
            fits |= result.fits
            if len(pending) >= COMMIT_FRAMES:
                _commit(archive, pending, current, report)
                pending = []
                if existing and wrong_grid and not fits:
                    break
        _commit(archive, pending, current, report)
    if existing and wrong_grid and not fits:
        raise GridMismatchError(
            f"every frame has another grid than the archive {storage.display(archive.url)}",
            found=wrong_grid,
            expected=str(archive.grid),
            remedy="name another product (--product), or the location that belongs to this one",
        )


def _commit(
    archive: Archive, results: list[SlotResult], current: pd.Series, report: IngestReport
) -> None:
    """Manifest, then status. A bad file never replaces a good frame's status."""
    statuses: dict[pd.Timestamp, Status] = {}
    for result in results:
        if result.status != Status.BAD or current.get(result.time) == Status.MISSING:
            statuses[result.time] = result.status
        if result.written:
            report.frames.append(result.time)
        report.outcomes.update(row.outcome for row in result.rows)
        report.errors += [
            f"{row.key.rsplit('/', 1)[-1]}: {row.error}" for row in result.rows if row.error
        ]
    archive.commit([row for result in results for row in result.rows], statuses)


# One slot, in a worker ---------------------------------------------------------------------------


def ingest_slot(
    archive_url: str,
    settings: IngestSettings,
    files: list[FrameFile],
    previous: list[ManifestRow],
) -> SlotResult:
    """Take the files of one valid time: the newest readable content becomes the frame.

    `previous` are the manifest's rows of that time. What becomes of a file follows from all files
    that were ever seen (see `_settle`), so the order of arrival does not count.
    """
    archive = Archive(archive_url)
    time = files[0].valid_time
    rows = {(row.key, row.sha256): row for row in previous}
    decoded: dict[str, NDArray[np.uint16]] = {}
    wrong_grid: str | None = None
    for file in files:
        content = storage.read_bytes(file.url)
        row = _row(file, content, settings)
        try:
            decoded[row.sha256], clipped, observed = _decode(content, file, archive, settings)
            row = replace(row, clipped=clipped, observed_fraction=round(observed, 4))
        except FrameError as error:
            wrong_grid = str(error.found) if isinstance(error, GridMismatchError) else wrong_grid
            row = replace(row, outcome="bad", error=str(error))
        rows[row.key, row.sha256] = row
    settled = _settle(list(rows.values()), settings)
    before, frame = _frame_row(previous), _frame_row(settled)
    written = frame is not None and frame.sha256 in decoded and not _same(before, frame)
    if frame is not None and written:
        archive.write_frame(time, decoded[frame.sha256])
    return SlotResult(
        time,
        rows=[row for row in settled if row not in previous],
        status=Status[frame.outcome.upper()] if frame else Status.BAD,
        written=written,
        fits=bool(decoded),
        wrong_grid=wrong_grid,
    )


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


def _frame_row(rows: list[ManifestRow]) -> ManifestRow | None:
    return next((row for row in rows if row.outcome in ("ok", "late")), None)


def _same(one: ManifestRow | None, other: ManifestRow) -> bool:
    """Whether two files give the same pixels."""
    return one is not None and (one.sha256, one.decoder) == (other.sha256, other.decoder)


def _decode(
    content: bytes, file: FrameFile, archive: Archive, settings: IngestSettings
) -> tuple[NDArray[np.uint16], int, float]:
    """Stored integers, clipped pixels and observed fraction; `FrameError` where it does not fit."""
    frame = get_source(settings.source).read(content)
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
            expected=f"{time_text(archive.times[0])} or later, "
            f"every {format_duration(archive.timestep)}",
            remedy="use another product for another timestep or an earlier period",
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
    return stored, clipped, float(frame["observed"].mean())


def _row(file: FrameFile, content: bytes, settings: IngestSettings) -> ManifestRow:
    source = get_source(settings.source)
    return ManifestRow(
        valid_time=time_text(file.valid_time),
        outcome="ok",
        key=file.url,
        size=file.size,
        received=time_text(file.received),
        sha256=hashlib.sha256(content).hexdigest(),
        source=source.name,
        decoder=source.decoder,
        ingested=time_text(now()),
    )
