"""The fractions skill score from mergeable sums (Roberts and Lean 2008, equations 5 to 7).

A forecast that is right but for a few kilometres is worth something. So not pixels are compared but
the fractions p of pixels with rain at or above a threshold in the neighbourhood of each pixel:

    FSS = 1 − Σ (p_forecast − p_observed)² / Σ (p_forecast² + p_observed²)

0 is no overlap at that scale, 1 a perfect forecast. `sums_of_field` gives the two sums;
`pipelines.scores` divides them.

Missing is not dry, and nothing is assumed beyond the edge: a neighbourhood is the part of its
window that was observed (and forecast by everyone), and its fraction is that of those pixels.
Neighbourhoods are counted around such pixels only. Where nothing is missing and no rain is within
a window's width of an edge this equals what pysteps and `scores` compute; otherwise pysteps takes
what is missing or beyond the edge to be dry, and `scores` leaves out windows that an edge cuts.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.grid import Grid

SCALES_KM = (1.0, 5.0, 20.0)
"""Widths of the windows, in kilometres."""
FRACTION_SUMS = ("fraction_error", "fraction_reference")

Window = tuple[int, int]
"""Rows and columns, both odd."""


def windows(grid: Grid, scales_km: Iterable[float]) -> dict[float, Window]:
    """The window of each scale: the odd numbers of pixels nearest to it, a pixel at least."""
    width, height = grid.pixel_km
    return {
        float(scale): (_nearest_odd(scale / height), _nearest_odd(scale / width))
        for scale in scales_km
    }


def _nearest_odd(pixels: float) -> int:
    return 2 * int(pixels / 2 + 1e-9) + 1


def sums_of_field(
    forecast: NDArray[np.float32],
    observed: NDArray[np.float32],
    valid: NDArray[np.bool_],
    thresholds: list[float],
    windows: list[Window],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sums, (threshold, scale), of one field (y, x).

    Counts are whole numbers in single precision, and their squares exact in windows of up to 4096
    pixels; of larger ones they are rounded to a part in 10⁷.
    """
    error = np.zeros((len(thresholds), len(windows)))
    reference = np.zeros_like(error)
    weights = [
        np.where(valid, np.maximum(count_around(valid, window), 1.0).astype("f8") ** -2, 0.0)
        for window in windows
    ]
    for row, threshold in enumerate(thresholds):
        forecast_event, observed_event = (
            (field >= np.float32(threshold)) & valid for field in (forecast, observed)
        )
        events = np.count_nonzero(forecast_event) + np.count_nonzero(observed_event)
        if events == 0:
            continue
        for column, window in enumerate(windows):
            if window == (1, 1):  # fractions are 0 or 1: only pixels are to be counted
                error[row, column] = np.count_nonzero(forecast_event != observed_event)
                reference[row, column] = events
                continue
            forecast_count, observed_count = (
                count_around(event, window) for event in (forecast_event, observed_event)
            )
            apart = np.square(forecast_count - observed_count)
            both = np.square(forecast_count) + np.square(observed_count)
            error[row, column] = np.einsum("yx,yx", apart, weights[column])
            reference[row, column] = np.einsum("yx,yx", both, weights[column])
    return error, reference


def count_around(field: NDArray[np.bool_], window: Window) -> NDArray[np.float32]:
    """How many pixels (y, x) are set in the window around each; beyond the edge none is."""
    high, wide = (min(size, 2 * n + 1) for size, n in zip(window, field.shape, strict=True))
    return cv2.boxFilter(
        field.view(np.uint8),
        cv2.CV_32F,
        (wide, high),
        normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )
