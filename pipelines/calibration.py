"""Recalibration of exceedance probabilities, fitted on our own verified forecasts.

An ensemble that says 40 % where it rains in 25 of 100 cases is corrected to say 25 %: isotonic
regression (Niculescu-Mizil and Caruana 2005, sec. 2.2) of observed frequency on forecast
probability, for each threshold and each stretch of lead times, from the reliability sums of the
scores store. That keeps the order of probabilities, and gives their mean over the fit the observed
frequency. It also says how often it rained where no member rained: 0 is not kept 0.

How much it helps is measured on events that the fit has not seen: successive blocks of time make a
fold, and each fold is corrected by what the others say. The Brier score is by bins there (each
case counts with the mean probability of its bin), before and after alike. A threshold is proven
where that is lower, with an interval that excludes 0: others are not corrected, unless forced.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Collection
from importlib.metadata import version as version_of

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field
from scipy import optimize

from pipelines.bootstrap import block_sums, interval, resampled
from pipelines.errors import NotFoundError
from pipelines.section import Section
from pipelines.times import Duration, format_duration, now, time_text

CASES, FORECAST, EVENTS = "probability_cases", "probability_sum", "probability_events"
FOLDS = 5


class CalibrateSettings(Section):
    """How probabilities are recalibrated."""

    forecaster: str | None = Field(
        None,
        description="Whose: a model's id or a baseline; by default the model that nowcasts are "
        "made with, or, if no ensemble of it is verified, who has most cases.",
    )
    window: Duration = Field(
        dt.timedelta(days=90), description="How far before the newest scores the fit begins."
    )
    lead_step: Duration = Field(
        dt.timedelta(minutes=30),
        description="Lead times within such a stretch are fitted together.",
    )
    block: Duration = Field(dt.timedelta(hours=6), description="Length of an event.")
    least_blocks: int = Field(
        10, ge=FOLDS, description="Of fewer events with rain a threshold is left as it is."
    )
    samples: int = Field(1000, ge=100, description="Draws of the bootstrap.")


class Curve(BaseModel):
    """Observed frequency by forecast probability, ascending, for lead times to `until_seconds`."""

    model_config = ConfigDict(frozen=True)

    threshold_mm_h: float
    until_seconds: float
    probability: tuple[float, ...]
    frequency: tuple[float, ...]


class Reliability(BaseModel):
    """By bin, over all lead times, on events not seen: mean probability and observed frequency."""

    model_config = ConfigDict(frozen=True)

    threshold_mm_h: float
    cases: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    frequency: tuple[float, ...]
    brier_before: float
    brier_after: float
    change_interval: tuple[float, float]


class Calibration(BaseModel):
    """A fit, what it was fitted on, and how it did on events that it had not seen."""

    model_config = ConfigDict(frozen=True)

    version: str
    created: str
    forecaster: str
    since: str
    until: str
    forecasts: int
    blocks: int
    code: str
    curves: tuple[Curve, ...]
    reliability: tuple[Reliability, ...]
    left_out: tuple[float, ...]

    @property
    def proven(self) -> tuple[float, ...]:
        """The thresholds whose Brier score it lowers beyond doubt."""
        return tuple(one.threshold_mm_h for one in self.reliability if one.change_interval[1] < 0)

    def of(self, thresholds_mm_h: Collection[float]) -> "Calibration":
        """The same, for these thresholds alone: others are left as they are."""
        kept = tuple(one for one in self.curves if one.threshold_mm_h in thresholds_mm_h)
        return self.model_copy(update={"curves": kept})

    def curve(self, threshold_mm_h: float, lead_time: pd.Timedelta) -> Curve | None:
        """The one for a threshold and lead time: the last one for later ones. None: leave it."""
        own = [one for one in self.curves if np.isclose(one.threshold_mm_h, threshold_mm_h)]
        seconds = lead_time.total_seconds()
        return next((one for one in own if seconds <= one.until_seconds), own[-1] if own else None)

    def apply(self, probability: xr.DataArray) -> xr.DataArray:
        """Probabilities (threshold, lead_time, y, x), float32, corrected; NaN stays."""

        def corrected(field: xr.DataArray, threshold: float, lead: np.timedelta64) -> xr.DataArray:
            curve = self.curve(threshold, pd.Timedelta(lead))
            if curve is None:
                return field
            return xr.apply_ufunc(
                np.interp,
                field,
                kwargs={"xp": curve.probability, "fp": curve.frequency},
                dask="parallelized",
                output_dtypes=[float],
                keep_attrs=True,
            ).astype("f4")

        ordered = probability.transpose("threshold", "lead_time", ...)
        leads = ordered["lead_time"].values
        rows = [
            np.stack(
                [
                    corrected(ordered[row, column], float(threshold), lead).data
                    for column, lead in enumerate(leads)
                ]
            )
            for row, threshold in enumerate(ordered["threshold"].values)
        ]
        return ordered.copy(data=np.stack(rows)).transpose(*probability.dims)


# The fit -----------------------------------------------------------------------------------------


def fit(sums: xr.Dataset, forecaster: str, settings: CalibrateSettings) -> Calibration:
    """From reliability sums (init_time, lead_time, threshold, probability) of one forecaster.

    Raises `NotFoundError` where no threshold has rain in enough events.
    """
    sums = sums.isel(init_time=(sums[CASES].sum(_all_but_time(sums)) > 0).values)
    sums = _stretches(sums, settings)
    blocks = block_sums(sums, settings.block)
    rainy = (blocks[EVENTS].sum(("stretch", "probability")) > 0).sum("block")
    kept = blocks["threshold"].values[rainy.values >= settings.least_blocks]
    if len(kept) == 0:
        most = int(rainy.max()) if rainy.size else 0
        raise NotFoundError(
            f"too little to recalibrate {forecaster} by",
            found=f"{most} events of {format_duration(settings.block)} with rain, "
            f"of {sums.sizes['init_time']} verified ensembles",
            expected=f"at least {settings.least_blocks}, at one threshold",
            remedy="verify more ensembles, or lower calibrate.least_blocks",
        )
    blocks = blocks.sel(threshold=kept)
    times = pd.DatetimeIndex(sums["init_time"].values)
    curves = _curves(blocks.sum("block"))
    reliability = _held_out(blocks, settings)
    facts = json.dumps([forecaster, time_text(times[-1]), [c.model_dump() for c in curves]])
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    return Calibration(
        version=f"{now():%Y%m%dT%H%M%SZ}-{digest}",
        created=time_text(now()),
        forecaster=forecaster,
        since=time_text(times[0]),
        until=time_text(times[-1]),
        forecasts=len(times),
        blocks=blocks.sizes["block"],
        code=f"squall {version_of('squall')}",
        curves=curves,
        reliability=reliability,
        left_out=tuple(map(float, np.setdiff1d(sums["threshold"].values, kept))),
    )


def _all_but_time(sums: xr.Dataset) -> list[str]:
    return [str(dim) for dim in sums[CASES].dims if dim != "init_time"]


def _stretches(sums: xr.Dataset, settings: CalibrateSettings) -> xr.Dataset:
    """Lead times of a stretch added up; `stretch` is the end of each, in seconds."""
    leads = pd.TimedeltaIndex(sums["lead_time"].values).total_seconds().to_numpy()
    step = pd.Timedelta(settings.lead_step).total_seconds()
    ends = np.ceil(leads / step) * step
    only = sums[[CASES, FORECAST, EVENTS]].assign_coords(stretch=("lead_time", ends))
    return only.groupby("stretch").sum()


def _curves(total: xr.Dataset) -> tuple[Curve, ...]:
    return tuple(
        _curve(total.sel(threshold=threshold, stretch=stretch), float(threshold), float(stretch))
        for threshold in total["threshold"].values
        for stretch in total["stretch"].values
    )


def _curve(sums: xr.Dataset, threshold: float, until: float) -> Curve:
    """Isotonic regression by bin, each with the weight of its cases; identity without cases."""
    some = (sums[CASES] > 0).values
    if not some.any():
        return Curve(
            threshold_mm_h=threshold, until_seconds=until, probability=(0, 1), frequency=(0, 1)
        )
    cases = sums[CASES].values[some]
    probability = sums[FORECAST].values[some] / cases
    frequency = sums[EVENTS].values[some] / cases
    fitted = optimize.isotonic_regression(frequency, weights=cases).x.clip(0, 1)
    return Curve(
        threshold_mm_h=threshold,
        until_seconds=until,
        probability=tuple(map(float, probability)),
        frequency=tuple(map(float, fitted)),
    )


def _held_out(blocks: xr.Dataset, settings: CalibrateSettings) -> tuple[Reliability, ...]:
    """Reliability and Brier score before and after, each block corrected by other folds' fit."""
    number = blocks.sizes["block"]
    fold = np.arange(number) * FOLDS // number  # neighbours see the same rain: they stay together
    parts = []
    for one in range(FOLDS):
        own = blocks.isel(block=fold == one)
        curves = _curves(blocks.isel(block=fold != one).sum("block"))
        parts.append(own.assign(after=_corrected(own, curves)))
    whole = xr.concat(parts, "block").sortby("block")
    cases, events = whole[CASES], whole[EVENTS]
    before = (whole[FORECAST] / cases.where(cases > 0)).fillna(0.0)
    error = xr.Dataset(
        {
            name: (cases * p**2 - 2 * p * events + events).sum(("stretch", "probability"))
            for name, p in (("before", before), ("after", whole["after"]))
        }
    ).assign(cases=cases.sum(("stretch", "probability")))
    drawn = resampled(error.rename(block="init_time"), settings.block, settings.samples)
    change = interval((drawn["after"] - drawn["before"]) / drawn["cases"])
    total = error.sum("block")
    over = ("block", "stretch")
    count = cases.sum(over)
    mean = {
        "before": whole[FORECAST].sum(over) / count,
        "after": (whole["after"] * cases).sum(over) / count,
        "frequency": events.sum(over) / count,
    }
    return tuple(
        Reliability(
            threshold_mm_h=float(threshold),
            cases=_tuple(count.sel(threshold=threshold)),
            **{n: _tuple(v.sel(threshold=threshold).fillna(-1.0)) for n, v in mean.items()},
            brier_before=float((total["before"] / total["cases"]).sel(threshold=threshold)),
            brier_after=float((total["after"] / total["cases"]).sel(threshold=threshold)),
            change_interval=(
                float(change.sel(threshold=threshold, bound="lower")),
                float(change.sel(threshold=threshold, bound="upper")),
            ),
        )
        for threshold in whole["threshold"].values
    )


def _corrected(own: xr.Dataset, curves: tuple[Curve, ...]) -> xr.DataArray:
    """The mean probability of each bin, corrected."""
    mean = (own[FORECAST] / own[CASES].where(own[CASES] > 0)).fillna(0.0)
    after = mean.copy()
    for curve in curves:
        at = {"threshold": curve.threshold_mm_h, "stretch": curve.until_seconds}
        after.loc[at] = np.interp(mean.sel(at), curve.probability, curve.frequency)
    return after


def _tuple(values: xr.DataArray) -> tuple[float, ...]:
    return tuple(map(float, values.values))
