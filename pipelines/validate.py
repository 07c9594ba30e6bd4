"""Validation: is every frame of an archive what its manifest says, and nothing else there?

Reads every committed frame once. Checksums in the store tell damaged bytes; the manifest's sums
tell a frame that is whole but not the one that was ingested.
"""

import contextlib
from dataclasses import dataclass, field

import pandas as pd

from pipelines import storage
from pipelines.archive import USABLE, Archive, Status, opened
from pipelines.axis import leftovers, remove_leftovers
from pipelines.lock import exclusive
from pipelines.manifest import ManifestRow, frame_rows
from pipelines.progress import bar
from pipelines.times import time_text, utc
from pipelines.units import Counts, count
from pipelines.workers import run_parallel


@dataclass
class ValidationReport:
    """What a validation found: frames read, problems by valid time, chunks of an older axis."""

    archive_url: str
    frames: int = 0
    problems: dict[pd.Timestamp, str] = field(default_factory=dict)
    leftovers: int = 0
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or was."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{storage.display(self.archive_url)}: {self.frames} frames read, "
            f"{len(self.problems)} with a problem, {self.leftovers} chunks of an older axis"
        ]
        lines += [f"- {time_text(time)}: {text}" for time, text in self.problems.items()]
        if self.problems or self.leftovers:
            lines.append(
                "repaired: those slots are missing now; ingest reads their files again"
                if self.repaired
                else "add --repair to set those slots to missing, so that ingest reads them again"
            )
        return "\n".join(lines)


def validate(
    archive_url: str,
    *,
    repair: bool = False,
    workers: int = 2,
    scheduler: str | None = None,
    progress: bool = False,
) -> ValidationReport:
    """Check every slot of an archive against its manifest; with `repair`, mend what can be mended.

    A repaired slot is missing until the next ingest reads its file again; chunks left over from an
    older axis go.
    """
    with exclusive(archive_url):
        archive = Archive(archive_url)
        report = ValidationReport(archive.url, repaired=repair)
        status = archive.status()
        rows = {utc(time): row for time, row in frame_rows(archive.url).items()}
        for time, row in rows.items():
            if status.get(time, Status.MISSING) in (Status.MISSING, Status.BAD):
                name = Status(status.get(time, Status.MISSING)).name.lower()
                report.problems[time] = f"status {name}, yet the manifest names {row.key}"
        times = list(status.index[status.isin(USABLE)])
        version = archive.version
        tasks = [(archive.url, version, time, rows.get(time)) for time in times]
        results = run_parallel(check_frame, tasks, workers=workers, scheduler=scheduler)
        with contextlib.closing(results), bar(len(tasks), "validate", "frame", shown=progress) as b:
            for time, problem in results:
                report.frames += 1
                if problem:
                    report.problems[time] = problem
                b.update()
        report.problems = dict(sorted(report.problems.items()))
        report.leftovers = sum(map(len, leftovers(archive.url, archive.root_metadata).values()))
        if repair:
            slots = [time for time in report.problems if time in status.index]
            archive.commit([], dict.fromkeys(slots, Status.MISSING))
            remove_leftovers(archive.url, archive.root_metadata)
    return report


def check_frame(
    archive_url: str, version: str, time: pd.Timestamp, row: ManifestRow | None
) -> tuple[pd.Timestamp, str | None]:
    """What is wrong with the frame at a time, None where nothing is. A Dask task."""
    archive = opened(archive_url, version)
    slot = archive.slot(time)
    if row is None:
        return time, "no row in the manifest says where it is from"
    try:
        stored = archive.read_stored(slice(slot, slot + 1))[0]
    except ValueError as error:
        return time, f"damaged: {error}"
    found, said = count(stored), Counts(row.observed, row.wet, row.total)  # type: ignore[arg-type]
    if None not in said and found != said:
        return time, f"other pixels than those of {row.key}: found {found}, expected {said}"
    return time, None
