"""Which forecasts are to be scored: what follows from what is there, and from what was scored.

A forecast is due once a frame at or after its last valid time has come, and it was not scored yet,
or from something else than is there now: an observation that came late or was corrected, a shadow
forecast that was made later, other settings. All that its scores follow from is in a digest, which
the scores store keeps beside them. So each forecast is scored once, and again only when that
changes something; with nothing due, a look is one listing, a column of the store and the manifest.

Some of it goes away in time. With a frame that was moved into the training layout nothing can be
compared any more: what was scored with it stays as it is. A shadow forecast is kept for days only:
that it is gone has nothing scored again, nor have other settings, which would lose a challenger's
scores. But where an observation was corrected, or another shadow forecast came, it is scored again
without it.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pandas as pd

from pipelines.archive import USABLE, Archive, Status, archive_url
from pipelines.errors import NotFoundError
from pipelines.forecast_days import find_days
from pipelines.forecasts import FIRST, folder_url, is_published, open_forecast
from pipelines.records import published_names
from pipelines.score_store import read_rows
from pipelines.shadows import shadow_forecasters, shadow_root
from pipelines.window import Windows

Shadows = dict[str, set[pd.Timestamp]]
"""The init_times of each forecaster's shadow forecasts."""


@dataclass(frozen=True)
class Due:
    """A forecast to score.

    `lead_times` are all it has, `shadows` the forecasters that have one of the same init_time too,
    `digest` says what the scores follow from.
    """

    init_time: pd.Timestamp
    lead_times: pd.TimedeltaIndex
    shadows: tuple[str, ...]
    digest: str


@dataclass
class Agenda:
    """The forecasts that are due, the oldest first, and what there is beside them.

    `waiting` are those whose last frame has not come; `missing` are valid times of the others at
    which no frame has. They all start at or after `start`.
    """

    start: pd.Timestamp | None
    due: list[Due] = field(default_factory=list)
    unchanged: int = 0
    waiting: int = 0
    missing: set[pd.Timestamp] = field(default_factory=set)


@dataclass(frozen=True)
class _Scored:
    """What the store says of a forecast: its lead times, and what it was scored from."""

    lead_times: pd.TimedeltaIndex
    shadows: frozenset[str]
    digest: str


def agenda(
    root: str,
    product: str,
    rules: str,
    remade: Collection[str],
    *,
    since: pd.Timedelta | None = None,
    partial: bool = False,
) -> Agenda:
    """What is to be scored.

    Parameters
    ----------
    rules : all that the scores follow from beside forecasts and frames, as text
    remade : forecasters that are scored without a shadow forecast too
    since : only forecasts at most so much older than the newest
    partial : also those of which only some valid times have come
    """
    start = None
    if since is not None:  # the newest forecast has a store of its own: no day is looked into
        times = list(published_names(root, product)) or init_times(root, product)
        start = max(times) - since if times else None
    there = init_times(root, product, start)
    plan = Agenda(start)
    if not there:
        return plan
    archive = Archive(archive_url(root, product))
    scored = _scored(root, product, start)
    shadows = _shadows(root, product, there[0])
    newest = archive.newest_usable() or pd.Timestamp.min
    frames = Windows(archive, there[0], max(newest, there[0]), 1, (*USABLE, Status.MOVED))
    moved = set(frames.status.index[frames.status == Status.MOVED])
    for init_time in there:
        old = scored.get(init_time)
        lead_times = old.lead_times if old else _lead_times(root, product, init_time)
        if lead_times is None:
            continue
        observed = frames.at(init_time + lead_times)
        came = observed.times[-1] <= newest
        if not came and not (partial and observed.files):
            plan.waiting += 1
            continue
        plan.missing.update(observed.missing[observed.missing <= newest])
        found = _found(root, product, init_time, shadows, old)
        seen = observed.digest[:32]
        if old is None or (
            moved.isdisjoint(observed.files) and _changed(old, seen, rules, found, remade)
        ):
            digest = _digest(seen, rules, found)
            plan.due.append(Due(init_time, lead_times, tuple(sorted(found)), digest))
        else:
            plan.unchanged += 1
    return plan


def init_times(root: str, product: str, start: pd.Timestamp | None = None) -> list[pd.Timestamp]:
    """The init_times of all forecasts from `start` on, ascending; of some being published too."""
    days = find_days(folder_url(root, product), start)
    found = {*published_names(root, product), *(time for day in days for time, _ in day.rows)}
    return sorted(time for time in found if start is None or time >= start)


def _lead_times(root: str, product: str, init_time: pd.Timestamp) -> pd.TimedeltaIndex | None:
    """The lead times of a forecast; None where it is not there."""
    try:
        with open_forecast(root, product, init_time, FIRST) as forecast:
            return pd.TimedeltaIndex(forecast["lead_time"].values)
    except (NotFoundError, FileNotFoundError):  # not complete, or being removed
        return None


def _scored(root: str, product: str, start: pd.Timestamp | None) -> dict[pd.Timestamp, _Scored]:
    """What the store has, by init_time."""
    columns = ["init_time", "lead_time", "digest", "shadows"]
    rows = read_rows(root, product, start, columns=columns).drop_duplicates()
    by_time = ((pd.Timestamp(str(time)), group) for time, group in rows.groupby("init_time"))
    return {
        time: _Scored(
            pd.TimedeltaIndex(group["lead_time"]).sort_values(),
            frozenset(json.loads(group["shadows"].iloc[0])),
            group["digest"].iloc[0],
        )
        for time, group in by_time
    }


def _shadows(root: str, product: str, start: pd.Timestamp) -> Shadows:
    """Whose shadow forecasts there are, of init_times from `start` on."""
    roots = {name: shadow_root(root, name) for name in shadow_forecasters(root)}
    return {name: set(init_times(place, product, start)) for name, place in roots.items()}


def _found(
    root: str, product: str, init_time: pd.Timestamp, shadows: Shadows, old: _Scored | None
) -> set[str]:
    """Who has a shadow forecast of an init_time: complete, where it was not scored before."""
    listed = {name for name, times in shadows.items() if init_time in times}
    known = old.shadows if old else frozenset()
    return {
        name
        for name in listed
        if name in known or is_published(shadow_root(root, name), product, init_time)
    }


def _changed(old: _Scored, seen: str, rules: str, found: set[str], remade: Collection[str]) -> bool:
    """Whether a forecast that was scored is to be scored again; `seen` : the frames' digest."""
    if old.digest == _digest(seen, rules, found | old.shadows):
        return False
    more = not old.digest.startswith(f"{seen}-") or not found <= old.shadows
    return more or (old.shadows - found).issubset(remade)


def _digest(seen: str, rules: str, shadows: Iterable[str]) -> str:
    """Of the observed frames, and, behind the hyphen, of all else."""
    rest = json.dumps([FIRST, rules, sorted(shadows)])
    return f"{seen}-{hashlib.sha256(rest.encode()).hexdigest()[:32]}"
