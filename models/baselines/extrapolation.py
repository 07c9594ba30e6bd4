"""Rain that stays, and rain that moves on: the baselines that any nowcast has to beat."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from models.forecaster import labelled, timestep_of
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
        timesteps = [float(lead / timestep_of(past)) for lead in lead_times]
        return labelled(extrapolate(frames[-1], motion(frames), timesteps), past, lead_times)


def dbr(rain_rate_mm_h: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rain rate in dBR, `DRY_DBR` where dry or not observed."""
    wet = np.where(rain_rate_mm_h >= DRY_MM_H, rain_rate_mm_h, np.nan)
    return np.where(np.isnan(wet), DRY_DBR, 10 * np.log10(wet))


def motion(frames_mm_h: NDArray[np.floating]) -> NDArray[np.floating]:
    """Motion (2, y, x) in pixels a timestep, from frames (time, y, x), by Lucas–Kanade."""
    with quiet():
        from pysteps.motion.lucaskanade import dense_lucaskanade
    masked = np.ma.masked_where(np.isnan(frames_mm_h), dbr(frames_mm_h))
    with np.errstate(invalid="ignore"):  # where all vectors are alike none is an outlier
        found: NDArray[np.floating] = dense_lucaskanade(masked)
    return found


def extrapolate(
    newest: NDArray[np.floating], motion: NDArray[np.floating], timesteps: Sequence[float]
) -> NDArray[np.floating]:
    """The newest frame moved on by so many timesteps: (lead_time, y, x)."""
    with quiet():
        from pysteps.extrapolation import semilagrangian
    moved: NDArray[np.floating] = semilagrangian.extrapolate(
        newest, motion, list(timesteps), allow_nonfinite_values=True
    )
    return moved


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Pysteps prints where its settings lie as it is imported, and what it does; nobody asked."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        yield said
