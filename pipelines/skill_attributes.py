"""What a published forecast tells of the recent skill of the model that made it, as attributes.

    recent_skill_score              "CSI at 0.5 mm h-1"
    recent_skill_lead_seconds       the lead times at which it is known
    recent_skill                    at these, the model's own, and on the same forecasts
    recent_skill_persistence          persistence's
    recent_skill_advection            advection's; empty where they were not scored
    recent_skill_forecasts          of how many forecasts
    recent_skill_since, …_until     the first and last of their init_times
    trust_horizon_seconds           up to which lead time it beats persistence
    trust_horizon_interval_seconds  its 95 % interval
    trust_horizon_reached           0: it was not seen to stop there, so that is a lower bound
    skill_note                      the same in words, or why there is none

All are there always: what is not known is an empty list, an empty text, or 0 forecasts. They are
numbers, texts and lists of one kind without NaN, which Zarr's JSON and netCDF both hold.
"""

import datetime as dt

import numpy as np
import pandas as pd

from pipelines.skill import RecentSkill, Skill
from pipelines.times import format_duration, time_text

NOTHING = {
    "recent_skill_score": "",
    "recent_skill_lead_seconds": [],
    "recent_skill": [],
    "recent_skill_persistence": [],
    "recent_skill_advection": [],
    "recent_skill_forecasts": 0,
    "recent_skill_since": "",
    "recent_skill_until": "",
    "trust_horizon_seconds": [],
    "trust_horizon_interval_seconds": [],
    "trust_horizon_reached": 0,
    "skill_note": "no verified forecasts known",
}
"""Where no skill is known."""


def skill_attributes(
    recent: RecentSkill | None, model: str, init_time: pd.Timestamp, expires: dt.timedelta
) -> dict[str, object]:
    """The attributes of a forecast by `model`; see the module.

    `expires` : skill up to a time so much before `init_time` is said not to be recent
    """
    if recent is None:
        return dict(NOTHING)
    skill = recent.of(model)
    if skill is None:
        until = time_text(recent.until)
        return NOTHING | {"skill_note": f"no forecasts by {model} verified lately, up to {until}"}
    known = [k for k, value in enumerate(skill.csi) if not np.isnan(value)]

    def of(values: tuple[float, ...]) -> list[float]:
        return [round(values[k], 4) for k in known] if values else []

    horizon, interval = skill.trust_horizon, skill.trust_horizon_interval
    return {
        "recent_skill_score": f"CSI at {recent.threshold_mm_h:g} mm h-1",
        "recent_skill_lead_seconds": [recent.lead_times[k].total_seconds() for k in known],
        "recent_skill": of(skill.csi),
        "recent_skill_persistence": of(skill.persistence),
        "recent_skill_advection": of(skill.advection),
        "recent_skill_forecasts": skill.forecasts,
        "recent_skill_since": time_text(skill.since),
        "recent_skill_until": time_text(skill.until),
        "trust_horizon_seconds": [] if horizon is None else horizon.total_seconds(),
        "trust_horizon_interval_seconds": [one.total_seconds() for one in interval or ()],
        "trust_horizon_reached": int(skill.trust_horizon_reached),
        "skill_note": _note(skill, bool(known), skill.is_recent(init_time, expires)),
    }


def _note(skill: Skill, rained: bool, recent: bool) -> str:
    """In words."""
    period = f"{time_text(skill.since)} to {time_text(skill.until)}"
    notes = [f"{skill.forecasts} forecasts verified, {period}{'' if recent else ': not recent'}"]
    if not rained:
        notes.append("without rain at that threshold")
    elif not skill.persistence:
        notes.append("not compared with persistence")
    else:
        notes.append(f"trust horizon {horizon_text(skill)}")
    if skill.behind is not None:
        notes.append(f"behind advection since {time_text(skill.behind.since)}")
    return "; ".join(notes)


def horizon_text(skill: Skill) -> str:
    """The trust horizon for people: ``45min (30min to 1h)``; ``at least 1h`` where not reached."""
    if skill.trust_horizon is None:
        return "unknown"
    text = "" if skill.trust_horizon_reached else "at least "
    text += format_duration(skill.trust_horizon)
    if skill.trust_horizon_interval is None:
        return f"{text} (interval unknown)"
    lower, upper = map(format_duration, skill.trust_horizon_interval)
    return f"{text} ({lower} to {upper})"
