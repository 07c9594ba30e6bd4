"""Training samples: crops of sequences without gaps, where it rains often enough to learn from.

A sequence is `past` then `future` frames, evenly spaced, every one of them committed in the
archive. A sample is a crop of one, named by its init_time and its upper-left pixel.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.archive import Archive, open_archive
from pipelines.errors import SquallError
from pipelines.times import format_duration, time_text
from pipelines.units import unpack

LEAST_ACCEPTANCE = 1e-4
RAIN_ACCEPTANCE = 0.1


@dataclass(frozen=True)
class SequenceShape:
    """How many frames a sequence has before and after its init_time, and how large a crop is.

    `past` counts the frame at init_time itself. `crop` is in pixels, smaller where the grid is.
    """

    past: int
    future: int
    crop: int

    @property
    def frames(self) -> int:
        """All frames of a sequence."""
        return self.past + self.future


@dataclass(frozen=True)
class SampleIndex:
    """The samples of an archive: slot of the first frame, and upper-left pixel of the crop.

    Parameters
    ----------
    first, y, x : (sample,) int64
    acceptance : (sample,) float64 in (0, 1], how likely an epoch is to use the sample
    """

    shape: SequenceShape
    first: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    acceptance: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)

    def window(self, sample: int) -> tuple[slice, slice, slice]:
        """Slots, rows and columns of one sample."""
        first, y, x = int(self.first[sample]), int(self.y[sample]), int(self.x[sample])
        size = self.shape.crop
        return slice(first, first + self.shape.frames), slice(y, y + size), slice(x, x + size)

    def read(self, archive: Archive, sample: int) -> NDArray[np.float32]:
        """One sample: (time, y, x) float32 mm/h, NaN where not observed."""
        return unpack(archive.read_stored(*self.window(sample)))

    def slots(self) -> slice:
        """All slots that any sample uses, and those between."""
        return slice(int(self.first.min()), int(self.first.max()) + self.shape.frames)


def complete_init_times(
    times: pd.DatetimeIndex, timestep: pd.Timedelta, shape: SequenceShape
) -> pd.DatetimeIndex:
    """The init_times whose whole sequence is among `times`: windows never span a gap."""
    offsets = [timestep * k for k in range(1 - shape.past, shape.future + 1)]
    complete = np.ones(len(times), bool)
    for offset in offsets:
        complete &= (times + offset).isin(times)
    return times[complete]


def split(
    init_times: pd.DatetimeIndex,
    timestep: pd.Timedelta,
    shape: SequenceShape,
    validation_fraction: float,
) -> tuple[pd.DatetimeIndex, pd.DatetimeIndex]:
    """Training and validation init_times: the last ones validate, and no frame is in both.

    The gap between them is as long as a sequence; where there are too few sequences for that, there
    is no validation part.
    """
    count = round(len(init_times) * validation_fraction)
    if count == 0:
        return init_times, init_times[:0]
    validation = init_times[-count:]
    training = init_times[init_times <= validation[0] - timestep * shape.frames]
    return (training, validation) if len(training) else (init_times, init_times[:0])


def build_index(
    archive: Archive, init_times: pd.DatetimeIndex, shape: SequenceShape
) -> SampleIndex:
    """All crops (half overlapping) of the sequences at `init_times`, with their acceptance.

    Acceptance follows DGMR (Ravuri et al. 2021, Methods): p = min(1, 1e-4 + 0.1·mean(1 − e^(−R)))
    per sequence and crop, R in mm/h, here scaled so that the wettest sample has p = 1. Crops with
    no observed pixel are left out. Means are computed with Dask, a frame at a time.
    """
    if len(init_times) == 0:
        raise SquallError(
            "no sequence to learn from",
            found="no run of frames without a gap that is long enough",
            expected=f"{shape.frames} successive frames ({shape.past} past, {shape.future} future)",
            remedy="ingest a longer period, or shorten train.past and train.future",
        )
    size = min(shape.crop, *archive.grid.shape)
    shape = SequenceShape(shape.past, shape.future, size)
    ys, xs = (_positions(length, size) for length in archive.grid.shape)
    wetness, observed = _crop_means(archive, init_times, shape, ys, xs)
    sequence, row, column = np.nonzero(observed > 0)
    wet = wetness[sequence, row, column]
    acceptance = np.minimum(1.0, LEAST_ACCEPTANCE + RAIN_ACCEPTANCE * wet)
    first = archive.times.get_indexer(init_times - archive.timestep * (shape.past - 1))
    return SampleIndex(
        shape,
        first=first[sequence].astype(np.int64),
        y=ys[row],
        x=xs[column],
        acceptance=acceptance / acceptance.max(),
    )


def _positions(length: int, size: int) -> NDArray[np.int64]:
    """Half-overlapping crop positions that cover an axis to its end."""
    return np.array([*range(0, length - size, max(1, size // 2)), length - size], np.int64)


def _crop_means(
    archive: Archive,
    init_times: pd.DatetimeIndex,
    shape: SequenceShape,
    ys: NDArray[np.int64],
    xs: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of 1 − e^(−R) and observed fraction of every (init_time, crop row, crop column)."""
    times = pd.date_range(
        init_times[0] - archive.timestep * (shape.past - 1),
        init_times[-1] + archive.timestep * shape.future,
        freq=archive.timestep,
    )
    frames = open_archive(archive.url)["rain_rate"].sel(time=times).data.rechunk((1, -1, -1))
    means = frames.map_blocks(
        _frame_means,
        shape.crop,
        ys,
        xs,
        dtype="f8",
        chunks=((1,) * len(times), (2,), (len(ys),), (len(xs),)),
        new_axis=1,
    ).compute()
    starts = times.get_indexer(init_times - archive.timestep * (shape.past - 1))
    windows = means[starts[:, None] + np.arange(shape.frames)].mean(axis=1)
    return windows[:, 0], windows[:, 1]


def _frame_means(
    frame: NDArray[np.floating], size: int, ys: NDArray[np.int64], xs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(1, y, x) mm/h → (1, 2, crop row, crop column): mean wetness and observed fraction.

    By summed-area tables, so that overlapping crops cost nothing more.
    """
    observed = np.isfinite(frame[0])
    wetness = np.where(observed, 1 - np.exp(-np.where(observed, frame[0], 0.0)), 0.0)
    tables = np.zeros((2, frame.shape[1] + 1, frame.shape[2] + 1))
    tables[:, 1:, 1:] = np.stack([wetness, observed]).cumsum(axis=1).cumsum(axis=2)
    upper, lower = ys[:, None], ys[:, None] + size
    totals = (
        tables[:, lower, xs + size] - tables[:, upper, xs + size]
        - tables[:, lower, xs] + tables[:, upper, xs]
    )  # fmt: skip
    return totals[None] / size**2


def describe(index: SampleIndex, archive: Archive) -> str:
    """One line for people: how many samples, of what, from when to when."""
    first, last = archive.times[index.first.min()], archive.times[index.first.max()]
    return (
        f"{len(index)} samples of {index.shape.past} past and {index.shape.future} future frames, "
        f"{format_duration(archive.timestep)} apart, {index.shape.crop}² pixels, "
        f"{time_text(first)} to {time_text(last)}"
    )
