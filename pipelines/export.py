"""Exports: an archive's frames in the form in which others exchange radar data.

`export_mlcast` writes a Zarr store after the MLCast specification for radar precipitation source
data, 0.3.0 (https://github.com/mlcast-community/mlcast-dataset-validator, release 0.4.0);
`export_netcdf` a CF netCDF file. Both copy the stored integers, so every pixel is the archive's.

Why an archive is not an MLCast dataset itself
----------------------------------------------
An archive's time axis is dense and allocated ahead: a late frame has a slot to go to, a missing
one costs nothing, and no reader ever sees the axis change. The specification wants the opposite:
``time`` holds only the times that have data, and every other time is listed in ``missing_times``.
It also takes every data variable for a radar field, knows no ``status``, and asks for one chunk a
frame, where an archive's are of 256×256 pixels. So the dense store serves operation and training,
and the export is a copy for exchange.

What an export cannot meet
--------------------------
Some rules are about the data or its publisher, not about how it is written: three years of data,
pixels of a kilometre, a projected grid, a converter that lives in MLCast's own organisation.
`Exported.unmet` names those that this export fails. All others pass.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipelines import mlcast, storage
from pipelines.archive import PACKING, TIME_ENCODING, Archive
from pipelines.errors import ExistsError, NotFoundError
from pipelines.grid import CRS_VARIABLE
from pipelines.progress import bar
from pipelines.sources.content import formats_library
from pipelines.targets import new_target, refuse_existing
from pipelines.times import time_text
from pipelines.workers import run_parallel

SHARD_FRAMES = 24
SHARD_BYTES = 1 << 27
"""A shard, which is written as a whole, has at most so many frames and so many bytes unpacked."""


@dataclass(frozen=True)
class Exported:
    """What an export holds.

    `times` are those of its frames, `missing` the timesteps between them that have none. `unmet`
    tells which rules of the specification the export fails, by section, and why.
    """

    url: str
    times: pd.DatetimeIndex
    missing: pd.DatetimeIndex
    unmet: Mapping[str, str]

    def __str__(self) -> str:
        unmet = "; ".join(f"{section} ({why})" for section, why in self.unmet.items())
        return (
            f"{len(self.times)} frames, {len(self.missing)} missing times, "
            f"rules not met: {unmet or 'none'}"
        )


def export_mlcast(
    archive_url: str,
    target_url: str,
    *,
    creator: str,
    identifier: str,
    license: str | None = None,
    created_with: str | None = None,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Exported:
    """Copy the frames from `start` to `end`, both included, into a new MLCast dataset.

    ``rain_rate(time, y, x)`` is in kg m-2 h-1, which is mm/h of water. A reader finds the whole
    dataset or none: its root metadata is written last. An export that died is run again. Memory
    is bounded by a few shards for each of `workers`, however long the period.

    Parameters
    ----------
    creator : who publishes it, ``Name <email>``
    identifier : ``<country code>-<entity>-<physical variable>``, such as NL-KNMI-rainfall_flux
    license : SPDX identifier; by default that of the archive's source
    created_with : address of the converting software, ``https://github.com/<org>/<repo>@<version>``

    Raises `NotFoundError` where there is no archive or no frame in the period, `ExistsError` where
    something is at `target_url`, and `SquallError` where a parameter is not as described.
    """
    archive = Archive(archive_url)
    target_url = storage.normalise(target_url)
    times, missing = _period(archive, start, end)
    source = dict(archive.group.attrs)
    attrs = {
        "Conventions": "CF-1.11",
        "title": "Squall radar archive, exported",
        "source": str(source.get("source", "")),
        "consistent_timestep_start": times[0].isoformat(),  # the validator takes no zone
        **mlcast.attributes(creator, identifier, license, source.get("license"), created_with),
    }
    rows, columns = archive.grid.shape
    frames = _frames_at_a_time(rows, columns)
    template = xr.Dataset(
        {
            "rain_rate": (
                ("time", "y", "x"),
                da.full((len(times), rows, columns), np.nan, chunks=-1, dtype="f4"),
                {
                    "standard_name": "rainfall_flux",
                    "long_name": "rain rate",
                    "units": "kg m-2 h-1",
                    "grid_mapping": CRS_VARIABLE,
                },
            )
        },
        coords=archive.grid.coords()
        | {
            "time": ("time", times, {"standard_name": "time", "long_name": "valid time, UTC"}),
            "missing_times": (
                "missing_times",
                missing,
                {"long_name": "timesteps between the first and the last time that have no frame"},
            ),
        },
        attrs=attrs,
    )
    _clear(target_url, template)
    storage.publish_store(
        template,
        target_url,
        encoding={
            "rain_rate": PACKING
            | {"chunks": (1, rows, columns), "shards": (frames, rows, columns)},
            "time": TIME_ENCODING,
            "missing_times": TIME_ENCODING,
        },
        fill=partial(_copy, archive, target_url, times, frames, workers, progress),
    )
    return Exported(target_url, times, missing, mlcast.unmet_rules(archive.grid, times, attrs))


def export_netcdf(
    archive_url: str,
    path: str,
    *,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    progress: bool = False,
) -> pd.DatetimeIndex:
    """Copy the frames from `start` to `end`, both included, into a CF netCDF-4 file.

    ``rain_rate(time, y, x)`` in mm/h, deflated and packed as in the archive; times without a frame
    are left out. The file appears when it is complete. Returns the times.

    Raises `NotFoundError` where there is no archive or no frame in the period, `ExistsError` where
    something is at `path`.
    """
    formats_library("h5netcdf", "a netCDF file")
    archive = Archive(archive_url)
    refuse_existing(path)
    times, _ = _period(archive, start, end)
    slots = archive.times.get_indexer(times)
    with bar(len(times), "netcdf", "frame", shown=progress) as shown:

        def read(block: NDArray[np.intp]) -> NDArray[np.uint16]:
            stored = _stored(archive, block)
            shown.update(len(block))
            return stored

        dataset = xr.Dataset(
            {"rain_rate": (("time", "y", "x"), _lazy(read, slots, archive.grid.shape))},
            coords=archive.grid.coords() | {"time": ("time", times, {"standard_name": "time"})},
            attrs={
                "Conventions": "CF-1.11",
                "title": "Squall radar archive, exported",
                "source": str(archive.group.attrs.get("source", "")),
                "license": str(archive.group.attrs.get("license", "")),
            },
        )
        dataset["rain_rate"].attrs = {  # the integers are the packed ones already
            "standard_name": "rainfall_rate",
            "long_name": "rain rate",
            "units": "mm h-1",
            "grid_mapping": CRS_VARIABLE,
            "scale_factor": PACKING["scale_factor"],
            "_FillValue": np.uint16(PACKING["_FillValue"]),
        }
        with new_target(path) as staged, dask.config.set(scheduler="threads"):
            dataset.to_netcdf(
                staged,
                engine="h5netcdf",
                encoding={
                    "rain_rate": {
                        "zlib": True,
                        "shuffle": True,
                        "chunksizes": (1, *archive.grid.shape),
                    },
                    "time": TIME_ENCODING,
                },
            )
    return times


# What is exported --------------------------------------------------------------------------------


def _period(
    archive: Archive, start: pd.Timestamp | None, end: pd.Timestamp | None
) -> tuple[pd.DatetimeIndex, pd.DatetimeIndex]:
    """The times of the frames in a period, and the timesteps between them that have none."""
    times = archive.usable_times(start, end)
    if len(times) == 0:
        raise NotFoundError(
            "nothing to export",
            found="no frame"
            + (f" from {time_text(start)}" if start is not None else "")
            + (f" until {time_text(end)}" if end is not None else ""),
            expected="a period with frames in it",
            remedy=f"see which times {storage.display(archive.url)} has (`squall show`)",
        )
    dense = pd.date_range(times[0], times[-1], freq=archive.timestep)
    return times, pd.DatetimeIndex(dense.difference(times))


def _frames_at_a_time(rows: int, columns: int) -> int:
    """How many frames are held in memory, and are a shard of an MLCast dataset."""
    return max(1, min(SHARD_FRAMES, SHARD_BYTES // (2 * rows * columns)))


# Writing -----------------------------------------------------------------------------------------


def _clear(url: str, template: xr.Dataset) -> None:
    """Remove what an export that died left at `url`; an error where there is anything else."""
    half = f".{storage.ROOT_METADATA}."  # how a local file is named while it is written
    there = {name for name in storage.names(url) if not name.startswith(half)}
    if storage.ROOT_METADATA in there or there - set(template.variables):
        raise ExistsError(
            "there is something at the target",
            found=storage.display(url),
            expected="nothing, or what an export that died has left",
            remedy="name another target, or remove that one",
        )
    storage.remove(url)


def _copy(
    archive: Archive,
    url: str,
    times: pd.DatetimeIndex,
    frames: int,
    workers: int,
    progress: bool,
) -> None:
    """Copy the stored integers of `times`, a shard of `frames` at a time."""
    slots = archive.times.get_indexer(times)
    tasks = [
        (archive.url, url, first, slots[first : first + frames])
        for first in range(0, len(slots), frames)
    ]
    results = run_parallel(_copy_shard, tasks, workers=workers)
    with contextlib.closing(results), bar(len(slots), "export", "frame", shown=progress) as shown:
        for copied in results:
            shown.update(copied)


def _copy_shard(archive_url: str, url: str, first: int, slots: NDArray[np.intp]) -> int:
    """Copy the frames of `slots` to position `first` of the export: one shard, one write."""
    array = zarr.open_array(storage.zarr_store(storage.join(url, "rain_rate")), mode="r+")
    array[first : first + len(slots)] = _stored(Archive(archive_url), slots)
    return len(slots)


def _stored(archive: Archive, slots: NDArray[np.intp]) -> NDArray[np.uint16]:
    """Stored integers (time, y, x) of some slots, in one read for each unbroken run of them."""
    runs = np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1)
    return np.concatenate([archive.read_stored(slice(run[0], run[-1] + 1)) for run in runs])


def _lazy(
    read: Callable[[NDArray[np.intp]], NDArray[np.uint16]],
    slots: NDArray[np.intp],
    shape: tuple[int, int],
) -> da.Array:
    """The stored integers of `slots` as a Dask array that reads a block of them when needed."""
    frames = _frames_at_a_time(*shape)
    blocks = np.split(slots, range(frames, len(slots), frames))
    return da.concatenate(
        [
            da.from_delayed(dask.delayed(read)(block), (len(block), *shape), dtype=np.uint16)
            for block in blocks
        ]
    )
