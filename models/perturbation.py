"""An ensemble from a deterministic forecaster: members see perturbed past frames.

How much rain a radar's echo stands for is uncertain, by some decibels, and wrong in the same way
over many kilometres and for hours: the drops are larger or smaller than the Z–R relation has it,
the beam was weakened on its way. So a member's rain is multiplied by a smooth random field in dB,

    R'(t, y, x) = R(t, y, x) · exp(s·n(y, x) − s²/2),    s = noise_db · ln(10) / 10

with n Gaussian noise of variance 1, correlated over `scale_km`; −s²/2 makes the factor 1 on
average. The same n for all past frames: noise that changes from frame to frame would look like rain
that grows and decays, which a network would forecast to go on.

Where rain will be is uncertain as well. With `motion_km_h` each member's frames also lie as if the
rain had come with another velocity: the frame a time Δt before init_time is moved by −Δv·Δt, the
newest stays where it is.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from models.forecaster import Forecaster, labelled
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.units import DRY_MM_H

TRUNCATE = 3.0
"""The smoothing kernel ends at so many standard deviations."""


class Perturbed:
    """An ensemble (`models.forecaster.Forecaster`) by perturbed past frames.

    Member 0 is the control: its frames are as observed, so the single forecast is in the ensemble.
    The same init_time and seed always give the same ensemble, whatever else was forecast before,
    and a smaller ensemble is the beginning of a larger one.

    Around a `models.tiling.Tiled` one perturbation goes through the whole domain, as it should;
    inside of one each tile would have its own.

    Parameters
    ----------
    forecaster : makes each member; its own forecasts are single
    members : of the ensemble, the control included
    noise_db : standard deviation of the rain rate's perturbation, dB
    scale_km : the standard deviation of the Gaussian kernel that smooths it: its correlation is
        exp(−d²/4·scale_km²) at a distance of d
    motion_km_h : standard deviation of either component of the velocity's perturbation
    seed : of all of it
    """

    def __init__(
        self,
        forecaster: Forecaster,
        members: int = 8,
        noise_db: float = 1.5,
        scale_km: float = 20.0,
        motion_km_h: float = 0.0,
        seed: int = 0,
    ) -> None:
        if members < 2:
            raise SquallError(
                "not an ensemble",
                found=f"{members} member",
                expected="the control and at least one perturbed member",
                remedy="ask for more members, or use the forecaster without perturbing it",
            )
        self.forecaster, self.members = forecaster, members
        self.noise_db, self.scale_km, self.motion_km_h = noise_db, scale_km, motion_km_h
        self.seed = seed
        self.name, self.paper = forecaster.name, forecaster.paper
        self.past_frames = forecaster.past_frames

    @property
    def model(self) -> object:
        """The forecaster's model (`models.registry.Model`), None where it has none."""
        return getattr(self.forecaster, "model", None)

    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`: (member, lead_time, y, x).

        Raises `SquallError` where the forecaster gives members already.
        """
        ensemble: NDArray[np.float32] | None = None
        for member in range(self.members):
            forecast = self.forecaster.predict(self.perturbed(past, member), lead_times)
            if "member" in forecast.dims:
                raise SquallError(
                    f"{self.name} is an ensemble already",
                    found=f"{forecast.sizes['member']} members",
                    expected="a forecaster that gives single forecasts",
                    remedy="use it without perturbing what it sees",
                )
            if ensemble is None:
                ensemble = np.empty((self.members, *forecast.shape), np.float32)
            ensemble[member] = forecast.values
        assert ensemble is not None
        return labelled(ensemble, past, lead_times)

    def perturbed(self, past: xr.DataArray, member: int) -> xr.DataArray:
        """Past frames (time, y, x) as a member sees them.

        NaN stays NaN and dry stays dry, but for rain that another velocity has moved.
        """
        if member == 0:
            return past
        init_time = pd.Timestamp(past["time"].values[-1])
        rng = np.random.default_rng([self.seed, int(init_time.timestamp()), member])
        width_km, height_km = Grid.of(past).pixel_km
        noise = smooth_noise(
            rng, past.shape[1:], (self.scale_km / abs(height_km), self.scale_km / abs(width_km))
        )
        s = self.noise_db * math.log(10) / 10
        frames = past.values.astype(np.float32)
        rain = np.maximum(frames * np.exp(s * noise - s**2 / 2), DRY_MM_H)
        frames = np.where(frames >= DRY_MM_H, rain, frames)
        if self.motion_km_h:
            eastward, northward = rng.normal(0.0, self.motion_km_h, 2)
            hours = (pd.DatetimeIndex(past["time"].values) - init_time) / pd.Timedelta("1h")
            for frame, time_h in zip(frames[:-1], hours[:-1], strict=True):
                rows, columns = -northward * time_h / height_km, eastward * time_h / width_km
                frame[:] = moved(frame, rows, columns)
        return past.copy(data=frames)


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], scale: Sequence[float]
) -> NDArray[np.float32]:
    """Gaussian noise (y, x) of mean 0 and variance 1, smoothed over `scale` pixels along y and x.

    Opposite edges are neighbours, so that all pixels are alike.
    """
    from scipy.ndimage import gaussian_filter1d

    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis, (size, pixels) in enumerate(zip(shape, scale, strict=True)):
        one = np.zeros(size)
        one[0] = 1.0
        kernel = gaussian_filter1d(one, pixels, mode="wrap", truncate=TRUNCATE)
        noise = gaussian_filter1d(noise, pixels, axis=axis, mode="wrap", truncate=TRUNCATE)
        noise /= np.float32(np.linalg.norm(kernel))
    return noise


def moved(frame: NDArray[np.float32], rows: float, columns: float) -> NDArray[np.float32]:
    """A frame (y, x) moved downwards and to the right, by parts of pixels too, linearly.

    What was not observed stays so; what comes from where nothing was observed stays what it was.
    """
    from scipy.ndimage import shift

    there = shift(frame, (rows, columns), order=1, cval=np.nan)
    return np.where(np.isnan(frame) | np.isnan(there), frame, there)
