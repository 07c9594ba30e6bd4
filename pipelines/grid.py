"""The grid of a radar field: a projection, and the centres of its columns and rows.

Rows run north to south, as radar files are written. Coordinates are metres of the projection; on a
latitude-longitude grid they are degrees east and north.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyproj  # before h5py or any GRIB reader: their wheels break pyproj's data path
import xarray as xr
from numpy.typing import NDArray

from pipelines.errors import FrameError

CRS_VARIABLE = "crs"
MOST_PIXELS = 2**26
"""No grid has more: MRMS, the largest that is read here, has 24.5 million."""
KM_A_DEGREE = 111.2
SAME_WITHIN_M = 1.0
SAME_WITHIN_DEGREES = 1e-6
"""Two grids whose coordinates differ by no more than this are the same grid."""


@dataclass(frozen=True)
class Grid:
    """A full projected raster.

    Parameters
    ----------
    crs_wkt : the projection, OGC WKT 2
    x, y : (x,) and (y,) float64, metres or degrees, centres of columns (west to east) and rows
        (north to south)
    """

    crs_wkt: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]

    @classmethod
    def from_corner(
        cls,
        crs: str | pyproj.CRS,
        west: float,
        north: float,
        pixel: tuple[float, float],
        shape: tuple[int, int],
    ) -> "Grid":
        """The grid of `shape` (y, x) whose outer upper-left corner is (west, north).

        `pixel` is its width and height, all in metres or, for a geographic `crs`, degrees. Raises
        `FrameError` where there are more than `MOST_PIXELS`, or more rows or columns than that.
        """
        rows, columns = shape
        if max(rows, 1) * max(columns, 1) > MOST_PIXELS:
            raise FrameError(
                "a grid larger than any radar frame's",
                found=f"{rows}×{columns} pixels",
                expected=f"at most {MOST_PIXELS} pixels",
                remedy="fetch the file again; if it repeats, report it to its provider",
            )
        dx, dy = pixel
        x = west + dx * (np.arange(columns, dtype=np.float64) + 0.5)
        y = north - dy * (np.arange(rows, dtype=np.float64) + 0.5)
        return cls(pyproj.CRS(crs).to_wkt(), x, y)

    @cached_property
    def crs(self) -> pyproj.CRS:
        """The projection as pyproj knows it."""
        return _crs(self.crs_wkt)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.y), len(self.x)

    @property
    def is_geographic(self) -> bool:
        """Whether x and y are longitude and latitude."""
        return bool(self.crs.is_geographic)

    @property
    def pixel(self) -> tuple[float, float]:
        """Width and height of a pixel in metres, or degrees where the grid is geographic."""
        return float(self.x[1] - self.x[0]), float(self.y[0] - self.y[1])

    @property
    def pixel_km(self) -> tuple[float, float]:
        """Width and height of a pixel in kilometres, at the middle row of a geographic grid."""
        dx, dy = self.pixel
        if not self.is_geographic:
            return dx / 1000, dy / 1000
        middle = float(np.cos(np.deg2rad(self.y.mean())))
        return dx * KM_A_DEGREE * middle, dy * KM_A_DEGREE

    def lonlat(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitude and latitude in degrees (WGS 84 convention, east and north positive)."""
        to_lonlat = pyproj.Transformer.from_crs(self.crs, self.crs.geodetic_crs, always_xy=True)
        lon, lat = to_lonlat.transform(x, y)
        return np.asarray(lon), np.asarray(lat)

    def corners_lonlat(self) -> dict[str, tuple[float, float]]:
        """Longitude and latitude of the raster's outer corners: UL, UR, LR, LL."""
        dx, dy = self.pixel
        west, east = self.x[0] - dx / 2, self.x[-1] + dx / 2
        north, south = self.y[0] + dy / 2, self.y[-1] - dy / 2
        x, y = np.array([west, east, east, west]), np.array([north, north, south, south])
        lon, lat = self.lonlat(x, y)
        return {
            name: (float(lo), float(la))
            for name, lo, la in zip(("UL", "UR", "LR", "LL"), lon, lat, strict=True)
        }

    def coords(self, *, lonlat: bool = True) -> dict[str, Any]:
        """CF coordinates: x, y, the CRS variable and, where wanted, 2-D lat and lon.

        On a geographic grid x and y are longitude and latitude already: no 2-D ones then.
        """
        x_attrs, y_attrs, *_ = _axes(self.crs_wkt)
        if x_attrs.get("axis") == "Y":  # projections that list northing first
            x_attrs, y_attrs = y_attrs, x_attrs
        coords: dict[str, Any] = {
            "y": ("y", self.y, y_attrs),
            "x": ("x", self.x, x_attrs),
            CRS_VARIABLE: ((), np.int32(0), _cf(self.crs_wkt) | {"spatial_ref": self.crs_wkt}),
        }
        if lonlat and not self.is_geographic:
            lon, lat = self.lonlat(*np.meshgrid(self.x, self.y))
            coords["lat"] = (
                ("y", "x"),
                lat,
                {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
            )
            coords["lon"] = (
                ("y", "x"),
                lon,
                {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
            )
        return coords

    @classmethod
    def of(cls, dataset: xr.Dataset | xr.DataArray) -> "Grid":
        """The grid that `coords` wrote."""
        crs_wkt = str(dataset.coords[CRS_VARIABLE].attrs["crs_wkt"])
        return cls(crs_wkt, np.asarray(dataset["x"].values), np.asarray(dataset["y"].values))

    def matches(self, other: "Grid") -> bool:
        """Whether pixels and projection are the same, within a metre or 1e-6 degrees."""
        near = SAME_WITHIN_DEGREES if self.is_geographic else SAME_WITHIN_M
        return (
            self.shape == other.shape
            and np.allclose(self.x, other.x, rtol=0, atol=near)
            and np.allclose(self.y, other.y, rtol=0, atol=near)
            and (self.crs_wkt == other.crs_wkt or self.crs.equals(other.crs))
        )

    def __str__(self) -> str:
        dx, dy = self.pixel
        west, north = self.x[0] - dx / 2, self.y[0] + dy / 2
        rows, columns = self.shape
        if self.is_geographic:
            return (
                f"{rows}×{columns} pixels of {dy:g}×{dx:g}° "
                f"(lat/lon, upper left {west:g}°E, {north:g}°N)"
            )
        crs = self.crs.source_crs or self.crs  # a datum shift bound to it is no projection
        method = (crs.coordinate_operation or crs).name
        if method == "unknown":
            method = _cf(self.crs_wkt).get("grid_mapping_name", "unknown projection")
        upper_left = f"upper left {west:.0f}, {north:.0f} m"
        return f"{rows}×{columns} pixels of {dy:.0f}×{dx:.0f} m ({method}, {upper_left})"


# Every frame of a source has one of few projections, and PROJ takes its time.


@lru_cache(maxsize=8)
def _crs(crs_wkt: str) -> pyproj.CRS:
    return pyproj.CRS(crs_wkt)


@lru_cache(maxsize=8)
def _axes(crs_wkt: str) -> list[dict[str, Any]]:
    return list(_crs(crs_wkt).cs_to_cf())


@lru_cache(maxsize=8)
def _cf(crs_wkt: str) -> dict[str, Any]:
    """CF grid mapping attributes; `crs_wkt` among them holds what CF cannot say.

    PROJ leaves out the pole of a polar stereographic projection that has a standard parallel; CF
    requires it (appendix F).
    """
    with warnings.catch_warnings():
        # CF has no name for one angle of the Swiss projection.
        warnings.filterwarnings("ignore", message="angle from rectified to skew grid")
        attrs = dict(_crs(crs_wkt).to_cf())
    if attrs.get("grid_mapping_name") == "polar_stereographic":
        pole = math.copysign(90.0, attrs.get("standard_parallel", 90.0))
        attrs.setdefault("latitude_of_projection_origin", pole)
    return {"long_name": "coordinate reference system"} | attrs


def snap(coordinate_m: float, pixel_m: float) -> float:
    """A corner on its grid's half-pixel lattice, where it is off by under 1/400 of a pixel.

    Corners given as rounded longitude and latitude (OPERA NIMBUS: 1–2.5 m at 2 km) come back to
    the metre; a corner that is really elsewhere stays.
    """
    nearest = round(coordinate_m / (pixel_m / 2)) * (pixel_m / 2)
    return nearest if abs(coordinate_m - nearest) <= pixel_m / 400 else coordinate_m


def check_shape(found: tuple[int, ...], grid: Grid) -> None:
    """Raise `FrameError` where a field does not have the shape that its file's grid says."""
    if tuple(found) != grid.shape:
        raise FrameError(
            "field and grid differ in shape",
            found=f"{tuple(found)} pixels",
            expected=f"{grid.shape} (y, x) from the file's own metadata",
            remedy="fetch the file again; if it repeats, report it to the provider",
        )
