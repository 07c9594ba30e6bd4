"""The frames that a forecast is made from, told apart by their contents.

A window is `frames` successive timesteps that end at an init_time. Its digest changes when a frame
of it comes late, is corrected, or is decoded in another way: then a forecast made from it is out of
date.
"""

import hashlib
import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from pipelines.archive import USABLE, Archive, Status
from pipelines.manifest import ManifestRow, frame_row, read_manifest
from pipelines.times import time_text, utc

UNKNOWN = "unknown"
"""In place of the hash of a frame that no manifest row tells of."""


@dataclass(frozen=True)
class Window:
    """The timesteps up to and with an init_time, and the files behind those that have a frame.

    `files` has a manifest row, or None where there is none, for each time that has a frame.
    """

    times: pd.DatetimeIndex
    files: dict[pd.Timestamp, ManifestRow | None]

    @property
    def present(self) -> pd.DatetimeIndex:
        """The times that have a frame."""
        return self.times[self.times.isin(list(self.files))]

    @property
    def missing(self) -> pd.DatetimeIndex:
        """The times that have none."""
        return self.times.difference(self.present)

    def sha256(self, time: pd.Timestamp) -> str:
        """The hash of the file behind a frame."""
        row = self.files[time]
        return row.sha256 if row else UNKNOWN

    def only(self, times: Collection[pd.Timestamp]) -> "Window":
        """The same timesteps, as if no other frame than those at `times` were there."""
        return Window(self.times, {time: row for time, row in self.files.items() if time in times})

    @property
    def received(self) -> pd.Timestamp | None:
        """When the newest frame's file appeared; None where the manifest does not say."""
        row = self.files.get(self.times[-1])
        return utc(row.received) if row else None

    @property
    def digest(self) -> str:
        """sha256 of which frames are there, of their contents and decoders."""
        facts = [
            (time_text(time), self.sha256(time), row.decoder if (row := self.files[time]) else "")
            for time in self.present
        ]
        return hashlib.sha256(json.dumps([len(self.times), facts]).encode()).hexdigest()


class Windows:
    """Windows that end in a period, read from status and manifest once."""

    def __init__(
        self,
        archive: Archive,
        first: pd.Timestamp,
        last: pd.Timestamp,
        most_frames: int,
        statuses: Collection[Status] = USABLE,
    ) -> None:
        """`most_frames` : of the longest window asked for; `statuses` : those that have a frame."""
        self.archive = archive
        begin = first - (most_frames - 1) * archive.timestep
        self.status = archive.status(begin, last)
        self.usable = pd.DatetimeIndex(self.status.index[self.status.isin(statuses)])
        days = pd.date_range(begin.floor("D"), last.floor("D"), freq="D").strftime("%Y-%m-%d")
        rows = itertools.groupby(read_manifest(archive.url, days), key=lambda row: row.valid_time)
        known = {utc(text): frame_row(list(group)) for text, group in rows}
        self._files = {time: known.get(time) for time in self.usable}

    def ending_at(self, init_time: pd.Timestamp, frames: int) -> Window:
        """The window of `frames` timesteps that ends at `init_time`."""
        times = pd.date_range(
            end=init_time, periods=frames, freq=self.archive.timestep, name="time"
        )
        return self.at(times)

    def at(self, times: pd.DatetimeIndex) -> Window:
        """The window of these times."""
        return Window(times, {time: self._files[time] for time in times if time in self._files})


def window(archive: Archive, init_time: pd.Timestamp, frames: int) -> Window:
    """The window of `frames` timesteps that ends at `init_time`."""
    return Windows(archive, init_time, init_time, frames).ending_at(init_time, frames)


def recent_times(
    archive: Archive, period: pd.Timedelta, since: pd.Timestamp | None = None
) -> pd.DatetimeIndex:
    """The times of the newest frame and of those less than `period` before it, from `since` on."""
    newest = archive.newest_usable()
    if newest is None:
        return pd.DatetimeIndex([])
    first = newest - period
    times = archive.usable_times(max(first, since or first), newest)
    return times[(times > first) | (times == newest)]
