"""The manifest: what became of every file that was ever seen, and where every frame is from.

One JSON file a day beside the archive, replaced whole; read it with anything.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from pipelines import storage


@dataclass(frozen=True)
class ManifestRow:
    """One file that was seen: where from, what it was, and what became of it.

    `outcome` is ok or late (it is the archive's frame at that time), duplicate (same bytes as the
    frame that is there), superseded (another file of that time counts instead) or bad (see
    `error`). Times are ISO 8601 UTC. `clipped` counts pixels above 655.34 mm/h, `masked` those that
    quality control took out, by rule. `observed`, `wet` and `total` tell what was stored: pixels
    observed, pixels of 0.1 mm/h or more, and the sum of the observed ones in hundredths of mm/h.
    """

    valid_time: str
    outcome: str
    key: str
    size: int
    received: str
    sha256: str
    source: str
    decoder: str
    ingested: str
    observed_fraction: float | None = None
    observed: int | None = None
    wet: int | None = None
    total: int | None = None
    clipped: int = 0
    masked: dict[str, int] = field(default_factory=dict)
    error: str | None = None


def manifest_url(url: str) -> str:
    """The folder of an archive's manifest."""
    return storage.normalise(url).removesuffix(".zarr") + ".manifest"


def read_manifest(url: str, days: Iterable[str] | None = None) -> list[ManifestRow]:
    """The manifest rows of some days (``2010-08-26``; all by default), by valid time and key."""
    folder = manifest_url(url)
    if days is None:
        days = [name.removesuffix(".json") for name in storage.names(folder)]
    known = {one.name for one in fields(ManifestRow)}
    rows = []
    for day in days:
        day_url = f"{folder}/{day}.json"
        if storage.exists(day_url):
            rows += [
                ManifestRow(**{name: value for name, value in row.items() if name in known})
                for row in storage.read_json(day_url)
            ]
    return sorted(rows, key=_row_order)


def write_manifest(url: str, rows: Iterable[ManifestRow]) -> None:
    """Add rows; a row with key and content of an older one replaces it.

    A file that was overwritten keeps the row of what it was. One file a day, replaced whole.
    """
    by_day: dict[str, list[ManifestRow]] = {}
    for row in rows:
        by_day.setdefault(row.valid_time[:10], []).append(row)
    for day, new in by_day.items():
        merged = {(row.key, row.sha256): row for row in [*read_manifest(url, [day]), *new]}
        lines = [json.dumps(vars(row)) for row in sorted(merged.values(), key=_row_order)]
        text = "[\n" + ",\n".join(lines) + "\n]\n"
        storage.write_bytes(f"{manifest_url(url)}/{day}.json", text.encode())


def _row_order(row: ManifestRow) -> tuple[str, str, str]:
    return row.valid_time, row.key, row.sha256


def frame_row(rows: list[ManifestRow]) -> ManifestRow | None:
    """The row of the file that is the frame, among the rows of one valid time."""
    return next((row for row in rows if row.outcome in ("ok", "late")), None)


def frame_rows(url: str) -> dict[str, ManifestRow]:
    """The rows of the files that are an archive's frames, by valid time as the manifest says it."""
    rows = itertools.groupby(read_manifest(url), key=lambda row: row.valid_time)
    frames = {time: frame_row(list(group)) for time, group in rows}
    return {time: row for time, row in frames.items() if row is not None}


def frames_digest(url: str, first: str, last: str) -> str:
    """A digest (sha256) of what an archive's frames of a period were made from, and how.

    That is their valid times, contents and decoders, as the manifest says them: two archives with
    the same digest hold the same frames. `first` and `last` are ISO 8601 UTC, both included.
    """
    rows = frame_rows(url)
    facts = [(t, rows[t].sha256, rows[t].decoder) for t in sorted(rows) if first <= t <= last]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
