"""How good the forecasts have been lately, and how far ahead to trust them.

    {root}/scores/{product}/_skill.json

Written at the end of every verification, read by every nowcast: a forecast carries the skill of the
model that made it. Forecasters are compared on the init_times that both forecast.

The trust horizon is the lead time at which a forecast stops beating persistence:

    the last lead time L with CSI(forecaster) > CSI(persistence) at L and at every shorter lead time

0 where it does not even beat it at the first. Its interval is what the middle 95 % of the same lie
between when whole events are drawn with replacement (`pipelines.bootstrap`); in a draw a lead time
without rain beats nothing. Of too few events there is none.

A model is behind advection in an hour of init_times if its CSI over all lead times is lower. It is
behind since the first of the hours, up to the newest, in which nothing else was the case. Hours
without rain say nothing.
"""

import datetime as dt
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from pipelines import score_store, storage
from pipelines.bootstrap import LEVEL, block_sums, resampled
from pipelines.compare import DOMAIN
from pipelines.errors import NotFoundError
from pipelines.score_store import folder_url, of_forecaster, open_scores
from pipelines.section import Section
from pipelines.times import Duration, now, time_text, utc

log = logging.getLogger(__name__)

FILE = "_skill.json"
"""Names with an underscore are passed over by those who read the folder as Parquet."""
COUNTS = ("hits", "misses", "false_alarms")
HOUR = pd.Timedelta("1h")
PERSISTENCE, ADVECTION = "persistence", "advection"


class SkillSettings(Section):
    """What recent skill is."""

    window: Duration = Field(
        dt.timedelta(days=7), description="How far before the newest verified forecast it begins."
    )
    threshold_mm_h: float = Field(
        0.5, gt=0, description="The rain rate whose CSI it is; the nearest that is verified."
    )
    block: Duration = Field(
        dt.timedelta(hours=6), description="Length of an event for the bootstrap."
    )
    least_blocks: int = Field(
        5, ge=2, description="Of fewer events the trust horizon has no interval."
    )
    samples: int = Field(1000, ge=100, description="Draws of the bootstrap.")


@dataclass(frozen=True)
class ForecasterSkill:
    """One forecaster's.

    Attributes
    ----------
    forecasts : how many of its forecasts it is of
    csi : by lead time; None without rain
    trust_horizon_seconds : see the module; None where rain or persistence is lacking
    trust_horizon_open : it beats persistence at every lead time there is, and perhaps beyond
    trust_horizon_interval_seconds : lower and upper; empty where it is not known
    behind_advection_since : ISO 8601 UTC; None where it is not
    """

    forecasts: int
    csi: tuple[float | None, ...]
    trust_horizon_seconds: float | None = None
    trust_horizon_open: bool = False
    trust_horizon_interval_seconds: tuple[float, ...] = ()
    behind_advection_since: str | None = None


@dataclass(frozen=True)
class RecentSkill:
    """The skill of every forecaster lately: "served", baselines, and models by their ids.

    `since` and `until` are the first and last init_time, ISO 8601 UTC, `made` is when it was
    computed; lead times in seconds; the threshold in mm/h.
    """

    made: str
    since: str
    until: str
    threshold_mm_h: float
    lead_seconds: tuple[float, ...]
    forecasters: dict[str, ForecasterSkill]

    def behind_advection(self, forecaster: str) -> pd.Timedelta:
        """For how long, up to the newest verified forecast; 0 where it is not known to be."""
        skill = self.forecasters.get(forecaster)
        if skill is None or skill.behind_advection_since is None:
            return pd.Timedelta(0)
        return utc(self.until) - utc(skill.behind_advection_since)


def recent_skill(sums: xr.Dataset, settings: SkillSettings) -> RecentSkill:
    """From sums by init_time (`score_store.open_scores`), of their whole domain."""
    sums = sums[[*COUNTS, "pixels"]].sel(region=DOMAIN, drop=True)
    sums = sums.sel(threshold=settings.threshold_mm_h, method="nearest")
    times = pd.DatetimeIndex(sums["init_time"].values)
    named = {str(name) for name in sums["forecaster"].values}
    served_by = set(map(str, sums["model"].values)) if "model" in sums.coords else set()
    of = {name: _made_by(sums, name) for name in sorted((named | served_by) - {""})}
    leads = pd.TimedeltaIndex(sums["lead_time"].values)
    return RecentSkill(
        made=time_text(now()),
        since=time_text(times[0]),
        until=time_text(times[-1]),
        threshold_mm_h=float(sums["threshold"]),
        lead_seconds=tuple(leads.total_seconds()),
        forecasters={name: _skill(own, of, name, settings) for name, own in of.items()},
    )


def _made_by(sums: xr.Dataset, forecaster: str) -> xr.Dataset:
    """A forecaster's own sums, of the init_times that it forecast."""
    own = of_forecaster(sums, forecaster)
    return own.isel(init_time=(own["pixels"] > 0).any("lead_time").values)


def _skill(
    own: xr.Dataset, of: dict[str, xr.Dataset], name: str, settings: SkillSettings
) -> ForecasterSkill:
    csi = _csi(own.sum("init_time")).values
    told = tuple(None if np.isnan(one) else round(float(one), 4) for one in csi)
    skill: dict[str, Any] = {"forecasts": own.sizes["init_time"], "csi": told}
    if PERSISTENCE in of and name != PERSISTENCE:
        skill |= _trust(*paired(own, of[PERSISTENCE]), settings)
    if ADVECTION in of and name != ADVECTION:
        since = _behind_since(*paired(own, of[ADVECTION]))
        skill["behind_advection_since"] = None if since is None else time_text(since)
    return ForecasterSkill(**skill)


def paired(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Both on the init_times that both have."""
    common = one.indexes["init_time"].intersection(other.indexes["init_time"])
    return one.sel(init_time=common), other.sel(init_time=common)


def _csi(sums: xr.Dataset) -> xr.DataArray:
    events = sum(sums[name] for name in COUNTS)
    return sums["hits"] / xr.where(events > 0, events, np.nan)


def _trust(own: xr.Dataset, reference: xr.Dataset, settings: SkillSettings) -> dict[str, Any]:
    """The trust horizon and its interval."""
    if own.sizes["init_time"] == 0:
        return {}
    horizon, known = _horizon(own.sum("init_time"), reference.sum("init_time"))
    if not known.item():
        return {}
    last = float(pd.Timedelta(own["lead_time"].values[-1]).total_seconds())
    found: dict[str, Any] = {
        "trust_horizon_seconds": horizon.item(),
        "trust_horizon_open": horizon.item() == last,
    }
    if block_sums(own, settings.block).sizes["block"] >= settings.least_blocks:
        drawn = (resampled(one, settings.block, settings.samples) for one in (own, reference))
        draws, _ = _horizon(*drawn)
        tail = (1 - LEVEL) / 2
        bounds = np.quantile(draws, [tail, 1 - tail], method="nearest")
        found["trust_horizon_interval_seconds"] = tuple(map(float, bounds))
    return found


def _horizon(own: xr.Dataset, reference: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Seconds, and whether there was rain at the first lead time to say it from."""
    better = _csi(own) > _csi(reference)
    steps = better.cumprod("lead_time").sum("lead_time").astype(int)
    seconds = pd.TimedeltaIndex(own["lead_time"].values).total_seconds().to_numpy()
    ends = np.concatenate([[0.0], seconds])
    known = _csi(own).isel(lead_time=0).notnull()
    return xr.DataArray(ends[steps.values], dims=steps.dims), known


def _behind_since(own: xr.Dataset, reference: xr.Dataset) -> pd.Timestamp | None:
    """The init_time since when it has been behind without a break; None where it is not."""
    if own.sizes["init_time"] == 0:
        return None
    hours = [block_sums(one.sum("lead_time"), HOUR) for one in (own, reference)]
    behind = (_csi(hours[0]) < _csi(hours[1])).to_series()
    behind = behind[(_csi(hours[0]).notnull() & _csi(hours[1]).notnull()).to_series()]
    since = None
    for hour, worse in zip(behind.index[::-1], behind[::-1], strict=True):
        if not worse:
            break
        since = hour
    return None if since is None else max(pd.Timestamp(since), own.indexes["init_time"][0])


# The file ----------------------------------------------------------------------------------------


def update_skill(root: str, product: str, settings: SkillSettings) -> RecentSkill | None:
    """Compute it from the scores store and write it; None where nothing is verified."""
    days = score_store.days(root, product)
    if days.empty:
        return None
    newest = score_store.read_rows(root, product, days[-1], columns=["init_time"])["init_time"]
    if newest.empty:  # removed since
        return None
    start = pd.Timestamp(newest.max()) - pd.Timedelta(settings.window)
    try:
        skill = recent_skill(open_scores(root, product, start, sums=(*COUNTS, "pixels")), settings)
    except NotFoundError:
        return None
    storage.write_json(f"{folder_url(root, product)}/{FILE}", asdict(skill))
    return skill


def read_skill(root: str, product: str) -> RecentSkill | None:
    """As last written; None where it is not, or cannot be read: no nowcast waits for that."""
    url = f"{folder_url(root, product)}/{FILE}"
    try:
        stored = json.loads(storage.read_bytes(url))
        of = {
            name: ForecasterSkill(
                **one | {key: tuple(one[key]) for key in ("csi", "trust_horizon_interval_seconds")}
            )
            for name, one in stored.pop("forecasters").items()
        }
        stored["lead_seconds"] = tuple(stored["lead_seconds"])
        return RecentSkill(**stored, forecasters=of)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        log.warning("%s cannot be read: %s", storage.display(url), error)
        return None


def skill_attributes(skill: RecentSkill | None, forecaster: str) -> dict[str, Any]:
    """What a forecast says of the skill of the one that made it, ready for Zarr and netCDF.

    Lists are by `recent_skill_lead_seconds`: the lead times at which its CSI is known.
    """
    own = skill.forecasters.get(forecaster) if skill else None
    if skill is None or own is None or not any(one is not None for one in own.csi):
        return {"skill_note": f"no forecast by {forecaster} has been verified lately"}
    known = [k for k, one in enumerate(own.csi) if one is not None]
    told: dict[str, Any] = {
        "recent_skill_score": f"CSI at {skill.threshold_mm_h:g} mm h-1",
        "recent_skill_forecasts": own.forecasts,
        "recent_skill_since": skill.since,
        "recent_skill_until": skill.until,
        "recent_skill_lead_seconds": [skill.lead_seconds[k] for k in known],
        "recent_skill": [own.csi[k] for k in known],
    }
    for name in (PERSISTENCE, ADVECTION):
        other = skill.forecasters.get(name)
        if other is not None and all(other.csi[k] is not None for k in known):
            told[f"recent_skill_{name}"] = [other.csi[k] for k in known]
    note = f"of {own.forecasts} forecasts by {forecaster}"
    if own.trust_horizon_seconds is not None:
        told["trust_horizon_seconds"] = own.trust_horizon_seconds
        bounds = own.trust_horizon_interval_seconds
        if bounds:
            told["trust_horizon_interval_seconds"] = list(bounds)
        note += "; the trust horizon is the last lead time at which they beat persistence"
        note += " (all that there are)" if own.trust_horizon_open else ""
        note += "" if bounds else "; too few events for its interval"
    return told | {"skill_note": note}
