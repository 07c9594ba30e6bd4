"""Which sequences train, which validate and which test: no frame is in two parts."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.samples import SequenceShape

GOLDEN_RATIO = (5**0.5 - 1) / 2
LEAST_DAYS = 3


class Parts(NamedTuple):
    """The init_times of each part, ascending."""

    training: pd.DatetimeIndex
    validation: pd.DatetimeIndex
    test: pd.DatetimeIndex


def split(
    init_times: pd.DatetimeIndex,
    timestep: pd.Timedelta,
    shape: SequenceShape,
    validation_fraction: float,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Parts:
    """Deal init_times (ascending) to three parts, so that no frame is in two.

    Whole UTC days are dealt where every part gets about three of them or more. Day d goes where
    frac(d·φ + offset) falls, φ the golden ratio and the offset from the seed: the parts come evenly
    spread over the seasons, any run of days has nearly the fractions asked for, and a day keeps its
    part when the archive grows. In a shorter archive the last sequences are the test part and those
    a gap before it validate.

    Between two parts lies a gap as long as a sequence: the earlier one gives up its last sequences.
    Where that leaves nothing to train on, everything trains.
    """
    fractions = validation_fraction, test_fraction, 1 - validation_fraction - test_fraction
    gap = timestep * shape.frames
    days = (init_times.floor("D") - pd.Timestamp(0)) // pd.Timedelta("1D")
    if days.nunique() * min(f for f in fractions if f > 0) >= LEAST_DAYS:
        offset = np.random.default_rng(seed).random()
        place = (days.to_numpy() * GOLDEN_RATIO + offset) % 1
        parts = np.where(place < validation_fraction, 1, 2 * (place < sum(fractions[:2])))
    else:
        parts = _in_order(init_times, gap, *fractions[:2])
    apart = _far_from_the_next_part(init_times, parts, gap)
    training, validation, test = (init_times[apart & (parts == part)] for part in range(3))
    if len(training) == 0:
        return Parts(init_times, init_times[:0], init_times[:0])
    return Parts(training, validation, test)


def _in_order(
    init_times: pd.DatetimeIndex,
    gap: pd.Timedelta,
    validation_fraction: float,
    test_fraction: float,
) -> NDArray[np.int64]:
    """Part 0, then 1, then 2; the last two as long as asked for once the gap between is taken."""
    validating, testing = (
        round(len(init_times) * fraction) for fraction in (validation_fraction, test_fraction)
    )
    first_test = before_gap = len(init_times) - testing
    if testing:
        before_gap = int(init_times.searchsorted(init_times[first_test] - gap, side="right"))
    first_validation = max(0, before_gap - validating) if validating else first_test
    return np.repeat([0, 1, 2], [first_validation, first_test - first_validation, testing])


def _far_from_the_next_part(
    init_times: pd.DatetimeIndex, parts: NDArray[np.integer], gap: pd.Timedelta
) -> NDArray[np.bool_]:
    """Whether the next init_time of another part is `gap` or more away, or there is none."""
    apart = np.ones(len(init_times), bool)
    changes = np.flatnonzero(np.diff(parts)) + 1
    runs = np.searchsorted(changes, np.arange(len(init_times)), side="right")
    followed = runs < len(changes)
    following = init_times[changes[runs[followed]]]
    apart[followed] = following - init_times[followed] >= gap
    return apart
