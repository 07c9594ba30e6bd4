"""What the root metadata of published forecasts says, of many at once: no array is opened.

A forecast is ``{YYYYMMDDTHHMMZ}.zarr``, its later revisions ``{YYYYMMDDTHHMMZ}.r2.zarr``,
``.r3.zarr`` and so on; a superseded one names the next in `superseded_by`. The attributes are those
that `pipelines.forecasts` publishes.
"""

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines import storage
from pipelines.times import INIT_TIME_FORMAT, init_time_label, utc

NAME = re.compile(r"(\d{8}T\d{4}Z)(?:\.r(\d+))?\.zarr")


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


def store_name(init_time: pd.Timestamp, revision: int = 1) -> str:
    """What a revision's store is called."""
    number = "" if revision == 1 else f".r{revision}"
    return f"{init_time_label(init_time)}{number}.zarr"


def parse_name(name: str) -> tuple[pd.Timestamp, int] | None:
    """The init_time and revision of a store by its name; None for anything else."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    try:
        time = pd.Timestamp(dt.datetime.strptime(match[1], INIT_TIME_FORMAT))  # pandas' is slow
    except ValueError:
        return None
    return time.as_unit("ns"), int(match[2] or 1)


def published_names(root: str, product: str) -> dict[pd.Timestamp, list[str]]:
    """The names of all revisions, complete or not, by init_time, oldest first: one listing."""
    found: dict[pd.Timestamp, list[tuple[int, str]]] = {}
    for name in storage.names(forecasts_folder(root, product)):
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
    fs, folder = storage.filesystem(forecasts_folder(root, product))
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

    Found by name and from revision to revision, without a listing as long as all have a first one.
    """
    found: dict[pd.Timestamp, list[Record]] = {}
    wanted = list(init_times)
    names = [store_name(time) for time in wanted]
    while names:
        new = read_records(root, product, names)
        for record in new:
            found.setdefault(record.init_time, []).append(record)
        names = [str(record.attributes.get("superseded_by") or "") for record in new]
        names = [name for name, record in zip(names, new, strict=True) if _follows(name, record)]
    without = [time for time in wanted if time not in found]
    if without:  # the first revision may be gone, and later ones there
        listed = published_names(root, product)
        rest = [name for time in without for name in listed.get(time, [])]
        for record in read_records(root, product, rest):
            found.setdefault(record.init_time, []).append(record)
    return {time: found[time] for time in sorted(found)}


def _follows(name: str, record: Record) -> bool:
    parsed = parse_name(name)
    return parsed is not None and parsed[0] == record.init_time and parsed[1] > record.revision


def forecasts_folder(root: str, product: str) -> str:
    """Where a product's forecasts are."""
    return storage.join(root, "forecasts", product)
