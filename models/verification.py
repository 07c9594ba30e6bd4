"""Verification of what was served: a forecast against what came, beside shadows and baselines."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import xarray as xr
from pydantic import Field

from models.baselines import build_baseline
from models.past import read_past
from pipelines.archive import Archive
from pipelines.compare import Bounds, Scoring, compare
from pipelines.due import Due
from pipelines.errors import TooFewFramesError
from pipelines.forecasts import FIRST, open_forecast
from pipelines.fss import SCALES_KM
from pipelines.score_store import SERVED
from pipelines.scores import THRESHOLDS_MM_H
from pipelines.section import Section
from pipelines.shadows import shadow_root
from pipelines.skill import SkillSettings
from pipelines.times import Duration, utc
from pipelines.window import Window, window

log = logging.getLogger(__name__)

VERSION = 1
"""Of what is computed here and in `pipelines.compare`: with another one, all is scored again."""
TOLD = {"model": "", "requested_model": "", "quality": "", "backfill": 0}
"""What the scores say of the forecast that was served, and what stands for nothing."""


class VerifySettings(Section):
    """How forecasts are verified."""

    thresholds_mm_h: tuple[float, ...] = Field(
        THRESHOLDS_MM_H, min_length=1, description="Rain rates whose exceedance is scored, mm/h."
    )
    scales_km: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        SCALES_KM, description="Neighbourhoods of the fractions skill score, km; [] for none."
    )
    regions: dict[str, Bounds] = Field(
        {}, description="Parts of the domain scored too, by name: west, south, east, north in °."
    )
    baselines: tuple[str, ...] = Field(
        ("persistence", "advection"),
        description="Forecasters scored beside the served one, made now where they have no shadow "
        "forecast.",
    )
    since: Duration | None = Field(
        None, description="Only forecasts this much older than the newest; all by default."
    )
    partial: bool = Field(
        False,
        description="Score also forecasts whose last lead times have not come yet, and again when "
        "they have.",
    )
    skill: SkillSettings = SkillSettings()
    workers: int = Field(2, ge=1, le=256, description="Dask worker processes on this machine.")


def rules(settings: VerifySettings) -> str:
    """All of the settings that scores follow from, and the version of the code, as text."""
    what = settings.model_dump(include={"thresholds_mm_h", "scales_km", "regions", "baselines"})
    return json.dumps([VERSION, what], sort_keys=True)


def verify_forecast(
    root: str, product: str, archive_url: str, due: Due, settings: VerifySettings
) -> xr.Dataset:
    """Sums (init_time, forecaster, lead_time, region, …) of one init_time, for the scores store.

    Forecasters are "served", the first published revision; those with a shadow forecast; and those
    of `settings.baselines` without one, made now from frames that the served one had too. All are
    scored on the same pixels: observed, and forecast by every one of them. A lead time without an
    observation has no pixels. A shadow forecast that lacks lead times is left out, and so is a
    baseline that cannot be made.
    """
    archive = Archive(archive_url)
    observed = _observed(archive, due)
    lead_times = pd.TimedeltaIndex(observed["lead_time"].values)
    served = open_forecast(root, product, due.init_time, FIRST)
    forecasts = {SERVED: served["rain_rate"].sel(lead_time=lead_times)}
    for name in due.shadows:
        shadow = open_forecast(shadow_root(root, name), product, due.init_time, FIRST)["rain_rate"]
        if lead_times.isin(shadow["lead_time"].values).all():
            forecasts[name] = shadow.sel(lead_time=lead_times)
    if served.attrs.get("model") in settings.baselines:
        forecasts.setdefault(str(served.attrs["model"]), forecasts[SERVED])
    missing = [name for name in settings.baselines if name not in forecasts]
    forecasts |= _baselines(archive, due.init_time, lead_times, missing, served.attrs)
    what = (settings.thresholds_mm_h, settings.scales_km, settings.regions)
    sums = compare(forecasts, observed, Scoring.on(archive.grid, *what))
    told: dict[str, Any] = {name: served.attrs.get(name, nothing) for name, nothing in TOLD.items()}
    told |= {"revision": FIRST, "digest": due.digest, "shadows": json.dumps(due.shadows)}
    return (
        sums.reindex(lead_time=due.lead_times, fill_value=0.0)
        .expand_dims(init_time=[due.init_time])
        .assign_coords({name: ("init_time", [value]) for name, value in told.items()})
    )


@dataclass(frozen=True)
class Failure:
    """A forecast that could not be scored, and why."""

    init_time: pd.Timestamp
    why: str


def try_forecast(
    root: str, product: str, archive_url: str, due: Due, settings: VerifySettings
) -> xr.Dataset | Failure:
    """See `verify_forecast`; what goes wrong with one forecast keeps no other from being scored."""
    try:
        return verify_forecast(root, product, archive_url, due, settings)
    except Exception as error:
        return Failure(due.init_time, f"{type(error).__name__}: {' '.join(str(error).split())}")


def died(root: str, product: str, archive_url: str, due: Due, settings: VerifySettings) -> Failure:
    """What `try_forecast` would say of a forecast that took its process with it."""
    return Failure(due.init_time, "the process that scored it died, every time")


def _observed(archive: Archive, due: Due) -> xr.DataArray:
    """What came (lead_time, y, x), mm/h: the lead times that have a frame; the first if none has.

    Then it is missing everywhere.
    """
    usable = archive.usable_times(due.init_time, due.init_time + due.lead_times.max())
    came = due.lead_times[(due.init_time + due.lead_times).isin(usable)]
    lead_times = came if len(came) else due.lead_times[:1]
    observed = archive.read_frames(due.init_time + lead_times).drop_vars("crs")
    return observed.rename(time="lead_time").assign_coords(lead_time=lead_times)


def _baselines(
    archive: Archive,
    init_time: pd.Timestamp,
    lead_times: pd.TimedeltaIndex,
    names: list[str],
    served: Mapping[str, Any],
) -> dict[str, xr.DataArray]:
    """The forecasts of baselines, from the frames that the served forecast had.

    The nearest frame stands in for a missing one. Without the frame at `init_time` there is none;
    and pysteps may fail on an odd sky.
    """
    made = {}
    for name in names:
        baseline = build_baseline(name)
        frames = max(baseline.past_frames, 2)
        had = frames_had(window(archive, init_time, frames), served)
        try:
            past = read_past(archive, init_time, frames, most_missing=frames - 1, only=had)
            made[name] = baseline.predict(past.frames, lead_times)
        except TooFewFramesError as error:
            log.warning("%s is not scored: %s", name, error)
        except Exception:
            log.warning("%s fails at %s", name, init_time, exc_info=True)
    return made


def frames_had(there: Window, served: Mapping[str, Any]) -> set[pd.Timestamp]:
    """Of the frames that are there now, the times of those that were there for the served forecast.

    It lists the frames of its own window that it was made from, with their hashes: one that came
    later or was corrected since is none of them. Of further ones the manifest says when they were
    taken in. All, where it lists none.
    """
    hashes = served.get("input_sha256", ())
    listed = dict(zip(map(utc, served.get("input_times", ())), hashes, strict=True))
    if not listed:
        return set(there.files)
    window_times = {*listed, *map(utc, served.get("bridged_times", ()))}
    published = utc(served["publish_time"])
    return {
        time
        for time, row in there.files.items()
        if (
            there.sha256(time) == listed.get(time)
            if time in window_times
            else row is None or utc(row.ingested) <= published
        )
    }
