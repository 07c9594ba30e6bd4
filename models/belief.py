"""Whether a forecast can be weather: what no sky does is not published."""

import numpy as np
import xarray as xr

from pipelines.errors import SquallError
from pipelines.times import format_duration

LITTLE_RAIN_MM_H = 0.5
"""Mean rain rate over the observed area below which growth says nothing: showers come up."""


class UnbelievableError(SquallError):
    """A forecast that no weather makes."""


def check_believable(
    rain_rate: xr.DataArray,
    past: xr.DataArray,
    *,
    everywhere: bool,
    most_rain_mm_h: float,
    most_growth: float,
) -> None:
    """Raise `UnbelievableError` where a forecast is unknown where it must not be, or too much rain.

    Parameters
    ----------
    rain_rate : ([member,] lead_time, y, x) mm/h
    past : the frames (time, y, x) it was made from
    everywhere : it has to know every pixel that a past frame observed (a network does); otherwise
        any at each lead time
    most_rain_mm_h : more than this is not believed anywhere, unless a past frame has as much
    most_growth : nor a mean rain rate so many times that of the wettest past frame
    """
    observed = np.isfinite(past.values).any(axis=0)
    if not observed.any():
        return
    wettest = max(float(np.nanmean(frame)) for frame in past.values if np.isfinite(frame).any())
    most_anywhere = max(most_rain_mm_h, float(np.nanmax(past.values)))
    limit = most_growth * max(wettest, LITTLE_RAIN_MM_H)
    members = rain_rate if "member" in rain_rate.dims else rain_rate.expand_dims("member")
    for lead_time in members["lead_time"].values:
        for field in members.sel(lead_time=lead_time).values:
            known = field[observed & ~np.isnan(field)]
            unknown = 1 - known.size / np.count_nonzero(observed)
            at = f"at lead time {format_duration(lead_time)}"
            if known.size == 0 or (everywhere and unknown > 0):
                _refuse(f"{unknown:.1%} of the observed pixels unknown {at}", "a forecast there")
            if known.max() > most_anywhere:
                _refuse(f"{known.max():.4g} mm/h {at}", f"at most {most_anywhere:.4g} mm/h")
            mean = float(known.mean(dtype=np.float64))
            if mean > limit:
                found = f"a mean of {mean:.3g} mm/h {at}, {wettest:.3g} mm/h at most before"
                _refuse(found, f"at most {limit:.3g} mm/h")


def _refuse(found: str, expected: str) -> None:
    raise UnbelievableError(
        "the forecast is not believed",
        found=found,
        expected=expected,
        remedy="look at the model and its inputs; nowcast.most_rain_mm_h and nowcast.most_growth "
        "set the limits",
    )
