"""What users need of a forecast: how much falls, and how likely it is to rain harder than so much.

From ``rain_rate([member,] lead_time, y, x)`` in mm/h:

    rain_amount_15min(lead_time, y, x)                      mm over the 15 min that end at lead_time
    exceedance_probability(threshold, lead_time, y, x)      share of members at or above threshold

A rate holds over the timestep that ends at its lead time (so radars measure: KNMI's files are sums
over the 5 min before their time). An amount is the sum of rate times the part of the window that
it holds for, exactly, whether or not the window is a multiple of the timestep. Where the window
begins before init_time, or one of its rates is missing, so is the amount. An ensemble's amounts are
those of its mean. Amounts above 655.34 mm, what a stored integer can say, count as that.

On a Dask-backed forecast everything is lazy: a frame of amounts needs the frames of its window, a
frame of probabilities the members at one lead time.
"""

import datetime as dt
from typing import Annotated, Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from pipelines.archive import PACKING, TIME_ENCODING
from pipelines.calibration import Calibration
from pipelines.grid import CRS_VARIABLE
from pipelines.scores import THRESHOLDS_MM_H
from pipelines.section import Section
from pipelines.times import Duration
from pipelines.units import LARGEST_MM_H

AMOUNT, EXCEEDANCE = "rain_amount", "exceedance_probability"
CHUNK = 256
LARGEST_MM = LARGEST_MM_H
"""Amounts are packed as rates are: stored integer 1 is 0.01 mm, 65535 is missing."""
PROBABILITY_PACKING: dict[str, Any] = {
    "dtype": "uint8",
    "scale_factor": 0.005,  # exact for 2, 4, 5, 8, 10, 20, 25, 40, 50, 100 and 200 members
    "_FillValue": 255,
    "fill_value": 255,
}
_GRID_MAPPING = {"grid_mapping": CRS_VARIABLE}


class ProductSettings(Section):
    """What a forecast has beside rain rate."""

    accumulations: tuple[Annotated[Duration, Field(gt=dt.timedelta(0))], ...] = Field(
        tuple(dt.timedelta(minutes=minutes) for minutes in (15, 30, 60)),
        description="Windows whose rain amount is given; those longer than a forecast are left "
        "out.",
    )
    thresholds_mm_h: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        THRESHOLDS_MM_H,
        description="Rain rates whose probability an ensemble gives: at or above, mm/h. By default "
        "those that are verified, so that they can be calibrated.",
    )


def with_products(
    forecast: xr.Dataset, settings: ProductSettings, calibration: Calibration | None = None
) -> xr.Dataset:
    """A forecast with its amounts and, for an ensemble, its probabilities.

    Parameters
    ----------
    forecast : rain_rate([member,] lead_time, y, x) mm/h and its coordinates, as
        `pipelines.forecasts.forecast_dataset` makes it
    calibration : corrects the probabilities of the forecaster that it was fitted on
    """
    rain_rate = forecast["rain_rate"]
    longest = pd.Timedelta(rain_rate["lead_time"].values.max())
    products = {
        f"{AMOUNT}_{window_text(window)}": rain_amount(rain_rate, window)
        for window in settings.accumulations
        if pd.Timedelta(window) <= longest
    }
    if "member" in rain_rate.dims and settings.thresholds_mm_h:
        shares = exceedance_probability(rain_rate, settings.thresholds_mm_h)
        products[EXCEEDANCE], told = recalibrated(shares, calibration)
        forecast = forecast.assign_attrs(told)
    return forecast.assign(products)


def rain_amount(rain_rate: xr.DataArray, window: dt.timedelta) -> xr.DataArray:
    """Amount in mm (lead_time, y, x), float32, over the window that ends at each lead time.

    Of the mean of ([member,] lead_time, y, x) mm/h; missing where a rate of the window is.
    """
    ensemble = "member" in rain_rate.dims
    if ensemble:
        rain_rate = rain_rate.mean("member", skipna=False)
    rain_rate = rain_rate.transpose("lead_time", "y", "x").astype("f4", copy=False)
    timestep, hours = window_hours(pd.TimedeltaIndex(rain_rate["lead_time"].values), window)
    frames = [_weighted_sum(rain_rate.data, weights) for weights in hours.astype("f4")]
    text = window_text(window)
    attrs = {
        "standard_name": "thickness_of_rainfall_amount",
        "long_name": f"rain amount over the {text} that end at lead_time"
        + (", of the ensemble mean" if ensemble else ""),
        "units": "mm",
        "cell_methods": ("realization: mean " if ensemble else "")
        + f"time: sum (interval: {timestep.total_seconds():.15g} s "
        f"comment: over the {text} that end at it)",
    }
    amount = rain_rate.copy(data=np.stack(frames).clip(max=LARGEST_MM))
    return amount.drop_attrs(deep=False).assign_attrs(attrs | _GRID_MAPPING)


def window_hours(
    lead_times: pd.TimedeltaIndex, window: dt.timedelta
) -> tuple[pd.Timedelta, NDArray[np.float64]]:
    """The timestep, and how much of a window each rate holds for: (window's end, rate), hours.

    A rate holds over the timestep that ends at its lead time. A row whose window is not wholly
    covered (it begins before init_time, or a lead time is not there) is 0: nothing is known of it.
    """
    ends = lead_times.to_numpy("timedelta64[ns]").astype("i8")
    timestep = np.diff(ends).min() if len(ends) > 1 else ends[0]
    length = pd.Timedelta(window).value
    overlap = np.minimum.outer(ends, ends) - np.maximum.outer(ends - length, ends - timestep)
    overlap = overlap.clip(min=0)
    overlap[overlap.sum(axis=1) < length] = 0
    return pd.Timedelta(timestep), overlap / pd.Timedelta("1h").value


def _weighted_sum(frames: Any, weights: NDArray[np.float32]) -> Any:
    """The sum of frames (lead_time, y, x) by weight, NaN without any; NumPy or Dask.

    Only those with a weight are looked at. NaN by its weight is NaN: missing is not dry.
    """
    (used,) = np.nonzero(weights)
    if len(used) == 0:
        return np.full_like(frames[0], np.nan)
    if isinstance(frames, np.ndarray):
        # Not BLAS, which adds as it likes: a half is rounded up today and down tomorrow.
        return np.einsum("k,kyx->yx", weights[used], frames[used[0] : used[-1] + 1])
    # One task a sum: Dask's own einsum would hold every product of weight and frame at once.
    return da.map_blocks(
        _sum, *(frames[k] for k in used), weights=weights[used], meta=np.empty((0, 0), "f4")
    )


def _sum(*frames: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.zeros_like(frames[0])
    for frame, weight in zip(frames, weights, strict=True):
        total += frame * weight
    return total


def exceedance_probability(
    rain_rate: xr.DataArray, thresholds_mm_h: tuple[float, ...]
) -> xr.DataArray:
    """The share (threshold, lead_time, y, x) of members at or above each threshold, float32.

    Of (member, lead_time, y, x) mm/h, compared in single precision as `pipelines.scores` does;
    missing where any member is.
    """
    rain_rate = rain_rate.transpose("member", "lead_time", "y", "x").astype("f4", copy=False)
    known = rain_rate.notnull().all("member")
    thresholds = np.unique(thresholds_mm_h)  # CF: a coordinate is in order
    shares = [
        (rain_rate >= np.float32(threshold)).mean("member", dtype="f4").where(known).data
        for threshold in thresholds
    ]
    threshold_attrs = {
        "standard_name": "rainfall_rate",
        "long_name": "rain rate that is reached or exceeded",
        "units": "mm h-1",
    }
    attrs = {"long_name": "probability of rain_rate at or above threshold", "units": "1"}
    return xr.DataArray(
        np.stack(shares),
        dims=("threshold", *known.dims),
        coords=dict(known.coords) | {"threshold": ("threshold", thresholds, threshold_attrs)},
        attrs=attrs | _GRID_MAPPING,
    )


def recalibrated(
    shares: xr.DataArray, calibration: Calibration | None
) -> tuple[xr.DataArray, dict[str, str]]:
    """Shares of members as probabilities; attributes say by which calibration, and where not."""
    if calibration is None:
        note = "probabilities are the share of members, as it is"
        return shares, {"calibration": "none", "calibration_note": note}
    first = pd.Timedelta(shares["lead_time"].values[0])
    thresholds = shares["threshold"].values
    left = [f"{one:g}" for one in thresholds if calibration.curve(float(one), first) is None]
    note = (
        f"fitted on {calibration.forecasts} forecasts, {calibration.since} to {calibration.until}"
    )
    if left:
        note += f"; not proven at {', '.join(left)} mm h-1: there the share of members, as it is"
    told = {"calibration": calibration.version, "calibration_note": note}
    return calibration.apply(shares), told


def window_text(window: dt.timedelta) -> str:
    """A window as it is in names: ``60min``, in seconds where they are not whole minutes."""
    seconds = pd.Timedelta(window).total_seconds()
    return f"{seconds / 60:.0f}min" if seconds % 60 == 0 else f"{seconds:.0f}s"


def encodings(forecast: xr.Dataset) -> dict[str, dict[str, Any]]:
    """How each variable of a forecast is stored in Zarr: packed, a lead time in one object.

    Inside of it are chunks of `CHUNK`² pixels, so that a reader takes what it needs; in all there
    are few objects to write to a store.

    Missing is missing in both ways of saying so: CF's ``_FillValue`` for a stored pixel, Zarr's
    ``fill_value`` for a chunk that was never written. A coordinate has no missing values.
    """
    encoding: dict[str, dict[str, Any]] = {
        str(name): {"_FillValue": None} for name in forecast.coords if forecast[name].dtype == "f8"
    }
    for name in ("init_time", "valid_time"):
        encoding[name] = dict(TIME_ENCODING)
    encoding["lead_time"] = {"units": "seconds", "dtype": "int64"}
    for field, variable in forecast.data_vars.items():
        packing = PROBABILITY_PACKING if field == EXCEEDANCE else PACKING
        packing = packing if variable.dtype.kind == "f" else {}
        chunks = tuple(
            min(CHUNK, size) if dim in ("y", "x") else 1 for dim, size in variable.sizes.items()
        )
        shards = tuple(
            -(-size // chunk) * chunk if dim in ("y", "x") else 1
            for (dim, size), chunk in zip(variable.sizes.items(), chunks, strict=True)
        )
        encoding[str(field)] = packing | {"chunks": chunks, "shards": shards}
    for name in ("lat", "lon"):
        if name in forecast.coords and forecast[name].ndim == 2:
            encoding[name] = {"_FillValue": None, "dtype": "float32"}  # to a metre
    return encoding
