"""Writing a day of forecasts into one store, and comparing it with what it was made of.

The layout is that of `pipelines.forecast_days`. A shard is what one init_time's forecast, or one
member of it, has of a variable, in chunks as published; one shard is in memory at a time.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from pipelines import storage
from pipelines.archive import TIME_ENCODING
from pipelines.errors import SquallError
from pipelines.forecast_days import FORECAST, INDEX, PER_FORECAST, SUPERSEDED, Day, Key
from pipelines.times import init_time_label, time_text

Singles = Mapping[Key, str]
"""The stores of single forecasts, by init_time and revision."""
Axes = dict[str, "pd.Index[Any]"]
"""The labels of a dimension."""
PACKING = ("scale_factor", "add_offset", "_FillValue")
ALIKE = ("units", *PACKING)
OF_TIME = ("init_time", "valid_time")


class UnlikeForecastsError(SquallError):
    """Forecasts of a day that do not go into one store, such as some on another grid."""


class UnequalDayError(SquallError):
    """A day store that does not hold what its forecasts do. Nothing has been removed."""


def write_day(staged: Path, singles: Singles) -> None:
    """Write the forecasts of a day into a folder, read them back and compare them.

    Raises `UnlikeForecastsError` where they do not go together, `UnequalDayError` where they do
    not read back.
    """
    keys = sorted(singles)
    by_time = [list(group) for _, group in itertools.groupby(keys, lambda key: key[0])]
    index = {init_time_label(group[0][0]): [revision for _, revision in group] for group in by_time}
    attrs = {
        "Conventions": "CF-1.11",
        "title": "Squall precipitation nowcasts of a day",
        INDEX: index,
    }
    _write_group(staged, None, [group[-1] for group in by_time], singles, attrs)
    older = [key for group in by_time for key in group[:-1]]
    store = LocalStore(staged)
    with storage.consolidating():
        if older:
            _write_group(staged, SUPERSEDED, older, singles, {})
            zarr.consolidate_metadata(store, path=SUPERSEDED)
        zarr.consolidate_metadata(store)
    compare(Day(storage.normalise(staged)), singles)


def compare(day: Day, singles: Singles) -> None:
    """Raise `UnequalDayError` unless the day holds every one of the forecasts as it is."""
    for key, url in singles.items():
        here = xr.open_zarr(storage.zarr_store(url), chunks=None)
        there = day.open(key)
        arrays = list(here.data_vars)
        same = (
            here.attrs == there.attrs
            and set(arrays) == set(there.data_vars)
            and here.drop_vars(arrays).equals(there.drop_vars(arrays))
            and all(_equal(here[name], there[name]) for name in arrays)
        )
        if not same:
            raise UnequalDayError(
                "a day of forecasts does not read back as its forecasts do",
                found=f"another {time_text(key[0])}, revision {key[1]}, in "
                f"{storage.display(day.url)}",
                expected=f"what {storage.display(url)} holds",
                remedy="check the disk or bucket; no single forecast of the day was removed",
            )


def _equal(here: xr.DataArray, there: xr.DataArray) -> bool:
    """Whether values are the same, a member at a time."""
    if here.dims != there.dims or here.shape != there.shape:
        return False
    if "member" not in here.dims:
        return here.equals(there)
    return all(
        here.isel(member=member).equals(there.isel(member=member))
        for member in range(here.sizes["member"])
    )


def _write_group(
    staged: Path, group: str | None, keys: Sequence[Key], singles: Singles, attrs: dict[str, Any]
) -> None:
    """Write forecasts as rows: metadata and coordinates first, then a shard at a time."""
    forecasts = [_stored(singles[key]) for key in keys]
    grid, axes = _shared_grid(keys, forecasts), _axes(forecasts)
    rows = {*grid.variables, *axes, *OF_TIME}
    stacked = [
        _Stacked.of(name, [one for one in forecasts if name in one.variables])
        for name in dict.fromkeys(str(name) for one in forecasts for name in one.variables)
        if name not in rows
    ]
    labels = {dim: _labels(dim, index, forecasts) for dim, index in axes.items()}
    template = grid.assign_coords(labels | _times(keys, forecasts, axes))
    told = [_told(singles[key], one, axes) for key, one in zip(keys, forecasts, strict=True)]
    for name, default in PER_FORECAST.items():
        values = [one["attributes"].get(name, default) for one in told]
        dtype = object if isinstance(default, str) else np.int64
        template.coords[name] = ("init_time", np.array(values, dtype=dtype))
    template[FORECAST] = (
        "init_time",
        np.array([json.dumps(one) for one in told], dtype=object),
        {"long_name": "attributes, variables and labels of each forecast as published, JSON"},
    )
    encoding: dict[str, Any] = {name: TIME_ENCODING for name in OF_TIME if name in template}
    for one in stacked:
        template[one.name], encoding[one.name] = one.template(template.sizes)
    template = template.set_coords([one.name for one in stacked if one.is_coordinate])
    store = LocalStore(staged)
    with zarr.config.set({"array.write_empty_chunks": True}):
        template.assign_attrs(attrs).to_zarr(
            store,
            group=group,
            mode="w" if group is None else "a",
            zarr_format=3,
            consolidated=False,
            encoding=encoding,
            compute=False,
        )
        target = zarr.open_group(store, path=group or "", mode="r+")
        arrays: list[Any] = [target[one.name] for one in stacked]
    for row, forecast in enumerate(forecasts):
        staged.touch()  # a sign of life, for `once.sweep`
        for one, array in zip(stacked, arrays, strict=True):
            for part, block in one.blocks(forecast, axes):
                array[(row, *part)] = block


def _stored(url: str) -> xr.Dataset:
    """A single forecast, lazily, its pixels as the integers that are stored."""
    return xr.open_zarr(storage.zarr_store(url), chunks=None, mask_and_scale=False)


def _told(url: str, forecast: xr.Dataset, axes: Axes) -> dict[str, Any]:
    """All that makes a forecast what it was, once it is a row among others."""
    return {
        "attributes": storage.read_json(storage.join(url, storage.ROOT_METADATA))["attributes"],
        "variables": sorted(map(str, forecast.variables)),
        "labels": {
            dim: index.get_indexer(forecast.indexes[dim]).tolist()
            for dim, index in axes.items()
            if dim in forecast.indexes
        },
    }


def _axes(forecasts: Sequence[xr.Dataset]) -> Axes:
    """The labels that the forecasts have together, of every dimension but y and x."""
    axes: Axes = {}
    for forecast in forecasts:
        for name, index in forecast.indexes.items():
            dim = str(name)
            if dim not in ("y", "x"):
                known = axes.setdefault(dim, index)
                axes[dim] = known if known.equals(index) else known.union(index)
    return axes


def _grid_of(forecast: xr.Dataset) -> xr.Dataset:
    """The coordinates that are the grid's: x, y, lat, lon, crs."""
    return xr.Dataset(
        coords={
            name: coordinate.variable
            for name, coordinate in forecast.coords.items()
            if set(coordinate.dims) <= {"y", "x"} and name not in OF_TIME
        }
    )


def _shared_grid(keys: Sequence[Key], forecasts: Sequence[xr.Dataset]) -> xr.Dataset:
    """The grid of all forecasts. Raises where they have several."""
    first = _grid_of(forecasts[0]).load()
    for key, forecast in zip(keys, forecasts, strict=True):
        if not _grid_of(forecast).identical(first):
            raise UnlikeForecastsError(
                "forecasts of a day are on different grids",
                found=f"that of {time_text(keys[0][0])} and another at {time_text(key[0])}",
                expected="the same x, y, lat, lon and crs",
                remedy="none needed: they stay single stores, which read as ever",
            )
    return first


def _times(keys: Sequence[Key], forecasts: Sequence[xr.Dataset], axes: Axes) -> dict[str, Any]:
    """The coordinates init_time and, where forecasts have it, valid_time(init_time, lead_time)."""
    init_time = pd.DatetimeIndex([time for time, _ in keys])
    times: dict[str, Any] = {"init_time": ("init_time", init_time, forecasts[0]["init_time"].attrs)}
    if "valid_time" in forecasts[0].variables:
        valid_time = init_time.to_numpy()[:, None] + axes["lead_time"].to_numpy()
        attrs = forecasts[0]["valid_time"].attrs
        times["valid_time"] = (("init_time", "lead_time"), valid_time, attrs)
    return times


def _labels(dim: str, index: "pd.Index[Any]", forecasts: Sequence[xr.Dataset]) -> xr.Variable:
    """The coordinate of a dimension, with the attributes and encoding it was published with."""
    published = next(one[dim] for one in forecasts if dim in one.indexes)
    kept = ("units", "calendar", "dtype")
    encoding = {key: published.encoding[key] for key in kept if key in published.encoding}
    return xr.Variable(dim, index, published.attrs, encoding)


@dataclass(frozen=True)
class _Stacked:
    """A variable of single forecasts that becomes rows: its dimensions, and how it is stored.

    `sizes` are those of a single forecast, of an ensemble where there is any.
    """

    name: str
    is_coordinate: bool
    sizes: dict[str, int]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]

    @classmethod
    def of(cls, name: str, forecasts: Sequence[xr.Dataset]) -> "_Stacked":
        """From the forecasts that have it. Raises where they have it in different ways."""
        arrays = [one[name] for one in forecasts]
        fullest = max(reversed(arrays), key=lambda one: one.ndim)
        ways = {
            (
                str(one.dtype),
                *(repr(one.attrs.get(attribute)) for attribute in ALIKE),
                *(
                    (dim, None if dim in one.indexes else one.sizes[dim])
                    for dim in one.dims
                    if dim != "member"
                ),
            )
            for one in arrays
        }
        if len(ways) > 1:
            raise UnlikeForecastsError(
                f"forecasts of a day have {name} in different ways",
                found=" and ".join(" ".join(map(str, way)) for way in sorted(ways)),
                expected="the same type, packing, units and dimensions",
                remedy="none needed: they stay single stores, which read as ever",
            )
        return cls(
            name,
            name in forecasts[-1].coords,
            {str(dim): size for dim, size in fullest.sizes.items()},
            tuple(fullest.encoding["chunks"]),
            fullest.dtype,
            dict(fullest.attrs),
        )

    @property
    def dims(self) -> tuple[str, ...]:
        """Its dimensions before it became rows."""
        return tuple(self.sizes)

    @property
    def missing(self) -> Any:
        """What stands for no value; None where the variable has nothing that does."""
        if "_FillValue" in self.attrs:
            return self.attrs["_FillValue"]
        return np.nan if self.dtype.kind == "f" else None

    def template(self, sizes: Mapping[Any, int]) -> tuple[xr.Variable, dict[str, Any]]:
        """The variable with nothing in it, and its encoding."""
        shape = [sizes[dim] for dim in self.dims]
        packing = {key: self.attrs[key] for key in PACKING if key in self.attrs}
        encoding: dict[str, Any] = packing | {"dtype": self.dtype, "chunks": (1, *shape)}
        if self.missing is not None:
            encoding["fill_value"] = self.missing
        shard = tuple(shape)
        if "y" in self.dims:
            chunk = tuple(map(min, self.chunks, shape))
            shard = tuple(
                math.ceil(size / part) * part for size, part in zip(shape, chunk, strict=True)
            )
            if "member" in self.dims:
                at = self.dims.index("member")
                chunk, shard = ((*one[:at], 1, *one[at + 1 :]) for one in (chunk, shard))
            encoding |= {
                "chunks": (1, *chunk),
                "shards": (1, *shard),
                "compressors": (ZstdCodec(level=3), Crc32cCodec()),
            }
        decoded = np.dtype("float64") if packing else self.dtype
        nothing = dask.array.zeros((sizes["init_time"], *shape), dtype=decoded, chunks=(1, *shard))
        attrs = {key: value for key, value in self.attrs.items() if key not in PACKING}
        return xr.Variable(("init_time", *self.dims), nothing, attrs), encoding

    def blocks(
        self, forecast: xr.Dataset, axes: Axes
    ) -> Iterator[tuple[tuple[int | slice, ...], NDArray[Any]]]:
        """A forecast's values on the day's labels, a shard at a time, each with its place."""
        labels = {dim: axes[dim] for dim in self.dims if dim in axes}
        members = labels.pop("member", None)
        if members is None:
            yield (), self._block(forecast.get(self.name), labels)
            return
        before = (slice(None),) * self.dims.index("member")
        for row, member in enumerate(members):
            array = forecast.get(self.name)
            if array is not None and "member" in array.dims:
                there = member in array.indexes["member"]
                array = array.sel(member=member) if there else None
            elif row > 0:
                array = None  # a single forecast is member 0
            yield (*before, row), self._block(array, labels)

    def _block(self, array: xr.DataArray | None, labels: Axes) -> NDArray[Any]:
        """Values of a forecast, or of one member, with what it lacks missing."""
        if array is not None and all(array.indexes[dim].equals(labels[dim]) for dim in labels):
            return np.asarray(array.values)
        if self.missing is None:
            raise UnlikeForecastsError(
                f"{self.name} cannot be missing where other forecasts of the day have it",
                found=f"{self.dtype} without _FillValue, and forecasts that differ in labels",
                expected="a value that says missing",
                remedy="none needed: they stay single stores, which read as ever",
            )
        if array is None:
            sizes = self.sizes | {dim: len(index) for dim, index in labels.items()}
            shape = [sizes[dim] for dim in self.dims if dim != "member"]
            return np.full(shape, self.missing, self.dtype)
        plain = array.reset_coords(drop=True)
        return np.asarray(plain.reindex(labels, fill_value=self.missing).values)
