"""Recent skill: how the forecasts of the last days did, for the next ones to tell and to act on.

    {root}/scores/{product}/_skill.json     made anew at the end of every verification

Everyone whose forecasts were verified has its skill: what was "served", the baselines, the models.
A forecaster is compared with persistence and advection on the forecasts and pixels that all three
are scored on: by its CSI at one threshold in the whole domain, by its trust horizon, and by how
long it has been behind advection (`pipelines.trust` defines them).
"""

import datetime as dt
import logging
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from pipelines import storage
from pipelines.compare import DOMAIN
from pipelines.errors import NotFoundError
from pipelines.score_store import (
    SERVED,
    days,
    folder_url,
    of_forecaster,
    open_scores,
    read_rows,
)
from pipelines.section import Section
from pipelines.times import Duration, Seconds, Time, format_duration, now, time_text
from pipelines.trust import (
    ADVECTION,
    COUNTS,
    OWN,
    PERSISTENCE,
    Behind,
    behind_advection,
    csi,
    horizon_interval,
    is_reached,
    trust_horizon,
)

log = logging.getLogger(__name__)


class SkillSettings(Section):
    """What recent skill is of."""

    window: Duration = Field(
        dt.timedelta(days=7), description="How far back from the newest verified forecast."
    )
    threshold_mm_h: float = Field(
        0.5, gt=0, description="The event: so much rain or more; the nearest that is scored."
    )
    block: Duration = Field(
        dt.timedelta(hours=6), description="Blocks of time that the bootstrap draws."
    )
    samples: int = Field(1000, ge=100, description="How often it draws.")
    least_blocks: int = Field(
        5, ge=2, description="With fewer blocks in which it rained there is no interval."
    )
    chunk: Duration = Field(
        dt.timedelta(hours=1), description="Chunks of time in which a model is ahead or behind."
    )
    least_chunks: int = Field(
        6, ge=1, description="Behind in fewer, one after the other, is not behind."
    )


Score = Annotated[
    float,
    PlainValidator(lambda value: np.nan if value is None else float(value)),
    PlainSerializer(lambda value: None if np.isnan(value) else value),
]
"""NaN is null in JSON."""


@dataclass(frozen=True)
class Skill:
    """The recent skill of a forecaster.

    Attributes
    ----------
    since, until : the first and last init_time of the forecasts that are scored
    forecasts : how many of them there are
    csi : by lead time; NaN where the event was not observed
    persistence, advection : CSI of these, of the same forecasts; empty where not scored
    trust_horizon : None where it is not known
    trust_horizon_reached : if not, that is a lower bound: it beats persistence wherever known
    trust_horizon_interval : lead times; None where it is not known
    behind : advection, and how long; None where it is not
    """

    since: Time
    until: Time
    forecasts: int
    csi: tuple[Score, ...]
    persistence: tuple[Score, ...]
    advection: tuple[Score, ...]
    trust_horizon: Seconds | None
    trust_horizon_reached: bool
    trust_horizon_interval: tuple[Seconds, Seconds] | None
    behind: Behind | None

    def is_recent(self, init_time: pd.Timestamp, expires: dt.timedelta) -> bool:
        """Whether it says something of a forecast: it is not from much earlier, nor later."""
        return abs(init_time - self.until) <= expires

    @property
    def behind_advection_since(self) -> pd.Timestamp | None:
        """Since when it has been behind advection; None where it is not."""
        return None if self.behind is None else self.behind.since


@dataclass(frozen=True)
class RecentSkill:
    """The recent skill of everyone, by name or id ("served", persistence, net/1, …).

    `since` and `until` are the first and last init_time that were verified, `made` when this was
    said. A model's forecasts are those of it that were served and those it made in shadow.
    """

    made: Time
    since: Time
    until: Time
    threshold_mm_h: float
    lead_times: tuple[Seconds, ...]
    forecasters: dict[str, Skill]

    def __post_init__(self) -> None:
        count = len(self.lead_times)
        for name, skill in self.forecasters.items():
            lengths = {len(one) for one in (skill.persistence, skill.advection)} - {0}
            if {len(skill.csi), *lengths} != {count}:
                raise ValueError(f"{name} has not a score for each of {count} lead times")

    def of(self, forecaster: str) -> Skill | None:
        """The skill of one; None where no forecast of it was verified."""
        return self.forecasters.get(forecaster)


_FORM = TypeAdapter(RecentSkill)


# As it is stored ---------------------------------------------------------------------------------


def skill_url(root: str, product: str) -> str:
    """Where it is: those who read the folder as Parquet pass over names with an underscore."""
    return f"{folder_url(root, product)}/_skill.json"


def update_skill(root: str, product: str, settings: SkillSettings) -> RecentSkill | None:
    """Say anew how the verified forecasts of the last days did; None where there are none."""
    there = days(root, product)
    if there.empty:
        return None
    newest = read_rows(root, product, there.max(), columns=["init_time"])["init_time"]
    if newest.empty:  # removed since
        return None
    since = newest.max() - pd.Timedelta(settings.window)
    try:
        sums = open_scores(root, product, since, sums=(*COUNTS, "pixels"))
    except NotFoundError:  # likewise
        return None
    if not (sums["pixels"] > 0).any():
        return None
    skill = recent_skill(sums, settings)
    storage.write_bytes(skill_url(root, product), _FORM.dump_json(skill, indent=1) + b"\n")
    return skill


def read_skill(root: str, product: str) -> RecentSkill | None:
    """The recent skill as last said; None where it was not, or cannot be read, with a warning."""
    url = skill_url(root, product)
    try:
        return _FORM.validate_json(storage.read_bytes(url))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever is wrong with it, nowcasts are made
        told = " ".join(str(error).split())
        log.warning("no recent skill: %s cannot be read: %s", storage.display(url), told)
        return None


# What it is --------------------------------------------------------------------------------------


def recent_skill(
    sums: xr.Dataset, settings: SkillSettings, made: pd.Timestamp | None = None
) -> RecentSkill:
    """The recent skill of everyone whose sums are there; at least one forecast was scored.

    Parameters
    ----------
    sums : by init_time, forecaster, lead_time, region and threshold, in any order, as
        `pipelines.score_store.open_scores` gives them
    made : now by default
    """
    sums = _of_event(sums, settings)
    names = {*sums["forecaster"].values, *(sums["model"].values if "model" in sums.coords else ())}
    sides = {
        name: of_forecaster(sums, name)
        for name in (PERSISTENCE, ADVECTION)
        if name in sums["forecaster"].values
    }
    times = pd.DatetimeIndex(sums["init_time"].values)
    skills = {
        name: _skill({OWN: of_forecaster(sums, name), **sides}, times[-1], settings)
        for name in sorted(map(str, names), key=lambda name: (name != SERVED, name))
    }
    return RecentSkill(
        made=now() if made is None else made,
        since=times[0],
        until=times[-1],
        threshold_mm_h=float(sums["threshold"]),
        lead_times=tuple(pd.TimedeltaIndex(sums["lead_time"].values)),
        forecasters={name: skill for name, skill in skills.items() if skill is not None},
    )


def _of_event(sums: xr.Dataset, settings: SkillSettings) -> xr.Dataset:
    """The counts and pixels (init_time, forecaster, lead_time) of the window, in order of time."""
    sums = sums[[*COUNTS, "pixels"]].sel(region=DOMAIN, drop=True)
    sums = sums.sel(threshold=settings.threshold_mm_h, method="nearest")
    sums = sums.sortby(["init_time", "lead_time"])
    sums = sums.sel(init_time=(sums["pixels"] > 0).any(("forecaster", "lead_time")))
    times = sums["init_time"]
    return sums.sel(init_time=times >= times[-1] - np.timedelta64(settings.window))


def _skill(
    sides: dict[str, xr.Dataset], until: pd.Timestamp, settings: SkillSettings
) -> Skill | None:
    """Of the sums (init_time, lead_time) of one beside its rivals'; None if it has none with all.

    `until` : the newest init_time that was verified at all
    """
    parts = [one.drop_vars(set(one.coords) - set(one.dims)) for one in sides.values()]
    together = xr.concat(parts, pd.Index(list(sides), name="side", dtype=object))
    common = (together["pixels"] > 0).all("side")
    together = together.where(common, 0.0).sel(init_time=common.any("lead_time"))
    times = pd.DatetimeIndex(together["init_time"].values)
    if times.empty:
        return None
    scores = csi(together.sum("init_time"))
    horizon, reached, interval = None, False, None
    if PERSISTENCE in sides and not np.isnan(seconds := float(trust_horizon(scores))):
        horizon, reached = pd.Timedelta(seconds=seconds), is_reached(scores)
        block = pd.Timedelta(settings.block)
        interval = horizon_interval(together, block, settings.least_blocks, settings.samples)
    behind = None
    if ADVECTION in sides:
        chunk = pd.Timedelta(settings.chunk)
        behind = behind_advection(together, until, chunk, settings.least_chunks)

    def of(side: str) -> tuple[float, ...]:
        return tuple(scores.sel(side=side).values.tolist()) if side in sides else ()

    return Skill(
        since=times[0],
        until=times[-1],
        forecasts=len(times),
        csi=of(OWN),
        persistence=of(PERSISTENCE),
        advection=of(ADVECTION),
        trust_horizon=horizon,
        trust_horizon_reached=reached,
        trust_horizon_interval=interval,
        behind=behind,
    )


# What follows from it ----------------------------------------------------------------------------


def outdone(
    recent: RecentSkill | None,
    model: str,
    init_time: pd.Timestamp,
    after: dt.timedelta,
    expires: dt.timedelta,
) -> str:
    """How advection has outdone a model for `after` or longer; empty where it has not.

    Only forecasts by that very version count: its successor begins with none. One chunk in which
    it is ahead ends it; chunks count only when they are over, and then `after` begins anew: it is
    no flapping to and fro. What was verified counts, never how long ago that was. But where that
    ends more than `expires` before `init_time`, as verification has stopped, or nobody runs the
    model in shadow any more, its skill today is not known: it is not outdone, says the log.
    """
    skill = recent.of(model) if recent is not None else None
    if recent is None or skill is None or skill.behind is None or skill.behind.duration < after:
        return ""
    if not skill.is_recent(init_time, expires):
        text = "%s serves though it was behind advection: verified only up to %s"
        log.warning(text, model, time_text(skill.until))
        return ""
    behind = skill.behind
    return (
        f"{model} behind advection for {format_duration(behind.duration)}, "
        f"{time_text(behind.since)} to {time_text(behind.until)}: "
        f"CSI {behind.csi:.3f} against {behind.advection:.3f} at {recent.threshold_mm_h:g} mm/h"
    )
