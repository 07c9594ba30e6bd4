"""Past frames for a forecast, missing ones bridged by advection.

A frame missing between two others is both of them, moved on and moved back to its time along the
motion from one to the other, weighted by nearness. One missing before the first is the first moved
back. So rain that a missing frame did not show is where it must have been, and not where it was
a timestep earlier or later.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from models.baselines.extrapolation import extrapolate, motion
from pipelines.archive import Archive
from pipelines.errors import TooFewFramesError
from pipelines.times import format_duration, time_text
from pipelines.units import DRY_MM_H
from pipelines.window import Window, window

Field = NDArray[np.floating]


@dataclass(frozen=True)
class Past:
    """Past frames (time, y, x) up to an init_time, mm/h, and the window they come from.

    `bridged` are the times whose frames were missing.
    """

    frames: xr.DataArray
    window: Window

    @property
    def bridged(self) -> pd.DatetimeIndex:
        """The times whose frames were missing."""
        return self.window.missing

    @property
    def complete(self) -> bool:
        """Whether no frame had to be bridged."""
        return len(self.bridged) == 0


def read_past(
    archive: Archive,
    init_time: pd.Timestamp,
    frames: int,
    most_missing: int = 0,
    only: Collection[pd.Timestamp] | None = None,
) -> Past:
    """The `frames` frames up to and with `init_time`, missing ones bridged by advection.

    Where only one frame is there, it stands in for all. With `only`, those at other times count as
    missing. Raises `TooFewFramesError` where the frame at `init_time` or more than `most_missing`
    others are not in the archive.
    """
    wanted = window(archive, init_time, frames)
    if only is not None:
        wanted = wanted.only(only)
    present, missing = wanted.present, wanted.missing
    if init_time in missing or len(missing) > most_missing:
        raise TooFewFramesError(
            f"too few past frames for a nowcast at {time_text(init_time)}",
            found=f"{len(present)} of {frames}, missing {', '.join(map(time_text, missing))}",
            expected=f"{frames} frames {format_duration(archive.timestep)} apart, at most "
            f"{most_missing} missing and never the newest",
            remedy="ingest the missing frames, or choose another init_time",
        )
    there = archive.read_frames(present)
    return Past(there if len(missing) == 0 else bridged(there, wanted.times), wanted)


def quality(past: Past, fallback: str = "") -> str:
    """Of a forecast from these frames: good, degraded, or fallback if `fallback` had to make it."""
    if fallback:
        return "fallback"
    return "good" if past.complete else "degraded"


def quality_note(past: Past, fallback: str = "") -> str:
    """The same in words."""
    frames = len(past.window.times)
    bridged = f"{len(past.bridged)} of {frames} past frames missing, bridged by advection"
    notes = [f"by {fallback} instead of the model asked for"] if fallback else []
    notes += [] if past.complete else [bridged]
    return "; ".join(notes) or "all past frames were there"


def bridged(frames: xr.DataArray, times: pd.DatetimeIndex) -> xr.DataArray:
    """Frames at all of `times`, evenly spaced, from those (time, y, x) that are there."""
    there = pd.DatetimeIndex(frames["time"].values)
    filled = frames.reindex(time=times, method="nearest")
    if len(there) < 2:
        return filled
    for number, time in enumerate(times):
        if time not in there:
            filled.values[number] = _moved(frames.values, there, time, times[1] - times[0])
    return filled


def _moved(
    frames: Field, there: pd.DatetimeIndex, time: pd.Timestamp, timestep: pd.Timedelta
) -> Field:
    """A frame at `time`, from those before and after it, or from the first two."""
    after = int(there.searchsorted(time))
    one, two = max(after - 1, 0), max(after, 1)
    earlier, later = frames[one], frames[two]
    steps = (there[two] - there[one]) / timestep
    if not ((earlier >= DRY_MM_H).any() and (later >= DRY_MM_H).any()):
        return earlier if time - there[one] < there[two] - time else later
    per_timestep = motion(np.stack([earlier, later])) / steps
    if after == 0:
        return extrapolate(earlier, -per_timestep, [(there[one] - time) / timestep])[0]
    forward, back = (time - there[one]) / timestep, (there[two] - time) / timestep
    moved_on = extrapolate(earlier, per_timestep, [forward])[0]
    moved_back = extrapolate(later, -per_timestep, [back])[0]
    both = (back * moved_on + forward * moved_back) / steps
    return np.where(np.isnan(both), np.where(np.isnan(moved_on), moved_back, moved_on), both)
