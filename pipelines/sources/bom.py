"""The Bureau of Meteorology's Rainfields products of one radar (netCDF): prcp-c10 and prcp-cscn.

An accumulation in mm from the file's `start_time` to its `valid_time` (10 or 6 minutes). Every
negative stored value is a code (−1 fill, −2 too), never rain. Coordinates are in km from the radar;
in prcp-cscn they are the west and north edges of pixels, which shows in that the domain lies
evenly around the radar only when they are taken so.
"""

import re

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.content import decompressed, reading
from pipelines.sources.netcdf import check_even, crs_of, in_metres, open_netcdf
from pipelines.units import rain_rate_from_accumulation

NAME = re.compile(r"^\d+_(?P<time>\d{8}_\d{6})\.prcp-(c10|cscn)\.nc(\.gz)?$")
MILLIMETRES = ("mm", "kg m-2")


class Bom(FoundByName):
    """Rainfields accumulations of the Bureau of Meteorology."""

    name = "bom"
    title = "Bureau of Meteorology Rainfields, Australia (prcp-c10, prcp-cscn)"
    format = "netCDF"
    variable = "accumulation over 6 or 10 min"
    timestep: pd.Timedelta | None = None
    licence = "by agreement with the Bureau of Meteorology"
    location: str | None = None
    decoder = f"bom/1 xarray/{xr.__version__}"
    pattern = NAME
    example = "2_20180616_100000.prcp-cscn.nc"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        with (
            reading(content, "a Rainfields netCDF file"),
            open_netcdf(decompressed(content), self.name, mask_and_scale=False) as dataset,
        ):
            precipitation = dataset["precipitation"].squeeze()
            if precipitation.attrs.get("units") not in MILLIMETRES:
                raise FrameError(
                    "not an accumulation",
                    found=f"units {precipitation.attrs.get('units')!r}",
                    expected=" or ".join(MILLIMETRES),
                    remedy="use prcp-c10 or prcp-cscn",
                )
            start, end = (
                pd.Timestamp(dataset[name].values.item()) for name in ("start_time", "valid_time")
            )
            hours = (end - start).total_seconds() / 3600
            if not hours > 0:
                raise FrameError(
                    "accumulation over no time",
                    found=f"{start} to {end}",
                    expected="start_time before valid_time",
                    remedy="fetch the file again; if it repeats, report it to the provider",
                )
            return frame(
                rain_rate_from_accumulation(_accumulation_mm(precipitation), hours),
                _grid(dataset, precipitation),
                end.as_unit("ns"),
                cell_methods=f"time: mean (interval: {hours * 60:g} min, ends at time)",
            )


def _accumulation_mm(precipitation: xr.DataArray) -> NDArray[np.floating]:
    stored = precipitation.transpose("y", "x").values
    attrs = precipitation.attrs
    values = stored * float(attrs.get("scale_factor", 1.0)) + float(attrs.get("add_offset", 0.0))
    missing = (stored < 0) | (stored == attrs.get("_FillValue", -1))
    return np.where(missing, np.nan, values)


def _grid(dataset: xr.Dataset, precipitation: xr.DataArray) -> Grid:
    crs = crs_of(dataset[precipitation.attrs.get("grid_mapping", "proj")])
    x, y = in_metres(dataset["x"]), in_metres(dataset["y"])
    check_even(x, "x")
    check_even(y, "y")
    dx, dy = x[1] - x[0], y[0] - y[1]
    if dx <= 0 or dy <= 0:
        raise ValueError("coordinates do not run from north-west to south-east")
    # Centres lie evenly around the radar at (0, 0); west and north edges do half a pixel on.
    if abs(x[0] + x[-1] + dx) < dx / 100 and abs(y[0] + y[-1] - dy) < dy / 100:
        x, y = x + dx / 2, y - dy / 2
    return Grid(crs.to_wkt(), x, y)
