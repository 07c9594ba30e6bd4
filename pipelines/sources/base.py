"""What a source is: two operations, find frames by time and read one.

A new source is one file beside this one with a class that has these attributes and methods, and
one line in `pipelines.sources`.
"""

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import NoFramesError
from pipelines.grid import Grid, check_shape
from pipelines.sources.content import MOST_BYTES, too_large
from pipelines.times import time_text
from pipelines.units import BLOCK


@dataclass(frozen=True, order=True)
class FrameFile:
    """A provider's file that holds one frame, as a listing shows it.

    Parameters
    ----------
    valid_time : UTC, from the file's name
    received : UTC, when the file appeared at the location (its modification time)
    url : fsspec URL
    size : bytes
    """

    valid_time: pd.Timestamp
    received: pd.Timestamp
    url: str
    size: int

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.url.rsplit("/", 1)[-1]


class Source(Protocol):
    """A provider's format: where its frames are and what one holds.

    Attributes
    ----------
    name : what ``--source`` takes
    title, format, variable, timestep, licence, location : for ``squall sources``; `timestep` is
        None where it differs by product, `location` a public place to find files, if any
    decoder : name and version of the reading code; a manifest row carries it
    """

    name: str
    title: str
    format: str
    variable: str
    timestep: pd.Timedelta | None
    licence: str
    location: str | None
    decoder: str

    def find(
        self, location: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
    ) -> list[FrameFile]:
        """The frames at an fsspec location with start ≤ valid_time ≤ end, by valid_time.

        Raises `NoFramesError` where the location is not there or holds no such file.
        """
        ...

    def read(self, content: bytes) -> xr.DataArray:
        """One file's bytes as a frame: see `frame`. Raises `FrameError` where it is none."""
        ...


@runtime_checkable
class Fetching(Protocol):
    """What a source has besides, where the provider's files hold many frames each."""

    def fetch(self, file: FrameFile) -> bytes:
        """One frame's bytes, for `Source.read`; ``file.url`` says which by what follows its #."""
        ...


def content_of(source: Source, file: FrameFile) -> bytes:
    """A frame's bytes: the whole file's, or those that the source takes out of it."""
    if isinstance(source, Fetching):
        return source.fetch(file)
    if file.size > MOST_BYTES:
        raise too_large(f"{file.size} bytes")
    return storage.read_bytes(file.url)


def frame(
    rain_rate_mm_h: NDArray[np.floating],
    grid: Grid,
    valid_time: pd.Timestamp | None,
    *,
    overwrite: bool = False,
    **provenance: str,
) -> xr.DataArray:
    """A CF frame: `rain_rate(y, x)` in mm/h, NaN where not observed.

    Coordinates: `x`, `y`, the CRS, the scalar `time` (= valid_time, UTC) and the boolean
    `observed(y, x)`. A dry pixel is 0 and observed; a missing one is NaN and not. What is negative
    or infinite is no rain rate, so it is missing. `valid_time` is None, and `time` NaT, where the
    format holds no time: then that of the file's name counts. With `overwrite` the frame may take
    the given array's memory, which then holds something else.
    """
    check_shape(rain_rate_mm_h.shape, grid)
    rain_rate, observed = _mask(rain_rate_mm_h, overwrite)
    time = valid_time.to_datetime64() if valid_time is not None else np.datetime64("NaT", "ns")
    return xr.DataArray(
        rain_rate,
        dims=("y", "x"),
        coords=grid.coords(lonlat=False)
        | {
            "time": ((), time, {"standard_name": "time"}),
            "observed": (("y", "x"), observed),
        },
        name="rain_rate",
        attrs={
            "standard_name": "rainfall_rate",
            "long_name": "rain rate",
            "units": "mm h-1",
            "grid_mapping": "crs",
            **provenance,
        },
    )


def _mask(
    rain_rate_mm_h: NDArray[np.floating], overwrite: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rain rate as float32, NaN where not observed, and where it is observed.

    A block at a time, which stays in the processor's cache. float32 takes the first half of the
    memory of the float64 that it overwrites: writing never overtakes reading.
    """
    given = rain_rate_mm_h.reshape(-1)
    usable = given.itemsize >= 4 and given.flags.writeable
    if overwrite and usable and rain_rate_mm_h.flags.c_contiguous:
        flat = given.view(np.float32)[: given.size]
    else:
        flat = np.empty(given.size, np.float32)
    observed = np.empty(given.size, np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, given.size, BLOCK):
            block = slice(start, start + BLOCK)
            flat[block] = given[block]
            np.greater_equal(flat[block], 0, out=observed[block])
            observed[block] &= flat[block] < np.inf
            np.copyto(flat[block], np.nan, where=~observed[block])
    return flat.reshape(rain_rate_mm_h.shape), observed.reshape(rain_rate_mm_h.shape)


class FoundByName:
    """`Source.find` for formats whose files tell their time by name.

    Attributes
    ----------
    pattern : what a file's name matches; its group ``time`` holds the digits of `time_format`, with
        or without separators between and seconds after them
    example : such a name, for people
    """

    name: str
    pattern: re.Pattern[str]
    example: str
    time_format = "%Y%m%d%H%M"

    def find(
        self, location: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
    ) -> list[FrameFile]:
        """The files under a location, recursively: see `Source.find`."""
        matches: list[FrameFile] = []
        others = 0
        for entry in _walk(location):
            match = self.pattern.search(entry["name"].rsplit("/", 1)[-1])
            valid_time = _name_time(match["time"], self.time_format) if match else None
            if valid_time is None:
                others += 1
            elif (start is None or start <= valid_time) and (end is None or valid_time <= end):
                matches.append(frame_file(location, entry, valid_time))
        if not matches:
            period = f" from {time_text(start) if start else 'any time'}" if start or end else ""
            period += f" to {time_text(end)}" if end else ""
            raise NoFramesError(
                f"no {self.name} frames at {storage.display(location)}{period}",
                found=f"{others} other file(s)",
                expected=f"names such as {self.example}",
                remedy="check the location and the period, or choose another source "
                "(`squall sources`)",
            )
        return sorted(matches)


def _walk(location: str) -> Iterator[dict[str, Any]]:
    fs, path = storage.filesystem(location)
    if not fs.exists(path):
        raise NoFramesError(
            "no such location",
            found=storage.display(location),
            expected="an existing folder, or a prefix in an object store",
            remedy="check the path; a URL needs its scheme, such as s3://",
        )
    for entry in fs.find(path, detail=True).values():
        if entry["type"] == "file" and not entry["name"].rsplit("/", 1)[-1].startswith("."):
            yield entry


def _name_time(digits: str, time_format: str) -> pd.Timestamp | None:
    digits = re.sub(r"\D", "", digits)
    length = len(dt.datetime(2000, 1, 1).strftime(time_format))
    try:
        time = dt.datetime.strptime(digits[:length], time_format)
    except ValueError:
        return None
    return pd.Timestamp(time).as_unit("ns")


def frame_file(location: str, entry: dict[str, Any], valid_time: pd.Timestamp) -> FrameFile:
    """The file of a listing's entry (`fsspec` keys: name, size and a modification time)."""
    fs, _ = storage.filesystem(location)
    # Local listings say `mtime` in seconds; object stores say `LastModified` (s3fs) or similar.
    modified = entry.get("mtime") or entry.get("LastModified") or entry.get("last_modified")
    if modified is None:
        modified = fs.modified(entry["name"])
    received = (
        pd.Timestamp(modified, unit="s")
        if isinstance(modified, (int, float))
        else pd.Timestamp(modified)
    )
    if received.tzinfo is not None:
        received = received.tz_convert("UTC").tz_localize(None)
    return FrameFile(
        valid_time=valid_time,
        received=received.floor("s").as_unit("ns"),
        url=str(fs.unstrip_protocol(entry["name"])),
        size=int(entry["size"]),
    )
