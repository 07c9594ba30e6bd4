"""Verification scores from mergeable sums.

A forecast is compared with what was observed once, giving sums (`contingency`); sums of any number
of forecasts, in any order and from any process, add up (`merge`); scores are divided out last
(`scores`). So how the work was distributed cannot change a score.

Definitions (Wilks 2019, ch. 8; Shi et al. 2015, sec. 4.2), for an event "rain rate ≥ threshold":

    CSI = hits / (hits + misses + false alarms)      POD = hits / (hits + misses)
    FAR = false alarms / (hits + false alarms)       MSE, MAE = mean of (F−O)², |F−O|
    FSS by neighbourhood: see `pipelines.fss`

A score whose denominator is zero is NaN. Only pixels observed and forecast by everyone count.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import and_

import numpy as np
import pandas as pd
import xarray as xr

from pipelines.fss import FRACTION_SUMS, Window, fractions

THRESHOLDS_MM_H = (0.5, 2.0, 5.0, 10.0, 30.0)
"""HKO-7's thresholds (Shi et al. 2017)."""
SUMS = (
    "hits",
    "misses",
    "false_alarms",
    "correct_negatives",
    "squared_error",
    "absolute_error",
    "pixels",
)


def contingency(
    forecast: xr.DataArray,
    observed: xr.DataArray,
    thresholds_mm_h: Iterable[float] = THRESHOLDS_MM_H,
    valid: xr.DataArray | None = None,
) -> xr.Dataset:
    """Sums over y and x; other dimensions (lead_time, init_time, …) stay.

    Parameters
    ----------
    forecast, observed : (…, y, x) mm/h, NaN where missing
    thresholds_mm_h : an event is a rain rate at or above a threshold
    valid : (…, y, x) bool, further pixels to leave out (where another forecast is missing)

    Returns
    -------
    hits, misses, false_alarms, correct_negatives (…, threshold); squared_error, absolute_error,
    pixels (…): float64
    """
    both = forecast.notnull() & observed.notnull()
    if valid is not None:
        both = both & valid
    error = (forecast.astype("f8") - observed.astype("f8")).where(both, 0.0)
    pixels = both.sum(("y", "x"))
    # In single precision, in which 0.7 mm/h is 0.7 mm/h whether read by xarray or by us.
    forecast, observed = forecast.astype("f4"), observed.astype("f4")
    thresholds = [float(threshold) for threshold in thresholds_mm_h]
    events = []
    for threshold in thresholds:  # one at a time: all at once would take five times the memory
        forecast_event = (forecast >= np.float32(threshold)) & both
        observed_event = (observed >= np.float32(threshold)) & both
        hits = (forecast_event & observed_event).sum(("y", "x"))
        misses = observed_event.sum(("y", "x")) - hits
        false_alarms = forecast_event.sum(("y", "x")) - hits
        correct_negatives = pixels - hits - misses - false_alarms
        counts = (hits, misses, false_alarms, correct_negatives)
        events.append(xr.Dataset(dict(zip(SUMS[:4], counts, strict=True))))
    dataset = xr.concat(events, pd.Index(thresholds, name="threshold")).assign(
        squared_error=(error**2).sum(("y", "x")),
        absolute_error=abs(error).sum(("y", "x")),
        pixels=pixels,
    )
    dataset = dataset.drop_vars(set(dataset.coords) - set(dataset.dims)).astype("f8").drop_attrs()
    dataset["threshold"].attrs["units"] = "mm h-1"
    return dataset[list(SUMS)].transpose(..., "threshold")


def compare(
    forecasts: Mapping[str, xr.DataArray],
    observed: xr.DataArray,
    thresholds_mm_h: Iterable[float],
    windows: Mapping[float, Window],
) -> xr.Dataset:
    """Sums (forecaster, …) of forecasts by name, all on the same pixels.

    Those are the ones that were observed and that every one of them forecast. `windows` come from
    `pipelines.fss.windows`; without any, the sums have no fractions.
    """
    thresholds = list(thresholds_mm_h)
    fields = [
        forecast.drop_vars(set(forecast.coords) - {"lead_time", "y", "x"})
        for forecast in forecasts.values()
    ]
    valid = reduce(and_, [field.notnull() for field in fields])
    parts = [contingency(field, observed, thresholds, valid) for field in fields]
    if windows:
        parts = [
            part.merge(fractions(field, observed, thresholds, windows, valid))
            for part, field in zip(parts, fields, strict=True)
        ]
    return xr.concat(parts, pd.Index(list(forecasts), name="forecaster", dtype=object))


def merge(parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """Add sums up; a lead time or threshold that a part lacks adds nothing there.

    Fractions, which sums stored by earlier versions lack, stay only where every part has them.
    """
    parts = list(parts)
    total = parts[0]
    for part in parts[1:]:
        left, right = xr.align(total, part, join="outer", fill_value=0.0)
        total = left + right
    return total


def scores(sums: xr.Dataset) -> xr.Dataset:
    """CSI, POD, FAR (…, threshold) and MSE (mm²/h²), MAE (mm/h), both (…), from sums.

    FSS (…, threshold, scale) too where the sums have fractions.
    """
    hits, misses, false_alarms = sums["hits"], sums["misses"], sums["false_alarms"]

    def ratio(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
        return part / whole.where(whole > 0)

    result = xr.Dataset(
        {
            "csi": ratio(hits, hits + misses + false_alarms),
            "pod": ratio(hits, hits + misses),
            "far": ratio(false_alarms, hits + false_alarms),
            "mse": ratio(sums["squared_error"], sums["pixels"]),
            "mae": ratio(sums["absolute_error"], sums["pixels"]),
        }
    )
    if FRACTION_SUMS[0] in sums:
        result["fss"] = 1 - ratio(sums["fraction_error"], sums["fraction_reference"])
    return result
