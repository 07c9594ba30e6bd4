"""Ingest: files of a source into the archive, in parallel, in any order, as often as you like.

The plan is made from listing and manifest alone: a file that is settled (same key, size, arrival
and decoder) is not read again. What is left is grouped by valid time; each group is one Dask task
that reads, checks, packs and writes one frame, so tasks never share a write unit. The process that
planned is the only one that commits manifest and status.

A file that cannot become a frame ends as a manifest row with its error and, where its slot holds
nothing better, as status bad. It never stops the run.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from pipelines import storage
from pipelines.archive import Archive, Status, create
from pipelines.decode import IngestSettings, decoder, plausible_period
from pipelines.errors import FrameError, GridMismatchError, NoFramesError, NotFoundError
from pipelines.lock import exclusive
from pipelines.manifest import ManifestRow, read_manifest
from pipelines.progress import bar
from pipelines.slot import SlotResult, give_up, ingest_slot, look, look_away
from pipelines.sources import FrameFile, get_source
from pipelines.times import time_text, utc
from pipelines.workers import get_ready, run_parallel

log = logging.getLogger(__name__)

COMMIT_FRAMES = 24
"""Frames per commit of manifest and status."""
HUNG_S = 120.0
"""A file that has been read for so long will not be read: some broken HDF5 files hang HDF5. It is
twice as long as an object store's client waits before it asks again."""


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


def warm_up() -> None:
    """Have what reads files made ready, while the caller does other things."""
    get_ready(ingest_slot)


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
    with exclusive(archive_url):
        return _ingest(archive_url, settings, files, progress=progress)


def _ingest(
    archive_url: str, settings: IngestSettings, files: list[FrameFile], *, progress: bool
) -> IngestReport:
    report = IngestReport(archive_url, found=len(files))
    try:
        archive = Archive(archive_url)
    except NotFoundError:
        archive = _create_for(archive_url, files, settings)
    todo, previous = _plan(archive, files, decoder(settings))
    report.settled = len(files) - sum(len(group) for group in todo)
    if todo:
        earliest, latest = plausible_period(settings)
        times = [group[0].valid_time for group in todo]
        times = [time for time in times if earliest <= time <= latest]
        if times:
            archive.extend(_axis_start(times[0], archive), _axis_end(times[-1]))
        settled = {file.url for file in files} - {file.url for group in todo for file in group}
        rows = [row for known in previous.values() for row in known]
        fits = any(row.outcome != "bad" and row.key in settled for row in rows)
        _run(archive, todo, previous, settings, report, fits=fits, progress=progress)
    log.info("ingest into %s: %s", archive_url, report)
    return report


def _create_for(url: str, files: list[FrameFile], settings: IngestSettings) -> Archive:
    """An archive on the grid of the first readable file, with whole days of slots."""
    source = get_source(settings.source)
    problems = []
    tasks = [(file, settings) for file in files]
    looks = run_parallel(look, tasks, workers=1, on_death=look_away, deadline_s=HUNG_S)
    with contextlib.closing(looks):
        for seen in looks:
            if not isinstance(seen, FrameError):
                grid, told = seen
                break
            problems.append(seen)
        else:
            raise NoFramesError(
                f"no readable {source.name} frame",
                found=f"{len(files)} file(s), the first: {problems[0] if problems else 'none'}",
                expected="at least one complete file",
                remedy="check that the source is right (`squall sources`) and the files are whole",
            )
    times = pd.DatetimeIndex(sorted({file.valid_time for file in files}))
    times = times[times.slice_indexer(*plausible_period(settings))]
    if len(times) == 0:
        raise NoFramesError(
            f"no {source.name} frame with a plausible time",
            found=f"{time_text(files[0].valid_time)} and the like",
            expected=f"{time_text(utc(settings.earliest))} to now",
            remedy="check the files' names; for older archives set ingest.earliest",
        )
    timestep = _timestep(times, settings)
    day = times[0].floor("D")
    start = times[0] - (times[0] - day) // timestep * timestep
    log.info("creating %s: %s every %s", url, grid, timestep)
    return create(
        url,
        grid,
        start,
        _axis_end(times[-1]),
        timestep,
        {"source": source.title, "license": source.licence, **told},
    )


def _axis_start(time: pd.Timestamp, archive: Archive) -> pd.Timestamp:
    """The first slot of a day: the axis grows by whole days."""
    first = archive.times[0]
    return first - max(0, (first - time.floor("D")) // archive.timestep) * archive.timestep


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
    archive: Archive, files: list[FrameFile], decoder_now: str
) -> tuple[list[list[FrameFile]], dict[str, list[ManifestRow]]]:
    """Groups of files by valid time that need reading, and the manifest's rows of those times.

    Rows of a slot whose status is missing are of a commit that died half way: they do not count.
    """
    if not files:
        return [], {}
    days = {time_text(file.valid_time)[:10] for file in files}
    known: dict[str, list[ManifestRow]] = {}
    for row in read_manifest(archive.url, sorted(days)):
        known.setdefault(row.valid_time, []).append(row)
    first, last = utc(min(days)), utc(max(days)) + pd.Timedelta("1D")
    status = archive.status(first, last)
    for time in [text for text in known if status.get(utc(text)) == Status.MISSING]:
        del known[time]

    settled = {
        (text, row.key, row.size, row.received, row.decoder)
        for text, rows in known.items()
        for row in rows
        if row.sha256
    }
    groups: dict[pd.Timestamp, list[FrameFile]] = {}
    for file in files:
        own = time_text(file.valid_time), file.url, file.size, time_text(file.received), decoder_now
        if own not in settled:
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
    existing = bool(previous) or archive.newest_usable() is not None
    pending: list[SlotResult] = []
    wrong_grid: str | None = None
    current = archive.status(todo[0][0].valid_time, todo[-1][0].valid_time)
    version = archive.version
    tasks = [
        (archive.url, version, settings, group, previous.get(time_text(group[0].valid_time), []))
        for group in todo
    ]
    results = run_parallel(
        ingest_slot,
        tasks,
        workers=settings.workers,
        scheduler=settings.scheduler,
        on_death=give_up,
        deadline_s=HUNG_S,
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
        report.errors += result.errors
    archive.commit([row for result in results for row in result.rows], statuses)
