"""One interface for all that forecasts: past frames in, lead-time frames out, labels kept."""

from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipelines.grid import CRS_VARIABLE


@runtime_checkable
class Forecaster(Protocol):
    """A network or a baseline.

    Attributes
    ----------
    name : what score tables and forecasts call it
    paper : where it is from
    past_frames : how many successive past frames it needs, the one at init_time included
    """

    name: str
    paper: str
    past_frames: int

    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """Forecast rain rate.

        Parameters
        ----------
        past : (time, y, x) mm/h, evenly spaced, the last at init_time; NaN where not observed
        lead_times : positive multiples of the spacing, ascending

        Returns
        -------
        ([member,] lead_time, y, x) mm/h with `past`'s grid and the scalar coordinate init_time; NaN
        where nothing can be said
        """
        ...


def labelled(
    rain_rate: NDArray[np.floating], past: xr.DataArray, lead_times: pd.TimedeltaIndex
) -> xr.DataArray:
    """A forecast's values ([member,] lead_time, y, x), labelled as the past frames they follow."""
    member = {"member": ("member", np.arange(len(rain_rate)), {"standard_name": "realization"})}
    return xr.DataArray(
        rain_rate.astype(np.float32, copy=False),
        dims=("member", "lead_time", "y", "x")[-rain_rate.ndim :],
        coords=(member if rain_rate.ndim == 4 else {})
        | {
            "lead_time": lead_times,
            "y": past["y"],
            "x": past["x"],
            CRS_VARIABLE: past[CRS_VARIABLE],
            "init_time": past["time"].values[-1],
        },
        name="rain_rate",
        attrs={"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": CRS_VARIABLE},
    )


def timestep_of(past: xr.DataArray) -> pd.Timedelta:
    """The spacing of past frames."""
    times = pd.DatetimeIndex(past["time"].values)
    return times[-1] - times[-2]
