"""Forecasts against what was observed, as sums for `pipelines.scores`.

Missing is not dry: only pixels count that were observed and that every forecaster forecast, so that
all are compared on the same ones. Fields are taken a lead time at a time, so forecasts and observed
may be lazy and memory holds a few fields.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipelines.ensembles import BINS, ENSEMBLE_DIMS, ensemble_sums
from pipelines.errors import SquallError
from pipelines.fss import FRACTION_SUMS, Window, sums_of_field, windows
from pipelines.grid import Grid
from pipelines.scores import THRESHOLDS_MM_H
from pipelines.spectra import SPECTRUM_DIMS, WAVELENGTHS_KM, power, waves
from pipelines.ssim import SSIM_DIMS, ssim_sums, whole_windows

DOMAIN = "domain"
"""The region that is the whole grid."""
PIXEL_DIMS: dict[str, tuple[str, ...]] = {
    "hits": ("threshold",),
    "misses": ("threshold",),
    "false_alarms": ("threshold",),
    "correct_negatives": ("threshold",),
    "squared_error": (),
    "absolute_error": (),
    "forecast_rain": (),
    "observed_rain": (),
    "forecast_square": (),
    "observed_square": (),
    "rain_product": (),
    "pixels": (),
    "missing": (),
}
FRACTION_DIMS = dict.fromkeys(FRACTION_SUMS, ("threshold", "scale"))
DIMS = PIXEL_DIMS | FRACTION_DIMS | SSIM_DIMS | SPECTRUM_DIMS | ENSEMBLE_DIMS
"""Every sum, and what it is by beside forecaster, lead_time and region."""

Bounds = tuple[float, float, float, float]
"""West, south, east, north: degrees."""


@dataclass(frozen=True)
class Scoring:
    """What is measured on a grid.

    Attributes
    ----------
    thresholds : an event is a rain rate at or above one, mm/h; ascending, each once
    windows : of the fractions skill score, by scale in km: see `pipelines.fss.windows`
    masks : (y, x) of each region beside the whole domain
    pixel_km : width and height; without, no spectra and no SSIM
    """

    thresholds: tuple[float, ...] = THRESHOLDS_MM_H
    windows: Mapping[float, Window] = field(default_factory=dict)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    pixel_km: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        # `pixel_sums` counts how many a pixel reaches.
        assert all(low < high for low, high in pairwise(self.thresholds)), self.thresholds

    @classmethod
    def on(
        cls,
        grid: Grid,
        thresholds: Iterable[float],
        scales_km: Iterable[float],
        regions: Mapping[str, Bounds] | None = None,
    ) -> "Scoring":
        """On a grid, regions by their bounds. Raises `SquallError` where one holds no pixel."""
        masks = {name: region_mask(grid, name, box) for name, box in (regions or {}).items()}
        ordered = tuple(sorted({float(threshold) for threshold in thresholds}))
        return cls(ordered, windows(grid, scales_km), masks, grid.pixel_km)


def region_mask(grid: Grid, name: str, bounds: Bounds) -> NDArray[np.bool_]:
    """(y, x): which pixel centres lie within the bounds."""
    west, south, east, north = bounds
    lon, lat = grid.lonlat(*np.meshgrid(grid.x, grid.y))
    mask = (west <= lon) & (lon <= east) & (south <= lat) & (lat <= north)
    if name == DOMAIN or not mask.any():
        raise SquallError(
            f"region {name!r} cannot be scored",
            found=f"west, south, east, north = {bounds}: {mask.sum()} pixels",
            expected=f"a name that is not {DOMAIN!r}, and degrees within "
            f"{lon.min():.2f}, {lat.min():.2f}, {lon.max():.2f}, {lat.max():.2f}",
            remedy="correct verify.regions",
        )
    return mask


def compare(
    forecasts: Mapping[str, xr.DataArray], observed: xr.DataArray, scoring: Scoring
) -> xr.Dataset:
    """Sums (forecaster, lead_time, region, …) of forecasts by name, all on the same pixels.

    Parameters
    ----------
    forecasts : ([member,] lead_time, y, x) mm/h, NaN where missing. Of an ensemble the mean is
        scored as the others are, and the members by `pipelines.ensembles`
    observed : (lead_time, y, x) mm/h, NaN where missing; its lead times are scored

    Returns
    -------
    float64, named in `DIMS`; 0 where a forecaster has no such sum
    """
    regions = [DOMAIN, *scoring.masks]
    parts = [
        _at(lead, forecasts, observed.sel(lead_time=lead), scoring)
        for lead in observed["lead_time"].values
    ]
    present = {name for part in parts for sums in part.values() for name in sums}
    ranks = max((len(s["ranks"]) for p in parts for s in p.values() if "ranks" in s), default=0)
    sizes = {
        "threshold": len(scoring.thresholds),
        "scale": len(scoring.windows),
        "wavelength": len(WAVELENGTHS_KM),
        "probability": len(BINS),
        "rank": ranks,
    }
    keys = [(name, region) for name in forecasts for region in regions]
    variables = {}
    for name in (one for one in DIMS if one in present):
        shape = tuple(sizes[dim] for dim in DIMS[name])
        whole = np.stack([[_padded(part[key].get(name), shape) for part in parts] for key in keys])
        whole = whole.reshape(len(forecasts), len(regions), len(parts), *shape)
        dims = ("forecaster", "region", "lead_time", *DIMS[name])
        variables[name] = xr.Variable(dims, whole).transpose(
            "forecaster", "lead_time", "region", ...
        )
    used = {dim for name in variables for dim in DIMS[name]}
    labels = {
        "threshold": ("threshold", list(scoring.thresholds), {"units": "mm h-1"}),
        "scale": ("scale", [float(scale) for scale in scoring.windows], {"units": "km"}),
        "wavelength": ("wavelength", WAVELENGTHS_KM, {"units": "km"}),
        "probability": ("probability", BINS),
        "rank": ("rank", np.arange(float(ranks))),
    }
    return xr.Dataset(
        variables,
        {
            "forecaster": pd.Index(list(forecasts), dtype=object),
            "lead_time": observed["lead_time"].values,
            "region": pd.Index(regions, dtype=object),
        }
        | {dim: labels[dim] for dim in labels if dim in used},
    )


def _padded(values: NDArray[np.float64] | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """0 where there is no value: a forecaster that is no ensemble, or a smaller one."""
    padded = np.zeros(shape)
    if values is not None:
        padded[tuple(slice(0, size) for size in values.shape)] = values
    return padded


def _at(
    lead: np.timedelta64,
    forecasts: Mapping[str, xr.DataArray],
    observed: xr.DataArray,
    scoring: Scoring,
) -> dict[tuple[str, str], dict[str, NDArray[np.float64]]]:
    """The sums of one lead time by forecaster and region."""
    truth = observed.values
    fields = {}
    for name, forecast in forecasts.items():
        values = forecast.sel(lead_time=lead).transpose(..., "y", "x").values
        fields[name] = values.reshape(-1, *truth.shape)
    means = {name: members.mean(0) for name, members in fields.items()}
    counts = ~np.isnan(truth)
    for mean in means.values():
        counts &= ~np.isnan(mean)
    found = {}
    for region, mask in {DOMAIN: np.ones_like(counts), **scoring.masks}.items():
        valid = counts & mask
        missing = float(mask.sum() - valid.sum())
        box = _box(valid)
        for name in forecasts:
            sums = field_sums(means[name][box], truth[box], valid[box], scoring)
            if len(fields[name]) > 1:
                members = fields[name][:, *box][:, valid[box]]
                wanted = truth[box][valid[box]].astype("f4")
                sums |= ensemble_sums(members.astype("f4"), wanted, scoring.thresholds)
            found[name, region] = sums | {"missing": np.asarray(missing)}
    return found


def _box(valid: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest rectangle that holds all pixels that count."""
    ends = []
    for axis in (1, 0):
        there = np.flatnonzero(valid.any(axis))
        ends.append(slice(there[0], there[-1] + 1) if len(there) else slice(0, 1))
    return ends[0], ends[1]


def field_sums(
    forecast: NDArray[np.floating],
    observed: NDArray[np.floating],
    valid: NDArray[np.bool_],
    scoring: Scoring,
) -> dict[str, NDArray[np.float64]]:
    """The sums of one field (y, x) against one, over the pixels that count."""
    sums = pixel_sums(forecast[valid], observed[valid], scoring.thresholds)
    forecast, observed = (
        np.where(valid, field, 0).astype("f4", copy=False) for field in (forecast, observed)
    )
    if scoring.windows:
        both = (list(scoring.thresholds), list(scoring.windows.values()))
        fractions = sums_of_field(forecast, observed, valid, *both)
        sums |= dict(zip(FRACTION_SUMS, fractions, strict=True))
    if scoring.pixel_km is not None:
        sums |= ssim_sums(forecast, observed, whole_windows(valid))
        sums |= {
            "forecast_power_sum": power(forecast, scoring.pixel_km),
            "observed_power_sum": power(observed, scoring.pixel_km),
            "waves": waves(valid.shape, scoring.pixel_km) * valid.any(),
        }
    return sums


def pixel_sums(
    forecast: NDArray[np.floating], observed: NDArray[np.floating], thresholds: Iterable[float]
) -> dict[str, NDArray[np.float64]]:
    """Events, at thresholds in ascending order, and errors of pixels (pixel), mm/h.

    Thresholds are compared in single precision, in which 0.7 mm/h is 0.7 mm/h whoever read it.
    """
    levels = np.asarray(list(thresholds), "f4")
    classes = [np.zeros(forecast.shape, np.uint8) for _ in range(2)]
    single = forecast.astype("f4"), observed.astype("f4")
    for level in levels:  # how many thresholds each pixel reaches
        for reached, rain in zip(classes, single, strict=True):
            reached += rain >= level
    side = len(levels) + 1
    cells = np.bincount(classes[0].astype(np.intp) * side + classes[1], minlength=side * side)
    # least[k, l]: the forecast reaches at least k thresholds, the observed rain at least l
    least = cells.reshape(side, side)[::-1, ::-1].cumsum(0).cumsum(1)[::-1, ::-1]
    at = np.arange(1, side)
    hits, forecast_events, observed_events = least[at, at], least[at, 0], least[0, at]
    f, o = forecast.astype("f8"), observed.astype("f8")
    error = f - o
    sums = {
        "hits": hits,
        "misses": observed_events - hits,
        "false_alarms": forecast_events - hits,
        "correct_negatives": f.size - forecast_events - observed_events + hits,
        "squared_error": np.square(error).sum(),
        "absolute_error": np.abs(error).sum(),
        "forecast_rain": f.sum(),
        "observed_rain": o.sum(),
        "forecast_square": np.square(f).sum(),
        "observed_square": np.square(o).sum(),
        "rain_product": (f * o).sum(),  # no BLAS: its rounding depends on its threads
        "pixels": f.size,
    }
    return {name: np.asarray(value, "f8") for name, value in sums.items()}
