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

from collections.abc import Iterable, Iterator

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
    """Both sums, (threshold, scale), of one field (y, x)."""
    error = np.zeros((len(thresholds), len(windows)))
    reference = np.zeros_like(error)
    pixels = _counts(valid, windows)
    weights = [np.where(valid, 1 / np.maximum(counts, 1), 0.0) for counts in pixels]
    for row, threshold in enumerate(thresholds):
        forecast_event, observed_event = (
            (field >= np.float32(threshold)) & valid for field in (forecast, observed)
        )
        if not (forecast_event.any() or observed_event.any()):
            continue
        counts = zip(
            _counts(forecast_event, windows), _counts(observed_event, windows), strict=True
        )
        for column, (of_forecast, of_observed) in enumerate(counts):
            if windows[column] == (1, 1):  # fractions are 0 or 1: only pixels are to be counted
                error[row, column] = np.count_nonzero(forecast_event != observed_event)
                reference[row, column] = sum(
                    map(np.count_nonzero, (forecast_event, observed_event))
                )
                continue
            p_forecast, p_observed = of_forecast * weights[column], of_observed * weights[column]
            error[row, column] = np.square(p_forecast - p_observed).sum()
            reference[row, column] = np.square(p_forecast).sum() + np.square(p_observed).sum()
    return error, reference


def _counts(field: NDArray[np.bool_], windows: list[Window]) -> Iterator[NDArray[np.int32]]:
    """For each window (y, x): how many pixels are set in it around each pixel.

    From one table of sums over all pixels above and to the left, with a margin of empty ones.
    """
    rows, columns = field.shape
    radii = [(min(high // 2, rows), min(wide // 2, columns)) for high, wide in windows]
    down, right = np.max(radii, axis=0)
    padded = np.pad(field, ((down + 1, down), (right + 1, right)))
    table = padded.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    for high, wide in radii:
        first, last = down - high, down + high + 1
        strips = table[last : last + rows] - table[first : first + rows]
        first, last = right - wide, right + wide + 1
        yield strips[:, last : last + columns] - strips[:, first : first + columns]
