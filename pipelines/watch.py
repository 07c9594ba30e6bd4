"""The state of a product's service at a glance: frames, forecasts, the model, its skill, latency.

Cheap enough to look every few seconds: the end of the archive's status, `latest.json`, the root
metadata of the forecasts of a day, and the recent skill as verification left it. How long the
archive is, or how many forecasts there are, costs nothing.
"""

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from pipelines import storage
from pipelines.archive import USABLE, Archive, Status, archive_url
from pipelines.forecasts import LATEST, folder_url
from pipelines.latency import Latency, of_records
from pipelines.records import Record, all_revisions, published_names, read_records
from pipelines.section import Section
from pipelines.skill import RecentSkill, read_skill
from pipelines.times import Duration, format_duration, now, time_text
from pipelines.trust import Behind

DAY = pd.Timedelta("1D")


class WatchSettings(Section):
    """What counts as well: `squall status` says so of every limit that is crossed."""

    oldest_frame: Duration = Field(
        dt.timedelta(minutes=15), description="How old the newest frame may be."
    )
    oldest_forecast: Duration = Field(
        dt.timedelta(minutes=15), description="How long ago the newest forecast may start."
    )
    most_gaps: int = Field(
        3, ge=0, description="Frames that may be missing in the 24 hours up to the newest one."
    )
    most_unforecast: int = Field(
        3, ge=0, description="Frames of those 24 hours that may be without a forecast."
    )
    largest_fallback: float = Field(
        0.1, ge=0, le=1, description="Part of a day's forecasts that the fallback may have made."
    )
    largest_degraded: float = Field(
        0.5, ge=0, le=1, description="Part of a day's forecasts whose inputs may be bridged."
    )
    longest_behind: Duration = Field(
        dt.timedelta(hours=12),
        description="How long the champion's verified forecasts may have been behind advection's.",
    )
    metrics_file: str | None = Field(
        None,
        description="Where `squall status` writes metrics for the node exporter: NAME.prom.",
    )


@dataclass(frozen=True)
class ServiceStatus:
    """How a product's service is doing.

    "The day" is the 24 hours up to the newest frame. `gaps` are its timesteps without a usable
    frame, with what the archive says of them; `unforecast` its frames without a forecast, from the
    oldest forecast there is to the newest; `waiting` the frames that came after the newest
    forecast. `qualities` counts the day's forecasts, each by its newest revision.
    """

    product: str
    time: pd.Timestamp
    newest_frame: pd.Timestamp | None
    gaps: dict[pd.Timestamp, str]
    newest_forecast: Record | None
    unforecast: list[pd.Timestamp]
    waiting: list[pd.Timestamp]
    qualities: Counter[str]
    champion: str | None
    skill: RecentSkill | None
    latency: Latency

    @property
    def frame_age(self) -> pd.Timedelta | None:
        """Since the newest frame's valid time."""
        return None if self.newest_frame is None else self.time - self.newest_frame

    @property
    def forecast_age(self) -> pd.Timedelta | None:
        """Since the newest forecast's init_time."""
        return None if self.newest_forecast is None else self.time - self.newest_forecast.init_time

    def share(self, quality: str) -> float:
        """The part of the day's forecasts that is of a quality; 0 where there is none."""
        return self.qualities[quality] / max(1, self.qualities.total())


def look(root: str, product: str, *, time: pd.Timestamp | None = None) -> ServiceStatus:
    """Look at a product's archive, forecasts, registry and scores; `time` stands in for now.

    Raises `NotFoundError` where there is no archive.
    """
    day = recent_status(Archive(archive_url(root, product)))
    frames = pd.DatetimeIndex(day.index[day.isin(USABLE)])
    there = (*USABLE, Status.MOVED)
    revisions = all_revisions(root, product, frames)
    newest = newest_record(root, product)
    missing = [frame for frame in frames if frame not in revisions]
    oldest = min(published_names(root, product), default=None) if missing else None
    last = newest.init_time if newest else None
    waiting = [time for time in missing if last is None or time > last]
    earlier = [time for time in missing if oldest and last and oldest <= time <= last]
    gaps = zip(day.index, day, strict=True)
    return ServiceStatus(
        product=product,
        time=now() if time is None else time,
        newest_frame=frames[-1] if len(frames) else None,
        gaps={slot: Status(code).name.lower() for slot, code in gaps if code not in there},
        newest_forecast=newest,
        unforecast=earlier,
        waiting=waiting,
        qualities=Counter(records[-1].quality for records in revisions.values()),
        champion=champion_of(root, product, newest),
        skill=read_skill(root, product),
        latency=of_records(record for records in revisions.values() for record in records),
    )


def recent_status(archive: Archive, period: pd.Timedelta = DAY) -> pd.Series:
    """The statuses of the slots of a period up to the newest usable one; none where none is usable.

    Slots before the archive's first frame do not count.
    """
    newest = archive.newest_usable()
    if newest is None:
        return pd.Series([], index=archive.times[:0], dtype=np.uint8)
    first = newest - period + archive.timestep
    if first < archive.times[0] + DAY:  # the axis begins less than a day before the first frame
        known = archive.status(end=newest)
        first = max(first, known.index[known != Status.MISSING][0])
    return archive.status(first, newest)


def newest_record(root: str, product: str) -> Record | None:
    """The newest revision of the newest forecast, as `latest.json` says; None where none is."""
    url = f"{folder_url(root, product)}/{LATEST}"
    if not storage.exists(url):
        return None
    records = read_records(root, product, [storage.read_json(url)["forecast"]])
    return records[0] if records else None


def champion_of(root: str, product: str, newest: Record | None) -> str | None:
    """The champion of the model that the newest forecast was asked of, or of the product's own."""
    asked = str(newest.attributes.get("requested_model", "")) if newest else ""
    for name in (asked.partition("/")[0], product):
        url = storage.join(root, "models", name, "champion.json")
        if name and storage.exists(url):
            return f"{name}/{storage.read_json(url)['version']}"
    return None


def crossed(status: ServiceStatus, settings: WatchSettings) -> list[str]:
    """A line for every limit that is crossed; none where all is well."""
    lines = []
    for what, age, oldest in (
        ("frame", status.frame_age, settings.oldest_frame),
        ("forecast", status.forecast_age, settings.oldest_forecast),
    ):
        if age is None:
            lines.append(f"no {what}")
        elif age > oldest:
            lines.append(
                f"the newest {what} is {age_text(age)} old; limit {format_duration(oldest)}"
            )
    for what, count, most in (
        ("frames missing", len(status.gaps), settings.most_gaps),
        ("frames without a forecast", len(status.unforecast), settings.most_unforecast),
    ):
        if count > most:
            lines.append(f"{count} {what} in 24h; limit {most}")
    for quality, largest in (
        ("fallback", settings.largest_fallback),
        ("degraded", settings.largest_degraded),
    ):
        if status.share(quality) > largest:
            part = f"{status.share(quality):.0%}"
            lines.append(f"{part} of 24h's forecasts are {quality}; limit {largest:.0%}")
    behind = champion_behind(status)
    if behind is not None and behind.duration > settings.longest_behind:
        lines.append(
            f"{status.champion} has been behind advection for {age_text(behind.duration)}; "
            f"limit {format_duration(settings.longest_behind)}"
        )
    return lines


def champion_behind(status: ServiceStatus) -> Behind | None:
    """How the champion's verified forecasts are behind advection's; None where they are not."""
    if status.skill is None or status.champion is None:
        return None
    skill = status.skill.of(status.champion)
    return skill.behind if skill is not None else None


def age_text(age: pd.Timedelta) -> str:
    """An age as people say it, to three digits: 90s, 15.5min, 26h, 3.5d."""
    seconds = age.total_seconds()
    units = (("d", 86400), ("h", 3600), ("min", 60))
    unit, size = next((one for one in units if seconds >= 2 * one[1]), ("s", 1))
    return f"{seconds / size:.3g}{unit}"


def as_dict(status: ServiceStatus, lines: list[str]) -> dict[str, Any]:
    """The status and the limits crossed, ready for JSON."""
    newest, skill = status.newest_forecast, status.skill
    return {
        "product": status.product,
        "time": time_text(status.time),
        "ok": not lines,
        "limits_crossed": lines,
        "newest_frame": _text(status.newest_frame),
        "newest_frame_age_seconds": _seconds(status.frame_age),
        "gaps": {time_text(time): what for time, what in status.gaps.items()},
        "newest_forecast": newest
        and {
            "name": newest.name,
            "init_time": time_text(newest.init_time),
            "revision": newest.revision,
            **{
                name: newest.attributes.get(name)
                for name in ("model", "requested_model", "quality", "quality_note", "publish_time")
            },
        },
        "newest_forecast_age_seconds": _seconds(status.forecast_age),
        "unforecast": [time_text(time) for time in status.unforecast],
        "waiting": [time_text(time) for time in status.waiting],
        "forecasts": dict(status.qualities),
        "champion": status.champion,
        "skill": skill and _skill(skill),
        "latency": status.latency.as_dict(),
    }


def _skill(skill: RecentSkill) -> dict[str, Any]:
    return {
        "made": time_text(skill.made),
        "since": time_text(skill.since),
        "until": time_text(skill.until),
        "threshold_mm_h": skill.threshold_mm_h,
        "csi": {
            name: {
                format_duration(lead): None if np.isnan(value) else value
                for lead, value in zip(skill.lead_times, one.csi, strict=True)
            }
            for name, one in skill.forecasters.items()
        },
        "trust_horizon": {
            name: {
                "seconds": _seconds(one.trust_horizon),
                "reached": one.trust_horizon_reached,
                "interval_seconds": [_seconds(bound) for bound in one.trust_horizon_interval or ()],
            }
            for name, one in skill.forecasters.items()
        },
        "behind_advection_since": {
            name: _text(one.behind_advection_since) for name, one in skill.forecasters.items()
        },
    }


def _text(time: pd.Timestamp | None) -> str | None:
    return None if time is None else time_text(time)


def _seconds(age: pd.Timedelta | None) -> float | None:
    return None if age is None else age.total_seconds()
