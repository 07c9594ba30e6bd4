"""One valid time: its files, and which of them becomes the archive's frame. A Dask task each."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from pipelines.archive import Archive, ManifestRow, Status
from pipelines.errors import FrameError, GridMismatchError
from pipelines.grid import Grid
from pipelines.section import Section
from pipelines.sources import FrameFile, get_source
from pipelines.sources.base import content_of
from pipelines.times import Duration, format_duration, now, time_text, utc
from pipelines.units import pack


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
        content = content_of(get_source(settings.source), file)
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
    if not pd.isna(inside) and inside != file.valid_time:
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
