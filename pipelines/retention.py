"""Retention: old forecasts go into a store a day, and very old ones away.

A day of forecasts is written, read back and compared before it is published, as a whole
(`pipelines.once`). From then on it counts, and the single stores that it holds are left over. After
a grace period they are compared once more and retired. Retiring notes when, and removes the root's
metadata: nobody can open the store any more. Its chunks go another grace period later, for a chunk
that is gone reads as missing rain to whoever opened the store before. Whenever this dies, every
forecast is there exactly once, and the next run goes on.

The day of the newest forecast stays as it is: `latest.json` never names what is gone.
"""

import datetime as dt
import logging
from collections import defaultdict
from dataclasses import dataclass, field

import pandas as pd
from pydantic import Field

from pipelines import storage
from pipelines.day_writer import UnlikeForecastsError, compare, write_day
from pipelines.forecast_days import DAY, FOLDER, Day, Key, day_url, find_day, find_days
from pipelines.forecasts import (
    folder_url,
    forecast_attributes,
    is_complete,
    latest_init_time,
    parse_name,
)
from pipelines.lock import exclusive
from pipelines.once import CLAIMS, publish_written, sweep
from pipelines.progress import bar
from pipelines.publishing import mark_superseded
from pipelines.score_store import prune_scores
from pipelines.section import Section
from pipelines.shadows import shadow_forecasters, shadow_root
from pipelines.times import Duration, now, time_text, utc

log = logging.getLogger(__name__)

GRACE = dt.timedelta(hours=1)
RETIRED = "retired"
"""The folder of notes on stores that nobody can open any more and whose chunks are still there."""

Stores = dict[Key, str]
"""Single stores, complete or not, by init_time and revision."""


class RetentionSettings(Section):
    """When forecasts go into a store a day, and when away."""

    compact_after: Duration = Field(
        dt.timedelta(days=7),
        ge=dt.timedelta(0),
        description="Put a day's forecasts into one store when all are older than this.",
    )
    keep: Duration | None = Field(
        None,
        gt=dt.timedelta(0),
        description="Remove a day's forecasts when all are older than this; by default never.",
    )
    scores: Duration | None = Field(
        dt.timedelta(days=400),
        gt=dt.timedelta(0),
        description="Remove a day's scores when it is so much older than the newest scores; null: "
        "never. Forecasts older than that are not verified either.",
    )
    shadows: Duration = Field(
        dt.timedelta(days=7),
        gt=dt.timedelta(0),
        description="Remove a day's shadow forecasts when all are older than this: their scores "
        "stay.",
    )
    grace: Duration = Field(
        GRACE,
        ge=dt.timedelta(0),
        description="How long readers have to finish: before a store that is replaced by its day's "
        "is retired, and from then until its chunks go.",
    )


@dataclass
class CompactionReport:
    """Days that went into one store, and what became of the others."""

    days: list[str] = field(default_factory=list)
    forecasts: int = 0
    removed: int = 0
    waiting: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{len(self.days)} days compacted, {self.forecasts} forecasts in all; {self.removed} "
            f"single stores removed, those of {len(self.waiting)} days wait for the grace period"
        ]
        return "\n".join(lines + [f"- {day} left alone: {why}" for day, why in self.left.items()])


@dataclass
class PruneReport:
    """What was removed for good."""

    days: int = 0
    forecasts: int = 0
    debris: int = 0

    def __str__(self) -> str:
        return (
            f"{self.forecasts} forecasts of {self.days} days removed, "
            f"{self.debris} leftovers of attempts that died"
        )


@dataclass(frozen=True)
class RetentionReport:
    """What a run of retention did."""

    compaction: CompactionReport
    pruning: PruneReport
    scores: int = 0

    def __str__(self) -> str:
        return f"{self.compaction}\n\n{self.pruning}\n\nscores of {self.scores} days removed"


def retain(
    root: str, product: str, settings: RetentionSettings, *, progress: bool = False
) -> RetentionReport:
    """Remove what is older than is kept, scores too, and compact what is older than is said."""
    moment = now()
    keep_from = moment - settings.keep if settings.keep else None
    pruning = prune_forecasts(root, product, keep_from, grace=settings.grace)
    for name in shadow_forecasters(root):
        place = shadow_root(root, name)
        if storage.exists(folder_url(place, product)):
            prune_forecasts(place, product, moment - settings.shadows, grace=settings.grace)
    compaction = compact_days(
        root, product, moment - settings.compact_after, grace=settings.grace, progress=progress
    )
    scores = prune_scores(root, product, settings.scores)
    return RetentionReport(compaction, pruning, scores)


def compact_days(
    root: str,
    product: str,
    before: pd.Timestamp,
    *,
    grace: dt.timedelta = GRACE,
    progress: bool = False,
) -> CompactionReport:
    """Put every whole UTC day of forecasts older than `before` into one store a day.

    Memory is that of one forecast, or one member of it. A day in which something was published
    within the grace period waits; one whose forecasts do not go together is left alone. Raises
    `UnequalDayError`, with nothing removed, where a day does not read back as its forecasts.
    """
    folder, report = folder_url(root, product), CompactionReport()
    with exclusive(f"{folder}/{FOLDER}", by="compaction or pruning"):
        old = _old_days(root, product, before)
        with bar(len(old), "compact", "day", shown=progress) as shown:
            for date, stores in old.items():
                if find_day(folder, date) is None:
                    _compact(root, product, date, stores, grace, report)
                if (day := find_day(folder, date)) is not None:
                    _remove_left_over(day, stores, grace, report)
                shown.update()
        sweep_retired(folder, grace)
    log.info("compaction of the forecasts of %s: %s", product, report)
    return report


def prune_forecasts(
    root: str, product: str, before: pd.Timestamp | None, *, grace: dt.timedelta = GRACE
) -> PruneReport:
    """Remove the forecasts of every whole UTC day older than `before`, where given, for good.

    Never those of the newest forecast's day. What attempts that died have left goes as well.
    """
    folder, report = folder_url(root, product), PruneReport()
    with exclusive(f"{folder}/{FOLDER}", by="compaction or pruning"):
        if before is not None:
            for date, stores in _old_days(root, product, before, compacted=True).items():
                day = find_day(folder, date)
                complete = {key for key, url in stores.items() if is_complete(url)}
                report.forecasts += len(complete.union(day.rows if day else ()))
                report.days += bool(complete or day)
                for key in sorted(complete):
                    retire(stores[key])
                if day is not None:
                    retire(day.url)
        for place in (folder, f"{folder}/{FOLDER}"):
            sweep_retired(place, grace)
            report.debris += sweep(place)
    log.info("pruning of the forecasts of %s: %s", product, report)
    return report


def _old_days(
    root: str, product: str, before: pd.Timestamp, *, compacted: bool = False
) -> dict[pd.Timestamp, Stores]:
    """The single stores of every day that ends by `before`, ascending, but for the newest's day.

    With `compacted`, days that have none but a day store too.
    """
    folder = folder_url(root, product)
    singles = {
        key: f"{folder}/{name}"
        for name in storage.names(folder)
        if (key := parse_name(name)) is not None
    }
    dates = [day.date for day in find_days(folder)]
    newest_single = next(
        (key for key in sorted(singles, reverse=True) if is_complete(singles[key])), None
    )
    newest = {
        time.floor("D")
        for time in (
            newest_single[0] if newest_single else max(dates, default=None),
            latest_init_time(root, product),
        )
        if time is not None
    }
    by_date: defaultdict[pd.Timestamp, Stores] = defaultdict(dict)
    for key in sorted(singles):
        by_date[key[0].floor("D")][key] = singles[key]
    every = sorted({*by_date, *(dates if compacted else ())})
    return {date: by_date[date] for date in every if date + DAY <= before and date not in newest}


def _compact(
    root: str,
    product: str,
    date: pd.Timestamp,
    stores: Stores,
    grace: dt.timedelta,
    report: CompactionReport,
) -> None:
    """Publish a day's store, where its forecasts have come to rest and go together."""
    complete = {key: url for key, url in stores.items() if is_complete(url)}
    told = [forecast_attributes(url).get("publish_time") for url in complete.values()]
    if any(time is not None and utc(time) > now("ms") - grace for time in told):
        report.waiting.append(_label(date))
        return
    for init_time in {key[0] for key in complete}:
        mark_superseded(root, product, init_time)
    url = day_url(folder_url(root, product), date)
    try:
        if complete and publish_written(
            lambda staged: write_day(staged, complete),
            url,
            lambda: {"compacted_time": time_text(now("ms"))},
        ):
            report.days.append(_label(date))
            report.forecasts += len(complete)
    except UnlikeForecastsError as error:
        report.left[_label(date)] = str(error)


def _remove_left_over(
    day: Day, stores: Stores, grace: dt.timedelta, report: CompactionReport
) -> None:
    """Remove the single stores that a day holds, if it has been there for long enough."""
    if utc(day.attributes["compacted_time"]) > now("ms") - grace:
        report.waiting.append(_label(day.date))
        return
    complete = {key: url for key, url in stores.items() if is_complete(url)}
    if strays := sorted(set(complete) - set(day.rows)):
        report.left[_label(day.date)] = (
            f"{len(strays)} forecasts were published while it was compacted; they stay single "
            f"stores, the first that of {time_text(strays[0][0])}"
        )
        return
    compare(day, complete)
    for url in complete.values():
        retire(url)
    report.removed += len(complete)


def retire(url: str) -> None:
    """Make a store one that nobody can open; who has it open reads on until `sweep_retired`."""
    folder, _, name = url.rpartition("/")
    note = {"retired_time": time_text(now("ms"))}
    storage.write_json(storage.join(folder, RETIRED, f"{name}.json"), note)
    storage.remove(storage.join(url, storage.ROOT_METADATA))


def sweep_retired(folder: str, grace: dt.timedelta) -> int:
    """Remove the stores of a folder that were retired longer ago than `grace`; how many."""
    swept = 0
    for note_name in storage.names(storage.join(folder, RETIRED)):
        note, name = storage.join(folder, RETIRED, note_name), note_name.removesuffix(".json")
        retired_time = utc(storage.read_json(note)["retired_time"])
        url, claim = storage.join(folder, name), storage.join(folder, CLAIMS, name)
        if is_complete(url):  # whoever retired it died before it was, or it is published anew
            storage.remove(note)
        elif retired_time <= now("ms") - grace and not storage.exists(claim):
            storage.remove(url)
            storage.remove(note)
            swept += 1
    return swept


def _label(date: pd.Timestamp) -> str:
    return f"{date:%Y-%m-%d}"
