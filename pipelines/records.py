"""What the root metadata of published forecasts says, of many at once: no array is opened.

For a day's forecasts that is one small object each, many of them read at a time; and no listing of
the folder, however many forecasts there are.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines import storage
from pipelines.forecasts import folder_url, forecast_name, parse_name
from pipelines.times import utc


@dataclass(frozen=True)
class Record:
    """A published revision: whose forecast it is, and its attributes."""

    name: str
    init_time: pd.Timestamp
    revision: int
    attributes: Mapping[str, Any]

    @property
    def quality(self) -> str:
        """Good, degraded or fallback."""
        return str(self.attributes.get("quality", "unknown"))

    def time(self, name: str) -> pd.Timestamp | None:
        """An attribute that is a time; None where it is not there."""
        text = self.attributes.get(name)
        return utc(text) if text else None


def published_names(root: str, product: str) -> dict[pd.Timestamp, list[str]]:
    """The names of all revisions, complete or not, by init_time, oldest first: one listing."""
    found: dict[pd.Timestamp, list[tuple[int, str]]] = {}
    for name in storage.names(folder_url(root, product)):
        if parsed := parse_name(name):
            found.setdefault(parsed[0], []).append((parsed[1], name))
    return {time: [name for _, name in sorted(found[time])] for time in sorted(found)}


def read_records(root: str, product: str, names: Iterable[str]) -> list[Record]:
    """The records of stores by name, in that order; those that are not complete are left out.

    One small object is read for each, many at a time where the store allows it.
    """
    names = [name for name in names if parse_name(name)]
    if not names:
        return []
    fs, folder = storage.filesystem(folder_url(root, product))
    paths = {name: f"{folder}/{name}/{storage.ROOT_METADATA}" for name in names}
    contents = fs.cat(list(paths.values()), on_error="return")
    records = []
    for name, path in paths.items():
        content = contents[path]
        if isinstance(content, FileNotFoundError):
            continue
        if isinstance(content, Exception):
            raise content
        time, revision = parse_name(name)  # type: ignore[misc]
        records.append(Record(name, time, revision, json.loads(content).get("attributes", {})))
    return records


def all_revisions(
    root: str, product: str, init_times: Iterable[pd.Timestamp]
) -> dict[pd.Timestamp, list[Record]]:
    """Every revision of the forecasts of some init_times, oldest first; init_times without are out.

    Found without a listing: the first by its name, each later one by what the one before says.
    """
    found: dict[pd.Timestamp, list[Record]] = {}
    names = [forecast_name(time) for time in init_times]
    while names:
        new = read_records(root, product, names)
        for record in new:
            found.setdefault(record.init_time, []).append(record)
        names = [str(record.attributes.get("superseded_by") or "") for record in new]
        names = [name for name, record in zip(names, new, strict=True) if _follows(name, record)]
    return found


def _follows(name: str, record: Record) -> bool:
    parsed = parse_name(name)
    return parsed is not None and parsed[0] == record.init_time and parsed[1] > record.revision
