"""The power of rain fields by wavelength, as mergeable sums: how much a forecast has blurred.

The power of a field of N pixels at a wave vector is |FFT|² / N; it is put by the length of the
wave, in km, whichever way the wave runs (radially averaged). Bins are half octaves, the same on
every grid, so that sums add up; `waves` is how many wave vectors a bin has got. Pixels that do not
count are dry in forecast and observed alike, so their spectra can be compared with each other, not
with those of other areas. A forecast that has less power at short wavelengths than was
observed (a ratio under 1) is too smooth there.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

WAVELENGTHS_KM = np.array([float(f"{2 ** (k / 2):.4g}") for k in range(-2, 23)])
"""Half octaves from 0.5 km to 2048 km; a wave is in the bin nearest to it on a log scale."""
SPECTRUM_DIMS: dict[str, tuple[str, ...]] = {
    "forecast_power_sum": ("wavelength",),
    "observed_power_sum": ("wavelength",),
    "waves": ("wavelength",),
}


@lru_cache(maxsize=8)
def _bins(shape: tuple[int, int], pixel_km: tuple[float, float]) -> NDArray[np.intp]:
    """The bin of every wave vector of `rfft2`; the mean (no wave) and longer waves in the last."""
    rows = fft.fftfreq(shape[0], pixel_km[1])
    columns = fft.rfftfreq(shape[1], pixel_km[0])
    frequency = np.hypot(rows[:, np.newaxis], columns)
    with np.errstate(divide="ignore"):
        octave = np.round(-2 * np.log2(frequency)) + 2
    return np.clip(octave, 0, len(WAVELENGTHS_KM)).astype(np.intp)


def _twice(shape: tuple[int, int]) -> NDArray[np.float64]:
    """How often each column of `rfft2` stands for a wave: it leaves mirror images out."""
    columns = shape[1] // 2 + 1
    weight = np.full(columns, 2.0)
    weight[0] = 1.0
    if shape[1] % 2 == 0:
        weight[-1] = 1.0
    return weight


def power(field: NDArray[np.float32], pixel_km: tuple[float, float]) -> NDArray[np.float64]:
    """Power by `WAVELENGTHS_KM`, mm²/h²: of waves, so not of the field's mean.

    Parameters
    ----------
    field : (y, x) mm/h, whole
    pixel_km : width and height of a pixel
    """
    spectrum = fft.rfft2(field)
    energy = (spectrum.real**2 + spectrum.imag**2) / field.size * _twice(field.shape)
    return _by_bin(energy, field.shape, pixel_km)


def waves(shape: tuple[int, int], pixel_km: tuple[float, float]) -> NDArray[np.float64]:
    """How many wave vectors each bin has."""
    number = np.broadcast_to(_twice(shape), (shape[0], shape[1] // 2 + 1))
    return _by_bin(number, shape, pixel_km)


def _by_bin(
    values: NDArray[np.floating], shape: tuple[int, int], pixel_km: tuple[float, float]
) -> NDArray[np.float64]:
    bins = _bins(shape, pixel_km)
    count = len(WAVELENGTHS_KM)
    sums = np.bincount(bins.ravel(), values.ravel().astype("f8"), count + 1)
    return np.asarray(sums[:count], "f8")
