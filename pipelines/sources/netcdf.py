"""Opening a netCDF file from bytes, and its grid by the CF conventions."""

import io
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from numpy.typing import NDArray

from pipelines.errors import FrameError
from pipelines.sources.content import formats_library
from pipelines.sources.hdf5 import check_inflating, open_hdf5


def open_netcdf(content: bytes, source: str, **options: Any) -> xr.Dataset:
    """The dataset: netCDF-4 through h5netcdf (extra `formats`), netCDF-3 through scipy."""
    if content.startswith(b"CDF"):
        return xr.open_dataset(io.BytesIO(content), engine="scipy", **options)
    if not content.startswith(b"\x89HDF"):
        raise ValueError(f"starts with {content[:4]!r}, neither netCDF-3 nor netCDF-4")
    formats_library("h5netcdf", f"the source {source}")
    with open_hdf5(content) as file:  # which looks whether it is one to be read
        check_inflating(file)
    return xr.open_dataset(io.BytesIO(content), engine="h5netcdf", **options)


def crs_of(grid_mapping: xr.DataArray) -> pyproj.CRS:
    """The projection that a CF grid mapping variable says."""
    attrs = {
        str(name): value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in grid_mapping.attrs.items()
    }
    return pyproj.CRS.from_cf(attrs)


def in_metres(coordinate: xr.DataArray) -> NDArray[np.float64]:
    """Coordinates of a projection in metres; without units they are metres."""
    units = str(coordinate.attrs.get("units", "m"))
    factors = {"m": 1.0, "metre": 1.0, "metres": 1.0, "meter": 1.0, "meters": 1.0}
    factors |= {"km": 1000.0, "kilometre": 1000.0, "kilometer": 1000.0}
    if units not in factors:
        raise no_grid(f"coordinate {coordinate.name} in {units!r}", "m or km")
    return coordinate.values.astype(np.float64) * factors[units]


def check_even(coordinate: NDArray[np.float64], name: str) -> None:
    """Raise where pixels are not all of one size (to a hundredth of a pixel)."""
    spacing = np.diff(coordinate)
    if coordinate.size < 2 or not np.allclose(spacing, spacing.mean(), rtol=0.01, atol=0):
        raise no_grid(f"coordinate {name} of {coordinate.size} values", "evenly spaced ones")


def no_grid(found: str, expected: str) -> FrameError:
    """The error of a file whose georeferencing cannot be used."""
    return FrameError(
        "no usable grid",
        found=found,
        expected=expected,
        remedy="mend the file's coordinates or grid_mapping (CF conventions, 4 and 5.6), for "
        "example with `ncatted`",
    )
