"""Verification of what was published: each forecast against what came, beside the baselines."""

from typing import Annotated

import pandas as pd
import xarray as xr
from pydantic import Field

from models.baselines import build_baseline
from models.evaluation import forecast_from, observed_after
from pipelines.archive import Archive
from pipelines.compare import Scoring, compare
from pipelines.errors import TooFewFramesError
from pipelines.forecasts import ensemble_mean, open_forecast
from pipelines.fss import SCALES_KM
from pipelines.scores import THRESHOLDS_MM_H
from pipelines.section import Section
from pipelines.times import Duration


class VerifySettings(Section):
    """How forecasts are verified."""

    thresholds_mm_h: tuple[float, ...] = Field(
        THRESHOLDS_MM_H, min_length=1, description="Rain rates whose exceedance is scored, mm/h."
    )
    scales_km: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        SCALES_KM, description="Neighbourhoods of the fractions skill score, km; [] for none."
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
    """Sums (forecaster, lead_time, threshold[, scale]) of one forecast; None if nothing came yet.

    An ensemble is scored by its mean. All forecasters are scored on the same pixels: observed, and
    forecast by every one of them. The published one is called by its model's id. Baselines
    get the frames that were in the archive up to the init_time, a missing one stood in for as in
    the nowcast itself.
    """
    archive = Archive(archive_url)
    published = open_forecast(root, product, init_time)
    observed = observed_after(archive, init_time, pd.TimedeltaIndex(published["lead_time"].values))
    lead_times = pd.TimedeltaIndex(observed["lead_time"].values)
    if len(lead_times) == 0:
        return None
    rain_rate = ensemble_mean(published["rain_rate"].sel(lead_time=lead_times).load())
    forecasts = {str(published.attrs["model"]): rain_rate}
    for name in settings.baselines:
        try:
            baseline = build_baseline(name)
            forecasts[name] = forecast_from(archive, baseline, init_time, lead_times)
        except TooFewFramesError:  # its own frame was replaced by a bad one since
            return None
    scoring = Scoring.on(archive.grid, settings.thresholds_mm_h, settings.scales_km)
    return compare(forecasts, observed, scoring)
