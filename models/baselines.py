"""Baselines that any network has to beat: persistence and advection."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from models.forecaster import Forecaster, labelled, timestep_of
from pipelines.errors import UnknownNameError
from pipelines.units import DRY_MM_H

DRY_DBR = -15.0
"""What a dry pixel is in dBR (10·log₁₀ R): pysteps' convention, 5 dB below 0.1 mm/h."""


class Persistence:
    """The newest frame stays as it is (Eulerian persistence)."""

    name = "persistence"
    paper = "Eulerian persistence"
    past_frames = 1

    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`."""
        newest = past.values[-1]
        return labelled(np.repeat(newest[None], len(lead_times), axis=0), past, lead_times)


class Advection:
    """The newest frame moves on with the motion seen (Lagrangian persistence), by pysteps.

    Motion: Lucas–Kanade on three frames of dBR (`pysteps.motion.lucaskanade`). Extrapolation:
    semi-Lagrangian, backward (`pysteps.extrapolation.semilagrangian`; Germann and Zawadzki 2002).
    What flows in from outside the observed area is unknown: NaN. A dry frame stays dry.
    """

    name = "advection"
    paper = "Germann and Zawadzki 2002"
    past_frames = 3

    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`."""
        frames = past.values[-self.past_frames :]
        if not (frames[-1] >= DRY_MM_H).any():
            return Persistence().predict(past, lead_times)
        dense_lucaskanade, extrapolate = _pysteps()
        wet = np.where(frames >= DRY_MM_H, frames, np.nan)
        dbr = np.where(np.isnan(wet), DRY_DBR, 10 * np.log10(wet))
        motion = dense_lucaskanade(np.ma.masked_where(np.isnan(frames), dbr))
        timesteps = [float(lead / timestep_of(past)) for lead in lead_times]
        rain_rate = extrapolate(frames[-1], motion, timesteps, allow_nonfinite_values=True)
        return labelled(rain_rate, past, lead_times)


def _pysteps() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Pysteps prints where its settings lie when it is imported; nobody asked."""
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.extrapolation.semilagrangian import extrapolate
        from pysteps.motion.lucaskanade import dense_lucaskanade
    return dense_lucaskanade, extrapolate


BASELINES: dict[str, Callable[[], Forecaster]] = {
    "persistence": Persistence,
    "advection": Advection,
}


def build_baseline(name: str) -> Forecaster:
    """The baseline called `name`; an unknown one is an error that names the nearest."""
    if name not in BASELINES:
        raise UnknownNameError.of("baseline", name, BASELINES)
    return BASELINES[name]()
