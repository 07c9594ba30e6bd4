"""Where the crops of a grid lie, and how much it rains in each of them, sequence by sequence."""

from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.archive import CHUNK, TRAINING
from pipelines.reading import SampleReader
from pipelines.units import MISSING, unpack

LEAST_ACCEPTANCE = 1e-4
RAIN_ACCEPTANCE = 0.1

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]


def positions(length: int, size: int) -> Positions:
    """Half-overlapping crop positions that cover an axis to its end."""
    return np.array([*range(0, length - size, max(1, size // 2)), length - size], np.int64)


def sequence_table(
    reader: SampleReader,
    init_times: pd.DatetimeIndex,
    first: NDArray[np.int64],
    frames: int,
    size: int,
    grid_shape: tuple[int, int],
) -> pd.DataFrame:
    """Every crop with an observed pixel of some sequences: one row each.

    Columns: ``init_time``, ``y``, ``x`` (upper-left pixel), ``valid_fraction`` (observed pixels),
    ``mean_mm_h`` and ``max_mm_h`` (of those), ``acceptance``.

    Acceptance follows DGMR (Ravuri et al. 2021, Methods): p = min(1, 1e-4 + 0.1·mean(1 − e^(−R)))
    over the pixels of the sequence, R in mm/h, 0 where not observed.

    Parameters
    ----------
    init_times, first : (sequence,) of each its init_time and the slot of its first frame, ascending
    frames, size : of a sequence and of a crop's side
    """
    ys, xs = (positions(length, size) for length in grid_shape)
    start, stop = int(first[0]), int(first[-1]) + frames
    blocks = range(start - start % TRAINING.frames, stop, TRAINING.frames)
    cuts = [(max(start, block), min(stop, block + TRAINING.frames)) for block in blocks]
    statistics = [_crop_sums(reader, slice(*cut), grid_shape[0], size, ys, xs) for cut in cuts]
    sums = np.concatenate([sums for sums, _ in statistics])
    largest = np.concatenate([largest for _, largest in statistics])
    windows = [slice(begin - start, begin - start + frames) for begin in first]
    wetness, rain, observed = np.stack([sums[w].sum(axis=0) for w in windows], axis=1)
    most = unpack(np.stack([largest[w].max(axis=0) for w in windows]))
    seen = observed > 0
    sequence, row, column = np.nonzero(seen)
    pixels = frames * size**2
    return pd.DataFrame(
        {
            "init_time": init_times[sequence],
            "y": ys[row],
            "x": xs[column],
            "valid_fraction": (observed[seen] / pixels).astype(np.float32),
            "mean_mm_h": (rain[seen] / observed[seen]).astype(np.float32),
            "max_mm_h": most[seen],
            "acceptance": np.minimum(
                1.0, LEAST_ACCEPTANCE + RAIN_ACCEPTANCE * wetness[seen] / pixels
            ),
        }
    )


def _crop_sums(
    reader: SampleReader, slots: slice, rows: int, size: int, ys: Positions, xs: Positions
) -> tuple[Floats, NDArray[np.uint16]]:
    """Of every frame and crop: sums (time, 3, crop row, crop column) and largest stored rain rate.

    The sums are of 1 − e^(−R), of R in mm/h, and of observed pixels. Along x first, one row of
    chunks at a time, so that no more than that is in memory; then along y.
    """
    frames = slots.stop - slots.start
    sums = np.empty((frames, 3, rows, len(xs)))
    largest = np.empty((frames, rows, len(xs)), np.uint16)
    for top in range(0, rows, CHUNK):
        strip = slice(top, top + CHUNK)
        for frame, stored in enumerate(reader.read_stored(slots, strip)):
            missing = stored == MISSING
            fields = *(table.take(stored) for table in _tables()), ~missing
            stored[missing] = 0
            for column, x in enumerate(xs):
                for kind, field in enumerate(fields):
                    sums[frame, kind, strip, column] = field[:, x : x + size].sum(axis=1)
                largest[frame, strip, column] = stored[:, x : x + size].max(axis=1)
    return (
        np.stack([sums[:, :, y : y + size].sum(axis=2) for y in ys], axis=2),
        np.stack([largest[:, y : y + size].max(axis=1) for y in ys], axis=1),
    )


@cache
def _tables() -> tuple[Floats, Floats]:
    """1 − e^(−R), and R in mm/h, of every stored integer; 0 of missing."""
    rain_rate_mm_h = np.nan_to_num(unpack(np.arange(MISSING + 1, dtype=np.uint16))).astype(float)
    return 1 - np.exp(-rain_rate_mm_h), rain_rate_mm_h
