"""Cloud-optimised GeoTIFFs of a forecast: a file a field, a band a lead time.

A field is a variable, of one member and at one threshold where it has those. Values are float32 in
the variable's units, NaN where missing, on the forecast's grid and in its projection; a band's
description is its valid_time. Tiles, and overviews by the mean, are GDAL's COG driver's
(https://gdal.org/drivers/raster/cog.html).
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipelines.grid import Grid
from pipelines.sources.content import formats_library
from pipelines.times import format_duration, time_text

TILE = 256
CREATION = {
    "driver": "COG",
    "compress": "deflate",
    "predictor": "yes",
    "blocksize": TILE,
    "bigtiff": "if_safer",
    "overview_resampling": "average",
}


def fields(forecast: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Every field (lead_time, y, x) of a forecast with a name for its file, lazily."""
    for name, variable in forecast.data_vars.items():
        others = [dim for dim in variable.dims if dim not in ("lead_time", "y", "x")]
        for labels in product(*(variable[dim].values for dim in others)):
            chosen = dict(zip(map(str, others), labels, strict=True))
            suffix = "".join(f"_{dim}_{label:g}" for dim, label in chosen.items())
            yield f"{name}{suffix}", variable.sel(chosen).transpose("lead_time", "y", "x")


def write_cog(field: xr.DataArray, path: Path, attrs: dict[str, Any]) -> None:
    """Write a field (lead_time, y, x) to a new file; one lead time is in memory at a time.

    `attrs`, the forecast's global attributes, become the file's tags.
    """
    rasterio = formats_library("rasterio", "a GeoTIFF")
    copy = formats_library("rasterio.shutil", "a GeoTIFF").copy
    grid = Grid.of(field)
    (dx, dy), (rows, columns) = grid.pixel, grid.shape
    work = path.with_suffix(".work.tif")
    profile = {
        "driver": "GTiff",
        "count": field.sizes["lead_time"],
        "height": rows,
        "width": columns,
        "dtype": "float32",
        "nodata": np.nan,
        "crs": rasterio.CRS.from_wkt(grid.crs_wkt),
        "transform": rasterio.Affine(dx, 0, grid.x[0] - dx / 2, 0, -dy, grid.y[0] + dy / 2),
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "interleave": "band",
        "bigtiff": "if_safer",
    }
    try:
        with rasterio.open(work, "w", **profile) as file:
            labels = {name: str(attrs[name]) for name in attrs} | {
                name: str(field.attrs[name]) for name in field.attrs if name != "grid_mapping"
            }
            file.update_tags(**labels, init_time=time_text(pd.Timestamp(field["init_time"].item())))
            file.units = [field.attrs["units"]] * file.count
            for band, frame in enumerate(field, start=1):
                file.write(frame.values.astype("f4"), band)
                valid_time = time_text(pd.Timestamp(frame["valid_time"].item()))
                lead_time = format_duration(pd.Timedelta(frame["lead_time"].values))
                file.set_band_description(band, valid_time)
                file.update_tags(band, valid_time=valid_time, lead_time=lead_time)
        copy(work, path, **CREATION)
    finally:
        work.unlink(missing_ok=True)
