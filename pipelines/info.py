"""What an archive holds, in a screenful: axis, statuses, files, sizes, frames that stand out."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipelines import storage
from pipelines.archive import USABLE, Archive, Status
from pipelines.compact import training_url
from pipelines.grid import Grid
from pipelines.manifest import ManifestRow, frame_rows, frames_digest, read_manifest
from pipelines.quality import QualitySettings, sudden_jumps
from pipelines.times import time_text, utc
from pipelines.units import SCALE_MM_H

GB = 1e9


@dataclass(frozen=True)
class ArchiveInfo:
    """An archive at a glance.

    `statuses` counts slots, `outcomes` and `decoders` files; `masked` counts pixels that quality
    control took out, by rule. `size` is in bytes, of the pixels; `suspects` are the frames that
    `pipelines.quality.sudden_jumps` flags, `training` the archive in the training layout, if any.
    """

    url: str
    layout: str
    grid: Grid
    timestep: pd.Timedelta
    times: pd.DatetimeIndex
    usable: pd.DatetimeIndex
    statuses: Counter[str]
    outcomes: Counter[str]
    decoders: Counter[str]
    clipped: int
    masked: Counter[str]
    size: int
    suspects: pd.DataFrame
    training: "ArchiveInfo | None"

    @property
    def gb_per_year(self) -> float:
        """What a year of frames like those here takes; NaN where there are none."""
        if len(self.usable) == 0:
            return float("nan")
        return self.size / len(self.usable) * (pd.Timedelta("365D") / self.timestep) / GB


def summarise(archive_url: str, quality: QualitySettings) -> ArchiveInfo:
    """Look at an archive; only metadata, manifest and the listing of its objects are read.

    Raises `NotFoundError` where there is none.
    """
    archive = Archive(archive_url)
    status = archive.status()
    rows = read_manifest(archive.url)
    training = training_url(archive.url)
    has_training = storage.exists(storage.join(training, storage.ROOT_METADATA))
    return ArchiveInfo(
        url=archive.url,
        layout=archive.layout.name,
        grid=archive.grid,
        timestep=archive.timestep,
        times=archive.times,
        usable=pd.DatetimeIndex(status.index[status.isin(USABLE)]),
        statuses=Counter(Status(code).name.lower() for code in status),
        outcomes=Counter(row.outcome for row in rows),
        decoders=Counter(f"{row.source} by {row.decoder}" for row in rows if row.outcome != "bad"),
        clipped=sum(row.clipped for row in rows),
        masked=sum((Counter(row.masked) for row in rows), Counter()),
        size=storage.size(storage.join(archive.url, "rain_rate")),
        suspects=sudden_jumps(frame_statistics(frame_rows(archive.url), archive.grid), quality),
        training=summarise(training, QualitySettings()) if has_training else None,
    )


def frame_statistics(frames: dict[str, ManifestRow], grid: Grid) -> pd.DataFrame:
    """Observed fraction, mean rain rate and wet fraction of every frame, as the manifest says.

    Means are over the observed pixels, NaN where there are none.
    """
    counted = {utc(time): row for time, row in frames.items() if row.total is not None}
    columns = ("observed", "wet", "total")
    table = pd.DataFrame(
        [[getattr(row, name) for name in columns] for row in counted.values()],
        index=pd.DatetimeIndex(list(counted), name="time"),
        columns=list(columns),
        dtype=np.float64,
    )
    some = table["observed"].where(table["observed"] > 0)
    return pd.DataFrame(
        {
            "observed_fraction": table["observed"] / (grid.shape[0] * grid.shape[1]),
            "rain_rate_mm_h": table["total"] * SCALE_MM_H / some,
            "wet_fraction": table["wet"] / some,
        }
    )


def provenance(archive: Archive, times: pd.DatetimeIndex) -> dict[str, Any]:
    """Which frames of which archive something was made from, ready for JSON.

    `version` changes with the archive's axis, `sha256` with any of the frames from the first to the
    last of `times` (`pipelines.manifest.frames_digest`).
    """
    first, last = time_text(times[0]), time_text(times[-1])
    return {
        "url": archive.url,
        "version": archive.version,
        "sha256": frames_digest(archive.url, first, last),
        "first_frame": first,
        "last_frame": last,
        "frames": len(times),
    }
