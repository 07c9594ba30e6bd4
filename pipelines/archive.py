"""The archive: our Zarr history of one product.

`{root}/archive/{product}.zarr` holds ``rain_rate(time, y, x)`` on a regular, pre-sized time axis.
Every slot of the axis is one timestep; a slot without a frame stays missing and costs no object.

How it stays whole without a transaction layer
----------------------------------------------
* The write unit is one frame: a shard of its own, replaced atomically, written by one worker.
* ``status(time)`` is written after the frame and its manifest row, by one process. A slot whose
  status is not ok or late has not been committed, whatever its pixels say.
* The axis never changes under a reader: extending it writes the arrays' metadata first and the
  root's consolidated metadata last.
* A manifest beside the store has a row for every file ever seen, good or bad.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipelines import storage
from pipelines.axis import lengthen
from pipelines.errors import ExistsError, NotFoundError, SquallError
from pipelines.fast import fast_array
from pipelines.grid import CRS_VARIABLE, Grid
from pipelines.manifest import ManifestRow, write_manifest
from pipelines.times import time_text
from pipelines.units import MISSING, SCALE_MM_H, unpack

CHUNK = 256
"""Rows and columns of a chunk."""
STATUS_CHUNK = 288
"""Slots per status chunk: a day of 5-minute frames."""
TIME_CHUNK = 1 << 15
TIME_ENCODING = {"units": "seconds since 1970-01-01", "calendar": "standard", "dtype": "int64"}


@dataclass(frozen=True)
class Layout:
    """How `rain_rate` is cut: what a write replaces as a whole, and what a read takes.

    Parameters
    ----------
    name : "live" or "training"
    frames : slots in a chunk, and so in a shard, which is the write unit
    shard : rows and columns of a shard; None for the whole field
    """

    name: str
    frames: int
    shard: int | None


LIVE = Layout("live", frames=1, shard=None)
"""One object a frame: a frame that comes, or comes again, is one atomic write."""
TRAINING = Layout("training", frames=24, shard=2 * CHUNK)
"""Crops of many frames in few reads; written by compaction, 24 slots at a time."""


class Status(IntEnum):
    """What a slot of the time axis holds."""

    MISSING = 0
    OK = 1
    LATE = 2
    BAD = 3
    MOVED = 4
    """Compacted into the training layout and no longer here."""


OWN_ATTRIBUTES = ("Conventions", "title", "timestep_seconds")
"""What every archive says of itself; the rest is about its source."""
USABLE = (Status.OK, Status.LATE)


def archive_url(root: str, product: str) -> str:
    """Where a product's archive is."""
    return storage.join(root, "archive", f"{product}.zarr")


def create(
    url: str,
    grid: Grid,
    start: pd.Timestamp,
    end: pd.Timestamp,
    timestep: pd.Timedelta,
    attrs: Mapping[str, str] | None = None,
    layout: Layout = LIVE,
) -> "Archive":
    """Create an empty archive with a slot for every timestep from `start` to `end`, both included.

    Nothing but metadata and coordinates is written: an unwritten slot reads as missing.

    Raises `ExistsError` where there is an archive already.
    """
    times = pd.date_range(start, end, freq=timestep, name="time")
    rows, columns = grid.shape
    chunk = min(CHUNK, rows), min(CHUNK, columns)
    shard = tuple(
        min(-(-size // c) * c, layout.shard or size + c)
        for size, c in zip(grid.shape, chunk, strict=True)
    )
    template = xr.Dataset(
        {
            "rain_rate": (
                ("time", "y", "x"),
                da.full((len(times), rows, columns), np.nan, chunks=-1, dtype="f4"),
                {
                    "standard_name": "rainfall_rate",
                    "long_name": "rain rate",
                    "units": "mm h-1",
                    "grid_mapping": CRS_VARIABLE,
                },
            )
        },
        coords=grid.coords()
        | {
            "time": ("time", times, {"standard_name": "time", "long_name": "valid time, UTC"}),
            "status": ("time", np.zeros(len(times), np.uint8), _STATUS_ATTRS),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Squall radar archive",
            "timestep_seconds": int(timestep.total_seconds()),
            **(attrs or {}),
        },
    )
    if storage.exists(storage.join(url, storage.ROOT_METADATA)):
        raise ExistsError(
            "there is an archive already",
            found=storage.display(url),
            expected="a place with nothing in it",
            remedy="name another product, or ingest into this one",
        )
    storage.publish_store(
        template,
        url,
        {
            "rain_rate": PACKING
            | {
                "chunks": (layout.frames, *chunk),
                "shards": (layout.frames, *shard),
                "compressors": (ZstdCodec(level=3), Crc32cCodec()),
            },
            "time": TIME_ENCODING | {"chunks": (TIME_CHUNK,)},
            "status": {"chunks": (STATUS_CHUNK,), "fill_value": 0},
        },
        fill=_nothing,
    )
    return Archive(url)


PACKING: dict[str, Any] = {
    "dtype": "uint16",
    "scale_factor": SCALE_MM_H,
    "_FillValue": MISSING,  # CF: what a stored pixel says
    "fill_value": MISSING,  # Zarr: what a chunk that was never written says
}
_STATUS_ATTRS = {
    "long_name": "what this slot holds",
    "flag_values": [int(s) for s in Status],
    "flag_meanings": " ".join(s.name.lower() for s in Status),
}


def _nothing() -> None:
    """No frame is written yet."""


@lru_cache(maxsize=4)
def opened(url: str, version: str) -> "Archive":
    """An archive, opened once per process and version (`Archive.version`): for many small tasks."""
    return Archive(url)


class Archive:
    """An open archive: read and write frames by time.

    Raises `NotFoundError` where there is none at `url`.
    """

    def __init__(self, url: str) -> None:
        self.url = storage.normalise(url)
        if not storage.exists(storage.join(self.url, storage.ROOT_METADATA)):
            raise NotFoundError(
                "no archive",
                found=f"nothing at {storage.display(self.url)}",
                expected="a Zarr store made by ingest",
                remedy="run `squall ingest` first, or check root and product (`squall doctor`)",
            )

    @cached_property
    def root_metadata(self) -> dict[str, Any]:
        """The root's metadata with that of all arrays: what counts as the archive, right now."""
        return dict(storage.read_json(storage.join(self.url, storage.ROOT_METADATA)))

    @property
    def version(self) -> str:
        """A digest of the root's metadata: it changes with the axis."""
        return hashlib.sha256(json.dumps(self.root_metadata).encode()).hexdigest()[:16]

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group, as the root's metadata says."""
        return storage.open_group(self.url, mode="r+")

    def _array(self, name: str) -> zarr.Array:
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    @cached_property
    def times(self) -> pd.DatetimeIndex:
        """The valid time of every slot, UTC."""
        first = pd.Timestamp(int(np.asarray(self._array("time")[0])), unit="s").as_unit("ns")
        length = self._array("time").shape[0]
        return pd.date_range(first, periods=length, freq=self.timestep, name="time")

    @cached_property
    def timestep(self) -> pd.Timedelta:
        """The spacing of the slots."""
        return pd.Timedelta(seconds=self.group.attrs["timestep_seconds"])  # type: ignore[arg-type]

    @property
    def layout(self) -> Layout:
        """How `rain_rate` is cut."""
        frames = self._array("rain_rate").chunks[0]
        return next(layout for layout in (LIVE, TRAINING) if layout.frames == frames)

    @cached_property
    def grid(self) -> Grid:
        """The grid of every frame."""
        with xr.open_zarr(storage.zarr_store(self.url), chunks=None) as dataset:
            return Grid.of(dataset)

    def slot(self, time: pd.Timestamp) -> int:
        """The number of a time's slot; an error where the axis has none."""
        position, rest = divmod(time - self.times[0], self.timestep)
        if rest or not 0 <= position < len(self.times):
            raise SquallError(
                "no such time in the archive",
                found=time_text(time),
                expected=f"{time_text(self.times[0])} to {time_text(self.times[-1])} "
                f"every {self.timestep}",
                remedy="name a time on the archive's axis",
            )
        return int(position)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slots, rows and columns."""
        slots, rows, columns = self._array("rain_rate").shape
        return slots, rows, columns

    def fast_rain_rate(self) -> Any | None:
        """The stored integers (time, y, x) by tensorstore; None where it is not available."""
        metadata = self.root_metadata["consolidated_metadata"]["metadata"]["rain_rate"]
        return fast_array(storage.join(self.url, "rain_rate"), metadata)

    # Frames ------------------------------------------------------------------------------------

    @cached_property
    def _writable(self) -> Any:
        return self.fast_rain_rate() or self._array("rain_rate")

    def write_frame(self, time: pd.Timestamp, stored: NDArray[np.uint16]) -> None:
        """Write one frame's stored integers (y, x) into its slot. The status stays as it is."""
        self._writable[self.slot(time)] = stored

    def write_block(self, slots: slice, y: slice, x: slice, stored: NDArray[np.uint16]) -> None:
        """Write stored integers (time, y, x) of whole write units. The status stays as it is."""
        self._writable[slots, y, x] = stored

    def read_frames(self, times: pd.DatetimeIndex) -> xr.DataArray:
        """Frames (time, y, x), float32 mm/h, NaN where not observed or not committed."""
        slots = [self.slot(time) for time in times]
        usable = times.isin(self.usable_times(times.min(), times.max()))
        frames = np.full((len(slots), *self.grid.shape), np.nan, np.float32)
        array = self._array("rain_rate")
        for k, slot in enumerate(slots):
            if usable[k]:
                frames[k] = unpack(np.asarray(array[slot]))
        return xr.DataArray(
            frames,
            dims=("time", "y", "x"),
            coords=self.grid.coords(lonlat=False) | {"time": pd.DatetimeIndex(times, name="time")},
            name="rain_rate",
            attrs={"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"},
        )

    def read_stored(
        self, slots: slice, y: slice = slice(None), x: slice = slice(None)
    ) -> NDArray[np.uint16]:
        """Stored integers (time, y, x) of successive slots, committed or not, cropped."""
        return np.asarray(self._array("rain_rate")[slots, y, x])

    # Status ------------------------------------------------------------------------------------

    def status(
        self, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
    ) -> pd.Series:
        """The status of every slot from `start` to `end`, both included, by time.

        No more than these are read: a long archive costs no more than a short one.
        """
        times = self.times[self.times.slice_indexer(start, end)]
        if len(times) == 0:
            return pd.Series(np.zeros(0, np.uint8), index=times, name="status")
        first = self.slot(times[0])
        stored = np.asarray(self._array("status")[first : first + len(times)])
        return pd.Series(stored, index=times, name="status")

    def usable_times(
        self, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
    ) -> pd.DatetimeIndex:
        """The times at which a frame is committed, from `start` to `end`, both included."""
        status = self.status(start, end)
        return pd.DatetimeIndex(status.index[status.isin(USABLE)])

    def newest_usable(self) -> pd.Timestamp | None:
        """The newest time at which a frame is committed; None where none is.

        Status is read from the end in pieces.
        """
        end = len(self.times)
        while end > 0:
            start = (end - 1) // STATUS_CHUNK * STATUS_CHUNK
            usable = np.flatnonzero(np.isin(self._array("status")[start:end], USABLE))
            if len(usable):
                return self.times[start + int(usable[-1])]
            end = start
        return None

    def commit(self, rows: Iterable[ManifestRow], statuses: Mapping[pd.Timestamp, Status]) -> None:
        """Record what became of some files: the manifest first, then the status of their slots."""
        write_manifest(self.url, rows)
        if not statuses:
            return
        slots = sorted((self.slot(time), int(status)) for time, status in statuses.items())
        array = self._array("status")
        first, last = slots[0][0], slots[-1][0]
        block = np.asarray(array[first : last + 1]).copy()
        for slot, status in slots:
            block[slot - first] = status
        array[first : last + 1] = block

    def extend(self, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None) -> None:
        """Lengthen the axis so that it has slots from `start` to `end`.

        Readers see the old axis or the new one, also while this is under way: see `pipelines.axis`.
        Earlier slots come in whole chunks of `rain_rate`.
        """
        first, last = self.times[0], self.times[-1]
        before = max(0, -((start - first) // self.timestep)) if start is not None else 0
        before = -(-before // self.layout.frames) * self.layout.frames
        times = pd.date_range(
            first - before * self.timestep, max(last, end or last), freq=self.timestep
        )
        if len(times) == len(self.times):
            return
        status = None
        if before:
            status = np.zeros(len(times), np.uint8)
            status[before : before + len(self.times)] = self.status()
        seconds = times.to_numpy().astype("datetime64[s]").astype(np.int64)
        lengthen(self.url, self.root_metadata, seconds, status, before)
        for name in ("root_metadata", "group", "times", "_writable"):
            self.__dict__.pop(name, None)


def open_archive(url: str) -> xr.Dataset:
    """The archive as a lazy dataset in mm/h: what ``xr.open_zarr(url)`` gives."""
    Archive(url)  # a clear error where there is none
    return xr.open_zarr(storage.zarr_store(storage.normalise(url)))
