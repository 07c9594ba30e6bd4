"""A published forecast in a form that others read: CF netCDF, Cloud-optimised GeoTIFF, MLWP.

All show their target only when it is complete, and take none at which there is something.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import dask
import pandas as pd
import xarray as xr

from pipelines import storage
from pipelines.cog import fields, write_cog
from pipelines.errors import NotFoundError, SquallError, UnknownNameError
from pipelines.forecasts import forecast_name, latest_init_time, open_forecast
from pipelines.mlwp import SPACE, mlwp_dataset
from pipelines.once import publish_once
from pipelines.products import encodings
from pipelines.progress import bar
from pipelines.sources.content import formats_library
from pipelines.targets import new_target, refuse_existing
from pipelines.times import init_time_label, now, time_text

Format = Literal["netcdf", "cog", "mlwp"]
ONLY_ZARR = {"chunks", "shards", "fill_value"}
"""What of an encoding netCDF does not know."""


@dataclass(frozen=True)
class Exported:
    """Which forecast was exported, and where each of its files is."""

    forecast: str
    urls: tuple[str, ...]

    def __str__(self) -> str:
        where = storage.display(self.urls[0])
        if len(self.urls) > 1:
            where = f"{where.rpartition('/')[0]} ({len(self.urls)} files)"
        return f"forecast: {self.forecast}\nexport: {where}"


def export_forecast(
    root: str,
    product: str,
    target: str,
    format: Format,
    *,
    init_time: pd.Timestamp | None = None,
    revision: int | None = None,
    variables: Sequence[str] = (),
    progress: bool = False,
) -> Exported:
    """Write a forecast to `target`: a new file, folder or URL.

    Parameters
    ----------
    format : ``netcdf``: one file, everything in it, as CF has it. ``cog``: a folder with a GeoTIFF
        for every field, or a file ``….tif`` where there is but one. ``mlwp``: after
        `pipelines.mlwp`; netCDF where the target ends in ``.nc``, else Zarr
    init_time, revision : the newest by default
    variables : only those; all by default

    Raises `NotFoundError` where there is no such forecast, `ExistsError` where something is at the
    target, and `SquallError` where the extra `formats` is wanted and not installed.
    """
    refuse_existing(target)
    init_time = init_time or latest_init_time(root, product)
    if init_time is None:
        raise NotFoundError(
            "nothing to export",
            found=f"no forecast of {product} under {storage.display(root)}",
            expected="at least one published forecast",
            remedy="run `squall nowcast`, or check root and product (`squall doctor`)",
        )
    forecast = _of_variables(open_forecast(root, product, init_time, revision), variables)
    name = forecast_name(init_time, int(forecast.attrs.get("revision", 1)))
    line = f"{time_text(now())} exported by squall {version('squall')} from {name}"
    history = "\n".join(filter(None, [forecast.attrs.get("history"), line]))
    forecast = forecast.assign_attrs(history=history)
    with dask.config.set(scheduler="threads"):
        return Exported(name, WRITERS[format](forecast, storage.normalise(target), progress))


def _of_variables(forecast: xr.Dataset, variables: Sequence[str]) -> xr.Dataset:
    for name in variables:
        if name not in forecast.data_vars:
            raise UnknownNameError.of("variable", name, map(str, forecast.data_vars))
    return forecast[list(variables)] if variables else forecast


def write_netcdf(dataset: xr.Dataset, target: str, encoding: Mapping[str, Any]) -> None:
    """A CF netCDF-4 file of a dataset; `encoding` as for Zarr, deflated where it has chunks."""
    formats_library("h5netcdf", "a netCDF file")
    of_netcdf = {}
    for name, how in encoding.items():
        of_netcdf[name] = {key: value for key, value in how.items() if key not in ONLY_ZARR}
        if "chunks" in how:
            of_netcdf[name] |= {"zlib": True, "shuffle": True, "chunksizes": how["chunks"]}
    with new_target(target) as staged:
        dataset.drop_encoding().to_netcdf(staged, engine="h5netcdf", encoding=of_netcdf)


def _netcdf(forecast: xr.Dataset, target: str, progress: bool) -> tuple[str, ...]:
    write_netcdf(forecast, target, encodings(forecast))
    return (target,)


def _mlwp(forecast: xr.Dataset, target: str, progress: bool) -> tuple[str, ...]:
    dataset, encoding = mlwp_dataset(forecast)
    if target.endswith(".nc"):
        write_netcdf(dataset, target, encoding)
    else:
        whole = {dim: -1 for dim in SPACE if dim in dataset.dims}  # a shard is written at once
        publish_once(dataset.chunk(whole), target, encoding, stamp=dict)
    return (target,)


def _cog(forecast: xr.Dataset, target: str, progress: bool) -> tuple[str, ...]:
    formats_library("rasterio", "a GeoTIFF")
    all_fields = list(fields(forecast))
    if target.endswith((".tif", ".tiff")):
        if len(all_fields) > 1:
            raise SquallError(
                "a GeoTIFF holds one field",
                found=", ".join(name for name, _ in all_fields),
                expected="a folder as target, or a forecast with one field",
                remedy="name a folder, or one variable with --variable",
            )
        with new_target(target) as staged:
            write_cog(all_fields[0][1], staged, forecast.attrs)
        return (target,)
    if storage.local_path(target) is None:
        raise SquallError(
            "a folder of GeoTIFFs cannot appear at once in an object store",
            found=target,
            expected="a local folder, or one file ….tif",
            remedy="name a local folder and copy it, or one variable with --variable",
        )
    label = init_time_label(pd.Timestamp(forecast["init_time"].values.item()))
    names = [f"{label}_{name}.tif" for name, _ in all_fields]
    with new_target(target) as staged, bar(len(names), "cog", "file", shown=progress) as shown:
        staged.mkdir()
        for name, (_, field) in zip(names, all_fields, strict=True):
            write_cog(field, staged / name, forecast.attrs)
            shown.update()
    return tuple(f"{target}/{name}" for name in names)


WRITERS: dict[Format, Callable[[xr.Dataset, str, bool], tuple[str, ...]]] = {
    "netcdf": _netcdf,
    "cog": _cog,
    "mlwp": _mlwp,
}
