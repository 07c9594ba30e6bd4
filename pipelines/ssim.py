"""The structural similarity of rain fields (Wang et al. 2004, equation 13) as mergeable sums.

Rain rates are compared as the eye sees them on a radar picture: as reflectivity Z = 200 R^1.6
(Marshall and Palmer 1948), from 0 to 60 dBZ on a scale from 0 to 1, less than 0 dBZ being 0. With
local means μ, variances σ² and covariance σ_fo under a Gaussian of 1.5 pixels, 11 pixels wide:

    SSIM = (2 μ_f μ_o + C₁)(2 σ_fo + C₂) / ((μ_f² + μ_o² + C₁)(σ_f² + σ_o² + C₂))

C₁ = 0.01², C₂ = 0.03². Windows that an edge cuts or that hold a pixel that does not count are left
out.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.fss import count_around

SIDE, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
LARGEST_DBZ = 60.0
SSIM_DIMS: dict[str, tuple[str, ...]] = {"ssim_sum": (), "ssim_windows": ()}

Field = NDArray[np.float32]


def picture(rain_rate: Field) -> Field:
    """Rain rate (mm/h) as brightness from 0 to 1."""
    least = np.float32(200 ** (-1 / 1.6))  # 0 dBZ
    dbz = np.log10(np.maximum(rain_rate, least)) * np.float32(16) + np.float32(10 * np.log10(200))
    return np.clip(dbz / np.float32(LARGEST_DBZ), 0, 1)


def whole_windows(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Around which pixels a whole window counts."""
    return count_around(valid, (SIDE, SIDE)) == SIDE**2


def local(field: Field) -> Field:
    """The local mean under the Gaussian."""
    return cv2.GaussianBlur(field, (SIDE, SIDE), SIGMA)


def ssim_sums(
    forecast: Field, observed: Field, windows: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """The sum of SSIM over windows, and how many they are.

    Parameters
    ----------
    forecast, observed : (y, x) mm/h, anything where it does not count
    windows : of `whole_windows`
    """
    count = np.asarray(float(windows.sum()))
    if count == 0:
        return {"ssim_sum": np.zeros(()), "ssim_windows": count}
    f, o = picture(forecast), picture(observed)
    mean_f, mean_o = local(f), local(o)
    squares = local(f * f) + local(o * o)
    product = mean_f * mean_o
    mean_squares = mean_f * mean_f + mean_o * mean_o
    covariance = local(f * o) - product
    ssim = (2 * product + C1) * (2 * covariance + C2)
    ssim /= (mean_squares + C1) * (squares - mean_squares + C2)
    return {"ssim_sum": np.asarray(ssim[windows].sum(dtype="f8")), "ssim_windows": count}
