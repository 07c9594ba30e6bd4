"""A file's content as the archive stores it: read, checked, quality controlled, regridded, packed.

Whatever a file is, what comes out is integers on the archive's grid or a `FrameError`.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from pipelines import quality
from pipelines.archive import Archive
from pipelines.errors import FrameError, GridMismatchError, SquallError
from pipelines.grid import Grid
from pipelines.quality import QualitySettings
from pipelines.regrid import RegridSettings, regrid, target_grid
from pipelines.section import Section, Url
from pipelines.sources import FrameFile, get_source
from pipelines.times import Duration, format_duration, now, time_text, utc
from pipelines.units import count, pack

CLOCKS_DIFFER = pd.Timedelta("1h")
"""A valid time so much later than now is a clock that differs; later ones are misdated."""


class IngestSettings(Section):
    """Where frames come from and how they are taken in."""

    source: str = Field("odim", description="Format of the files: see `squall sources`.")
    location: Url | None = Field(
        None, description="Folder or URL (s3://…) where the provider's files appear."
    )
    quality: QualitySettings = QualitySettings()
    regrid: RegridSettings = RegridSettings()
    timestep: Duration | None = Field(
        None, description="Spacing of frames; the source's own, or the files' own, by default."
    )
    workers: int = Field(2, ge=1, le=256, description="Dask worker processes on this machine.")
    scheduler: Url | None = Field(
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
class Decoded:
    """A file's content as the archive stores it: integers (y, x), and what there is to say."""

    stored: NDArray[np.uint16]
    facts: dict[str, Any]


def decode(content: bytes, file: FrameFile, archive: Archive, settings: IngestSettings) -> Decoded:
    """What the archive stores of a file's content; `FrameError` where it does not fit."""
    if not plausible(file.valid_time, settings):
        raise FrameError(
            "a frame from an impossible time",
            found=time_text(file.valid_time),
            expected=f"{time_text(utc(settings.earliest))} to now",
            remedy="check the file's name; for older archives set ingest.earliest",
        )
    frame = read(content, settings)
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
            expected=f"{time_text(archive.times[0])} or a time that is whole timesteps of "
            f"{format_duration(archive.timestep)} away",
            remedy="use another product for another timestep",
        )
    source_grid = Grid.of(frame)
    grid = _target(settings.regrid, source_grid)
    if not grid.matches(archive.grid):
        raise GridMismatchError(
            "a grid that is not the archive's",
            found=str(grid),
            expected=str(archive.grid),
            remedy="ingest it into another product",
        )
    frame, masked = quality.apply(frame, settings.quality)
    if grid is not source_grid:
        frame = regrid(frame, archive.grid, settings.regrid.observed_fraction)
    stored, clipped = pack(frame.values)
    counts = count(stored)
    facts = {
        **counts._asdict(),
        "observed_fraction": round(counts.observed / stored.size, 4),
        "clipped": clipped,
        "masked": {rule: pixels for rule, pixels in masked.items() if pixels},
    }
    return Decoded(stored, facts)


def decoder(settings: IngestSettings) -> str:
    """Name and version of all that makes pixels of a content: the source's reader, and settings.

    What a manifest row says of its frame; a file is read again where it has changed.
    """
    changed = {
        name: section.model_dump(mode="json", exclude_defaults=True)
        for name, section in (("quality", settings.quality), ("regrid", settings.regrid))
    }
    name = get_source(settings.source).decoder
    if not any(changed.values()):
        return name
    return f"{name}+{hashlib.sha256(repr(changed).encode()).hexdigest()[:8]}"


def like(content: bytes, settings: IngestSettings) -> tuple[Grid, dict[str, str]]:
    """What an archive of frames like a content's is made with: its grid, and what to say of it.

    The latter is how rain rate came about: interval of an accumulation, Z–R relation, quantity.
    Raises `FrameError` where the content is no frame.
    """
    frame = read(content, settings)
    own = {"standard_name", "long_name", "units", "grid_mapping"}
    told = {name: str(value) for name, value in frame.attrs.items() if name not in own}
    return _target(settings.regrid, Grid.of(frame)), told


def _target(settings: RegridSettings, source: Grid) -> Grid:
    """The source's own grid itself, where nothing else is asked for."""
    if settings == RegridSettings():
        return source
    return _target_of(settings, source.crs_wkt, source.x.tobytes(), source.y.tobytes())


@lru_cache(maxsize=4)
def _target_of(settings: RegridSettings, crs_wkt: str, x: bytes, y: bytes) -> Grid:
    return target_grid(settings, Grid(crs_wkt, np.frombuffer(x), np.frombuffer(y)))


def read(content: bytes, settings: IngestSettings) -> xr.DataArray:
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
    earliest, latest = plausible_period(settings)
    return earliest <= time <= latest


def plausible_period(settings: IngestSettings) -> tuple[pd.Timestamp, pd.Timestamp]:
    """The first and the last time that a radar can have seen."""
    return utc(settings.earliest), now() + CLOCKS_DIFFER
