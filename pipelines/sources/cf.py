"""Anyone's netCDF file that follows the CF conventions and holds one time.

The field is found by its standard name: a rate or flux, an amount with its interval (the time's
bounds, or ``interval`` in the cell methods), or reflectivity (dBZ, through a named Z–R relation).
Units become mm/h; fill values and negative rain are not observed. The grid is that of the grid
mapping, or longitude and latitude in one dimension each.

Source: CF conventions 1.11, sections 3.3 (standard names), 5.6 (grid mappings), 7.1 (bounds) and
7.3 (cell methods).
"""

import re

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from numpy.typing import NDArray

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.content import decompressed, reading
from pipelines.sources.netcdf import check_even, crs_of, in_metres, no_grid, open_netcdf
from pipelines.units import (
    MARSHALL_PALMER,
    ZRRelation,
    rain_rate_from_accumulation,
    rain_rate_from_reflectivity,
)

NAME = re.compile(
    r"(?P<time>(19|20)\d{2}[01]\d[0-3]\d[T_-]?[0-2]\d[0-5]\d(\d{2})?).*\.(nc4?|cdf)(\.gz)?$"
)
RATES = ("rainfall_rate", "lwe_precipitation_rate", "rainfall_flux", "precipitation_flux")
AMOUNTS = (
    *("rainfall_amount", "precipitation_amount"),
    *("thickness_of_rainfall_amount", "lwe_thickness_of_precipitation_amount"),
)
REFLECTIVITY = "equivalent_reflectivity_factor"
STANDARD_NAMES = (*RATES, *AMOUNTS, REFLECTIVITY)

AMOUNT_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "kg m-2": 1.0}
"""Water in mm for one of each; 1 kg/m² of water is 1 mm."""
HOURS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1 / 3600),
    **dict.fromkeys(("min", "minute", "minutes"), 1 / 60),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 1.0),
    **dict.fromkeys(("d", "day", "days"), 24.0),
}
X_NAMES, Y_NAMES = ("projection_x_coordinate", "longitude"), ("projection_y_coordinate", "latitude")


class Cf(FoundByName):
    """CF netCDF files."""

    name = "cf"
    title = "CF netCDF, one time per file (any provider)"
    format = "netCDF"
    variable = "rate, flux, amount or reflectivity, by standard name"
    timestep: pd.Timedelta | None = None
    licence = "by provider"
    location: str | None = None
    decoder = f"cf/1 xarray/{xr.__version__}"
    zr: ZRRelation = MARSHALL_PALMER
    pattern = NAME
    example = "radar_202406010005.nc (a time and .nc)"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        with (
            reading(content, "a netCDF file"),
            open_netcdf(decompressed(content), self.name, decode_timedelta=False) as dataset,
        ):
            time = _time(dataset)
            field = _oriented(_field(dataset), dataset)
            rain_rate, provenance = self._rain_rate(field, dataset, time)
            grid = _grid(field, dataset)
            valid_time = pd.Timestamp(time.values.item()).as_unit("ns")
            return frame(rain_rate, grid, valid_time, overwrite=False, **provenance)

    def _rain_rate(
        self, field: xr.DataArray, dataset: xr.Dataset, time: xr.DataArray
    ) -> tuple[NDArray[np.floating], dict[str, str]]:
        """Rain rate in mm/h, NaN where not observed, and where it comes from."""
        name, units = field.attrs["standard_name"], str(field.attrs.get("units", "none"))
        provenance = {"cf_standard_name": str(name)}
        if name == REFLECTIVITY:
            if units.lower() != "dbz":
                raise _unknown_units(units, "dBZ")
            provenance["z_r_relation"] = str(self.zr)
            return rain_rate_from_reflectivity(field.values, self.zr), provenance
        if name in RATES:
            if "cell_methods" in field.attrs:
                provenance["cell_methods"] = str(field.attrs["cell_methods"])
            return field.values * _mm_per_hour(units), provenance
        if _plain(units) not in AMOUNT_MM:
            raise _unknown_units(units, ", ".join(AMOUNT_MM))
        hours, where = _interval(field, dataset, time)
        provenance["cell_methods"] = f"time: mean (interval: {hours * 60:g} min{where})"
        accumulation_mm = field.values * AMOUNT_MM[_plain(units)]
        return rain_rate_from_accumulation(accumulation_mm, hours), provenance


def _field(dataset: xr.Dataset) -> xr.DataArray:
    """The variable with the first of our standard names."""
    for name in STANDARD_NAMES:
        found = [
            variable
            for variable in dataset.data_vars.values()
            if variable.attrs.get("standard_name") == name and variable.ndim >= 2
        ]
        if len(found) > 1:
            raise FrameError(
                f"more than one {name}",
                found=", ".join(str(variable.name) for variable in found),
                expected="one",
                remedy="keep one of them, for example with `ncks -v NAME in.nc out.nc`",
            )
        if found:
            return found[0]
    raise FrameError(
        "no precipitation field",
        found=", ".join(
            f"{name} ({variable.attrs.get('standard_name', 'no standard_name')})"
            for name, variable in dataset.data_vars.items()
        )
        or "no variables",
        expected="a variable whose standard_name is one of " + ", ".join(STANDARD_NAMES),
        remedy="set the standard_name, for example with `ncatted`",
    )


def _time(dataset: xr.Dataset) -> xr.DataArray:
    """The one time of the file."""
    times = [
        variable
        for name, variable in dataset.variables.items()
        if variable.attrs.get("standard_name") == "time" or name == "time"
    ]
    if len(times) != 1 or times[0].size != 1:
        raise FrameError(
            "not one time",
            found=f"{times[0].size} times" if len(times) == 1 else f"{len(times)} time variables",
            expected="a time of length 1 in each file",
            remedy="split the file, for example with `cdo splitsel,1 in.nc out_`, and name each "
            "part by its time; or add the coordinate `time`",
        )
    if not np.issubdtype(times[0].dtype, np.datetime64):
        raise ValueError("the time's units or calendar are not understood")
    return xr.DataArray(times[0].squeeze())


def _oriented(field: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """The field as (y, x), north to south and west to east."""
    field = field.squeeze(drop=True)
    x, y = (_dimension(field, names, axis) for names, axis in ((X_NAMES, "X"), (Y_NAMES, "Y")))
    if set(field.dims) != {x, y}:
        raise FrameError(
            "more than a field",
            found=f"dimensions {dict(field.sizes)}",
            expected=f"{y}, {x} and others of length 1",
            remedy="take one level or member out, for example with `ncks -d DIM,0 in.nc out.nc`",
        )
    field = field.transpose(y, x).rename({y: "y", x: "x"})
    return field.sortby("y", ascending=False).sortby("x")


def _dimension(field: xr.DataArray, names: tuple[str, ...], axis: str) -> str:
    """The dimension whose coordinate has one of these standard names, else this axis."""
    coordinates = {str(dim): field[dim].attrs for dim in field.dims if dim in field.coords}
    for key, values in (("standard_name", names), ("axis", (axis,))):
        for dim, attrs in coordinates.items():
            if attrs.get(key) in values:
                return dim
    raise no_grid(
        f"dimensions {', '.join(map(str, field.dims))}",
        f"a coordinate with standard_name {' or '.join(names)}, or axis {axis}",
    )


def _grid(field: xr.DataArray, dataset: xr.Dataset) -> Grid:
    mapping = str(field.attrs.get("grid_mapping", field.encoding.get("grid_mapping", "")))
    x, y = field["x"], field["y"]
    degrees = str(x.attrs.get("units", "")).lower().startswith("degree")
    if mapping:
        crs = crs_of(dataset[mapping.split(":")[0].strip()])
    elif degrees:
        crs = pyproj.CRS.from_epsg(4326)
    else:
        raise no_grid("projected coordinates without a grid_mapping", "both")
    if crs.is_geographic is not degrees or (degrees and crs.is_derived):  # a rotated pole
        raise no_grid(
            f"coordinates in {x.attrs.get('units')!r} on {crs.type_name}",
            "metres on a projection, or degrees of longitude and latitude",
        )
    if degrees:
        xs, ys = (coordinate.values.astype(np.float64) for coordinate in (x, y))
        xs = xs - 360 * (xs.min() >= 180)
    else:
        if any(axis.unit_conversion_factor != 1 for axis in crs.axis_info):
            raise no_grid(f"a projection in {crs.axis_info[0].unit_name}", "one in metres")
        xs, ys = in_metres(x), in_metres(y)
    check_even(xs, "x")
    check_even(ys, "y")
    return Grid(crs.to_wkt(), xs, ys)


def _interval(field: xr.DataArray, dataset: xr.Dataset, time: xr.DataArray) -> tuple[float, str]:
    """Hours in which an amount fell, and in words where they lie, as far as the file says."""
    bounds = time.attrs.get("bounds")
    if bounds in dataset.variables:
        start, end = np.asarray(dataset[bounds].values).reshape(2)
        hours = float((end - start) / np.timedelta64(3600, "s"))
        where = {end: ", ends at time", start: ", starts at time"}.get(time.values[()], "")
    else:
        method = re.search(r"interval:\s*([\d.]+)\s*(\w+)", str(field.attrs.get("cell_methods")))
        hours = float(method[1]) * HOURS[method[2]] if method else 0.0
        where = ""
    if not hours > 0:
        raise FrameError(
            "an amount without the time in which it fell",
            found=f"bounds {bounds!r}, cell_methods {field.attrs.get('cell_methods')!r}",
            expected="time bounds, or cell_methods such as 'time: sum (interval: 5 min)'",
            remedy="add one of them, for example with `ncatted`",
        )
    return hours, where


def _plain(units: str) -> str:
    """``kg/m^2/s`` and ``kg m**-2 s**-1`` as ``kg m-2 s-1``."""
    units = re.sub(r"\*\*|\^", "", units.strip())
    units = re.sub(r"/ *([a-zA-Z]+)(\d?)", lambda m: f" {m[1]}-{m[2] or 1}", units)
    return re.sub(r"[ .*]+", " ", units)


def _mm_per_hour(units: str) -> float:
    """What one of these units of a rate or flux is in mm/h."""
    amount, _, per = _plain(units).rpartition(" ")
    time = per.removesuffix("-1")
    if amount not in AMOUNT_MM or time not in HOURS or time == per:
        raise _unknown_units(units, "mm h-1, m s-1, kg m-2 s-1 and the like")
    return AMOUNT_MM[amount] / HOURS[time]


def _unknown_units(units: str, expected: str) -> FrameError:
    return FrameError(
        "units that are not understood",
        found=repr(units),
        expected=expected,
        remedy="convert the field, or correct its units, for example with `ncatted`",
    )
