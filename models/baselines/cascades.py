"""Baselines that know that small scales live shortly: S-PROG, ANVIL, LINDA and STEPS, by pysteps.

All move the newest frame on like `Advection` and let what cannot be known fade (S-PROG, ANVIL,
LINDA), or replace it by noise of the same kind, differently in every member (STEPS).

Spectral methods want whole fields of rain. What was not observed is dry to them; where advection
brings nothing in, their forecast is unknown as well. A sky with too little rain to fit anything
on is left to advection.
"""

import logging
from abc import ABC, abstractmethod

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from models.baselines.extrapolation import Advection, dbr, motion, quiet
from models.forecaster import labelled, timestep_of
from pipelines.grid import Grid
from pipelines.units import DRY_MM_H

log = logging.getLogger(__name__)

DRY_LIMIT_DBR = -10.0
"""0.1 mm/h: what counts as rain."""
SEED = 2**32
"""Seeds lie below."""
TOO_LITTLE_RAIN = (ValueError, RuntimeError, IndexError, np.linalg.LinAlgError)
"""What pysteps raises where correlations, features or noise cannot be fitted."""

Fields = NDArray[np.floating]


class _Cascade(ABC):
    """What all have in common: motion, whole fields, lead times, the mask, too little rain."""

    name: str
    paper: str
    past_frames: int

    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`."""
        advected = Advection().predict(past, lead_times)
        frames = past.values[-self.past_frames :]
        steps = np.array([round(lead / timestep_of(past)) for lead in lead_times])
        if (frames[-1] >= DRY_MM_H).any():
            random = np.random.get_state()  # noqa: NPY002 (pysteps seeds the global one)
            try:
                with quiet(), np.errstate(all="ignore"):
                    filled = np.where(np.isnan(frames), 0.0, frames).astype(np.float64)
                    moving = motion(frames[-3:])
                    forecast = self._forecast(filled, moving, int(steps.max()), past)
            except TOO_LITTLE_RAIN as error:
                log.warning("%s leaves this sky to advection: %s", self.name, error)
            else:
                known = np.isfinite(advected.values) & np.isfinite(forecast[..., steps - 1, :, :])
                rain_rate = np.where(known, forecast[..., steps - 1, :, :], np.nan)
                return labelled(np.where(rain_rate < DRY_MM_H, 0.0, rain_rate), past, lead_times)
            finally:
                np.random.set_state(random)  # noqa: NPY002
        return labelled(self._as_members(advected.values), past, lead_times)

    @abstractmethod
    def _forecast(
        self, frames_mm_h: Fields, motion: Fields, timesteps: int, past: xr.DataArray
    ) -> Fields:
        """Rain rate in mm/h of all timesteps, ([member,] lead_time, y, x)."""

    def _as_members(self, rain_rate: Fields) -> Fields:
        """A single forecast in the shape that this one gives."""
        return rain_rate


class SPROG(_Cascade):
    """S-PROG: a cascade of scales, each an autoregressive process (Seed 2003)."""

    name, paper, past_frames = "sprog", "Seed 2003", 3

    def _forecast(
        self, frames_mm_h: Fields, motion: Fields, timesteps: int, past: xr.DataArray
    ) -> Fields:
        from pysteps.nowcasts import sprog

        return _rain_rate(
            sprog.forecast(dbr(frames_mm_h), motion, timesteps, precip_thr=DRY_LIMIT_DBR)
        )


class ANVIL(_Cascade):
    """ANVIL: growth and decay in a cascade with local correlations (Pulkkinen et al. 2020).

    On rain rates, as its authors do where there is no vertically integrated liquid.
    """

    name, paper, past_frames = "anvil", "Pulkkinen et al. 2020", 4

    def _forecast(
        self, frames_mm_h: Fields, motion: Fields, timesteps: int, past: xr.DataArray
    ) -> Fields:
        from pysteps.nowcasts import anvil

        return np.asarray(anvil.forecast(frames_mm_h, motion, timesteps))


class LINDA(_Cascade):
    """LINDA-D: integro-differences around features, without perturbations (Pulkkinen et al. 2021).

    Parameters
    ----------
    max_num_features : around how many corners (Shi and Tomasi 1994) the model is fitted
    """

    name, paper, past_frames = "linda", "Pulkkinen et al. 2021", 3

    def __init__(self, max_num_features: int = 15) -> None:
        self.max_num_features = max_num_features

    def _forecast(
        self, frames_mm_h: Fields, motion: Fields, timesteps: int, past: xr.DataArray
    ) -> Fields:
        from pysteps.nowcasts import linda

        return np.asarray(
            linda.forecast(
                frames_mm_h,
                motion,
                timesteps,
                feature_method="shitomasi",
                max_num_features=self.max_num_features,
                add_perturbations=False,
            )
        )


class STEPS(_Cascade):
    """STEPS: an ensemble whose members differ in motion and in small scales (Bowler et al. 2006).

    The same init_time always gives the same ensemble.

    Parameters
    ----------
    members : of the ensemble
    """

    name, paper, past_frames = "steps", "Bowler et al. 2006", 3

    def __init__(self, members: int = 24) -> None:
        self.members = members

    def _forecast(
        self, frames_mm_h: Fields, motion: Fields, timesteps: int, past: xr.DataArray
    ) -> Fields:
        from pysteps.nowcasts import steps

        minutes = timestep_of(past) / pd.Timedelta("1min")
        init_time = pd.Timestamp(past["time"].values[-1])
        return _rain_rate(
            steps.forecast(
                dbr(frames_mm_h),
                motion,
                timesteps,
                n_ens_members=self.members,
                precip_thr=DRY_LIMIT_DBR,
                kmperpixel=Grid.of(past).pixel_km[1],
                timestep=minutes,
                seed=int(init_time.timestamp()) % SEED,
            )
        )

    def _as_members(self, rain_rate: Fields) -> Fields:
        return np.repeat(rain_rate[None], self.members, axis=0)


def _rain_rate(forecast_dbr: Fields) -> Fields:
    """DBR to mm/h, dry below 0.1 mm/h."""
    rain_rate = np.where(forecast_dbr < DRY_LIMIT_DBR, 0.0, 10 ** (forecast_dbr / 10))
    return np.where(np.isnan(forecast_dbr), np.nan, rain_rate)
