"""Verification of what was published: each forecast against what came, beside the baselines."""

from functools import reduce
from operator import and_

import pandas as pd
import xarray as xr
from pydantic import Field

from models.baselines import build_baseline
from models.prediction import read_past
from pipelines.archive import Archive
from pipelines.errors import TooFewFramesError
from pipelines.forecasts import ensemble_mean, open_forecast
from pipelines.scores import THRESHOLDS_MM_H, contingency
from pipelines.section import Section
from pipelines.times import Duration


class VerifySettings(Section):
    """How forecasts are verified."""

    thresholds_mm_h: tuple[float, ...] = Field(
        THRESHOLDS_MM_H, min_length=1, description="Rain rates whose exceedance is scored, mm/h."
    )
    baselines: tuple[str, ...] = Field(
        ("persistence", "advection"), description="Forecasters scored beside the published one."
    )
    since: Duration | None = Field(
        None, description="Only forecasts this much older than the newest; all by default."
    )
    workers: int = Field(2, ge=1, le=256, description="Dask worker processes on this machine.")


def verify_forecast(
    root: str, product: str, archive_url: str, init_time: pd.Timestamp, settings: VerifySettings
) -> xr.Dataset | None:
    """Sums (forecaster, lead_time, threshold) of one published forecast; None if nothing came yet.

    An ensemble is scored by its mean. All forecasters are scored on the same pixels: observed, and
    forecast by every one of them. The published one is called by its model's id. Baselines
    get the frames that were in the archive up to the init_time, a missing one stood in for as in
    the nowcast itself.
    """
    archive = Archive(archive_url)
    published = open_forecast(root, product, init_time).load()
    lead_times = pd.TimedeltaIndex(published["lead_time"].values)
    came = archive.usable_times()
    lead_times = lead_times[(init_time + lead_times).isin(came)]
    if len(lead_times) == 0:
        return None
    observed = archive.read_frames(init_time + lead_times).drop_vars("crs")
    observed = observed.rename(time="lead_time").assign_coords(lead_time=lead_times)
    rain_rate = ensemble_mean(published["rain_rate"].sel(lead_time=lead_times))
    forecasts = {str(published.attrs["model"]): rain_rate}
    for name in settings.baselines:
        baseline = build_baseline(name)
        frames = max(baseline.past_frames, 2)
        try:
            past = read_past(archive, init_time, frames, most_missing=frames - 1)
        except TooFewFramesError:  # its own frame was replaced by a bad one since
            return None
        forecasts[name] = ensemble_mean(baseline.predict(past.frames, lead_times))
    fields = {
        name: forecast.drop_vars(set(forecast.coords) - {"lead_time", "y", "x"})
        for name, forecast in forecasts.items()
    }
    valid = reduce(and_, [field.notnull() for field in fields.values()])
    sums = [
        contingency(field, observed, settings.thresholds_mm_h, valid) for field in fields.values()
    ]
    return xr.concat(sums, pd.Index(list(fields), name="forecaster", dtype=object))
