"""A frame on another grid: cropped, coarsened or reprojected, with what was not observed kept so.

A target pixel takes the mean over the observed part of its area, and is observed where that part is
at least a stated fraction (`observed_fraction`, by default half). Every way is linear in rain rate
and in observation, so order and chunking of frames have no say, and no value leaves the range of
the source's.

What is conserved is rain volume: Σ rain rate × observed part × area of the pixel.

- Crop: every pixel as it is.
- Coarsen: to rounding, on the area of the source's own plane; on a latitude-longitude grid on the
  area of the sphere. Where the rows do not divide by the factor the last coarse one reaches out.
- Reproject: over what lies inside the target, to rounding in the target's own plane. Against true
  area there is what the scale of a projection varies within one pixel (see `pipelines.overlap`).

Taking a pixel that is partly observed for observed or missing as a whole then adds or removes rain
at the edge of what is observed, and only there.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyproj
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.errors import SquallError
from pipelines.grid import CRS_VARIABLE, MOST_PIXELS, Grid, check_shape
from pipelines.overlap import edges, overlap
from pipelines.section import Section

Bounds = tuple[float, float, float, float]
HALF = 0.5
ROUNDING = 1e-6
"""A fraction that is short by rounding only is reached."""
ALIGNED = 1e-3
"""Grids whose pixels lie on each other within this part of a pixel need no reprojection."""


class RegridSettings(Section):
    """Which grid frames are brought to. Nothing filled in: they stay on the source's own.

    Either `crop`/`crop_lonlat` and `coarsen` (the crop first), or `pixel` with `crs` and `bounds`.
    """

    crop: Bounds | None = Field(
        None,
        description="Keep the pixels whose centres lie within west, south, east, north, in the "
        "source grid's own coordinates (metres, or degrees on a latitude-longitude grid).",
    )
    crop_lonlat: Bounds | None = Field(
        None,
        description="Keep the rectangle of pixels around the box west, south, east, north in "
        "degrees of longitude and latitude.",
    )
    coarsen: int | None = Field(
        None, ge=2, le=1000, description="Mean over blocks of this many pixels in each direction."
    )
    crs: str | None = Field(
        None,
        description="Target projection: EPSG:3035, a PROJ string or WKT; with `pixel`. "
        "The source's own by default.",
    )
    pixel: float | None = Field(
        None, gt=0, description="Target pixel size: metres, or degrees of a geographic `crs`."
    )
    bounds: Bounds | None = Field(
        None,
        description="West, south, east, north of the target in its own coordinates; east and south "
        "move outward to whole pixels. The source's outline by default.",
    )
    observed_fraction: float = Field(
        HALF,
        gt=0,
        le=1,
        description="A target pixel is observed where at least this part of its area is.",
    )

    @model_validator(mode="after")
    def _is_one_way(self) -> Self:
        for name in ("crop", "crop_lonlat", "bounds"):
            _check_bounds(name, getattr(self, name))
        given = [name for name in ("crop", "crop_lonlat", "coarsen") if getattr(self, name)]
        if self.crop and self.crop_lonlat:
            raise SquallError(
                "two crops", found="crop and crop_lonlat", expected="one", remedy="leave one out"
            )
        if self.pixel is None and (self.crs or self.bounds):
            raise SquallError(
                "a target grid without its pixel size",
                found=" and ".join(name for name in ("crs", "bounds") if getattr(self, name)),
                expected="pixel with crs or bounds",
                remedy="give pixel; to cut out a part of the source's own grid use crop",
            )
        if self.pixel is not None and given:
            raise SquallError(
                "two ways to a target grid",
                found=" and ".join([*given, "pixel"]),
                expected="crop and coarsen, or pixel with crs and bounds",
                remedy="give the part that is wanted as bounds and the size as pixel",
            )
        if self.crs is not None:
            _crs(self.crs)
        return self


def target_grid(settings: RegridSettings, source_grid: Grid) -> Grid:
    """The grid that `settings` ask for, from frames on `source_grid`; unset, that one.

    Raises `SquallError` where nothing is left of the source, or the target is no sensible size.
    """
    if settings.pixel is not None:
        return _reprojected(settings, settings.pixel, source_grid)
    grid = source_grid
    if settings.crop:
        west, south, east, north = settings.crop
        inside_x = np.asarray((grid.x >= west) & (grid.x <= east))
        inside_y = np.asarray((grid.y >= south) & (grid.y <= north))
        grid = _cropped(grid, inside_x, inside_y, "crop", settings.crop)
    elif settings.crop_lonlat:
        inside = _in_lonlat_box(grid, settings.crop_lonlat)
        inside_x, inside_y = np.asarray(inside.any(axis=0)), np.asarray(inside.any(axis=1))
        grid = _cropped(grid, inside_x, inside_y, "crop_lonlat", settings.crop_lonlat)
    if settings.coarsen:
        k = settings.coarsen
        dx, dy = grid.pixel
        rows, columns = (-(-size // k) for size in grid.shape)
        west, north = edges(grid.x)[0], edges(grid.y)[0]
        grid = _sensible(grid.crs, west, north, (dx * k, dy * k), (rows, columns))
    return grid


def regrid(frame: xr.DataArray, target: Grid, observed_fraction: float = HALF) -> xr.DataArray:
    """A frame (see `pipelines.sources.base.frame`) on `target`; attributes and time are kept.

    Pixels on each other, or a whole number of source pixels to a target pixel, are cropped and
    averaged; anything else goes by exact overlap. A target finer than the source repeats the
    source's values, averaged where a source border crosses a pixel: no detail is made up.
    """
    source = Grid.of(frame)
    if source.matches(target):
        return frame
    rain_rate = _regrid_values(frame.values, source, target, observed_fraction)
    kept = {name: coord for name, coord in frame.coords.items() if not {"y", "x"} & {*coord.dims}}
    coords = kept | target.coords(lonlat=False)
    coords["observed"] = (frame.dims, np.isfinite(rain_rate))
    return xr.DataArray(
        rain_rate, dims=frame.dims, coords=coords, name=frame.name, attrs=frame.attrs
    )


def regrid_dataset(
    dataset: xr.Dataset, target: Grid, observed_fraction: float = HALF
) -> xr.Dataset:
    """Frames (time, y, x) on `target`, lazily where `dataset` is: `regrid` of every frame.

    A task holds the whole fields of one chunk of times, so open an archive with few times a chunk.
    Variables without y and x stay; one that is not a float over them cannot be averaged
    (`SquallError`). ``lat`` and ``lon`` are the target's.
    """
    source = Grid.of(dataset)
    if source.matches(target):
        return dataset
    fields = [name for name, array in dataset.data_vars.items() if {"y", "x"} & {*array.dims}]
    others = [name for name in fields if dataset[name].dtype.kind != "f"]
    if others:
        raise SquallError(
            "a variable that has no area mean",
            found=", ".join(f"{name} ({dataset[name].dtype})" for name in others),
            expected="floats over (…, y, x), NaN where not observed",
            remedy="drop it before regridding",
        )
    spatial = [name for name, array in dataset.coords.items() if {"y", "x"} & {*array.dims}]
    coords = target.coords(lonlat="lat" in dataset.coords and "lat" not in dataset.dims)
    result = dataset.drop_vars([*fields, *spatial, CRS_VARIABLE]).assign_coords(coords)
    rows, columns = target.shape
    for name in fields:
        regridded = xr.apply_ufunc(
            _regrid_values,
            dataset[name].chunk(y=-1, x=-1) if dataset[name].chunks else dataset[name],
            kwargs={"source": source, "target": target, "observed_fraction": observed_fraction},
            input_core_dims=[["y", "x"]],
            output_core_dims=[["y", "x"]],
            exclude_dims={"y", "x"},
            dask="parallelized",
            dask_gufunc_kwargs={"output_sizes": {"y": rows, "x": columns}},
            output_dtypes=[np.float32],
        )
        result[name] = regridded.drop_vars(spatial, errors="ignore").assign_attrs(
            dataset[name].attrs
        )
    if "observed" in spatial and "rain_rate" in result:
        result = result.assign_coords(observed=result["rain_rate"].notnull())
    return result


def _regrid_values(
    rain_rate: NDArray[np.floating], source: Grid, target: Grid, observed_fraction: float
) -> NDArray[np.float32]:
    """(…, y, x) of the source to (…, y, x) of the target, float32, NaN where not observed."""
    check_shape(rain_rate.shape[-2:], source)
    window = _window(source, target)
    regridded = np.empty((*rain_rate.shape[:-2], *target.shape), np.float32)
    for index in np.ndindex(rain_rate.shape[:-2]):
        frame = rain_rate[index].astype(np.float64)
        observed = np.isfinite(frame)
        frame[~observed] = 0
        if window is not None:
            rain, part = (window.mean(field, source) for field in (frame, observed))
        else:
            both = np.stack([frame.ravel(), observed.ravel()], axis=1)
            rain, part = (overlap(source, target) @ both).T.reshape(2, *target.shape)
        enough = part >= observed_fraction - ROUNDING
        regridded[index] = np.divide(rain, part, out=np.full_like(rain, np.nan), where=enough)
    return regridded


@dataclass(frozen=True)
class _Window:
    """Blocks of ky×kx source pixels from `row`, `column` on, which may reach beyond the source."""

    row: int
    column: int
    ky: int
    kx: int
    shape: tuple[int, int]

    def mean(self, field: NDArray[Any], source: Grid) -> NDArray[np.float64]:
        """(y, x) mean of the source's pixels over each block's area; 0 beyond the source."""
        (rows, columns), (height, width) = self.shape, source.shape
        blocks = np.zeros((rows * self.ky, columns * self.kx))
        top, left = max(self.row, 0), max(self.column, 0)
        bottom = max(min(self.row + rows * self.ky, height), top)
        right = max(min(self.column + columns * self.kx, width), left)
        blocks[top - self.row : bottom - self.row, left - self.column : right - self.column] = (
            field[top:bottom, left:right]
        )
        area = np.ones(rows * self.ky)
        if source.is_geographic:
            latitude = source.y[0] - source.pixel[1] * (self.row + np.arange(rows * self.ky))
            area = np.cos(np.radians(latitude)).clip(0)
        by_block = (blocks * area[:, None]).reshape(rows, self.ky, columns, self.kx).sum((1, 3))
        total = area.reshape(rows, self.ky).sum(1) * self.kx
        return by_block / total[:, None]


def _window(source: Grid, target: Grid) -> _Window | None:
    """How target pixels are blocks of source pixels, None where they are not."""
    if source.crs_wkt != target.crs_wkt and not source.crs.equals(target.crs):
        return None
    sizes, firsts = [], []
    for of, to in ((source.y, target.y), (source.x, target.x)):
        borders = (edges(to) - edges(of)[0]) / (edges(of)[1] - edges(of)[0])
        size = round(borders[1] - borders[0])
        first = round(borders[0])
        if size < 1 or not np.allclose(
            borders, first + size * np.arange(len(borders)), rtol=0, atol=ALIGNED
        ):
            return None
        sizes.append(size)
        firsts.append(first)
    window = _Window(firsts[0], firsts[1], sizes[0], sizes[1], target.shape)
    beyond = window.column + target.shape[1] * window.kx - source.shape[1]
    if source.is_geographic and (window.column < 0 or beyond >= window.kx):
        return None  # it may go on at the other end: longitudes count modulo 360°
    return window


def _cropped(
    grid: Grid, columns: NDArray[np.bool_], rows: NDArray[np.bool_], name: str, box: Bounds
) -> Grid:
    if columns.sum() < 2 or rows.sum() < 2:
        raise SquallError(
            f"{name} leaves less than 2×2 pixels",
            found=", ".join(f"{value:g}" for value in box),
            expected=f"a part of {grid}, {_lonlat_text(grid)}",
            remedy="give west, south, east, north that overlap it",
        )
    (x,), (y,) = np.nonzero(columns), np.nonzero(rows)
    return Grid(grid.crs_wkt, grid.x[x[0] : x[-1] + 1], grid.y[y[0] : y[-1] + 1])


def _in_lonlat_box(grid: Grid, box: Bounds) -> NDArray[np.bool_]:
    """(y, x) which centres lie in the box; longitudes count modulo 360°."""
    west, south, east, north = box
    lon, lat = grid.lonlat(*np.meshgrid(grid.x, grid.y))
    return ((lon - west) % 360 <= east - west) & (lat >= south) & (lat <= north)


def _lonlat_text(grid: Grid) -> str:
    corners = np.array(list(grid.corners_lonlat().values()))
    (west, south), (east, north) = corners.min(0), corners.max(0)
    return f"{west:.2f} to {east:.2f}°E, {south:.2f} to {north:.2f}°N"


def _reprojected(settings: RegridSettings, pixel: float, source: Grid) -> Grid:
    crs = _crs(settings.crs) if settings.crs else source.crs
    west, south, east, north = settings.bounds or _outline(source, crs, pixel)
    columns, rows = (
        int(np.ceil(length / pixel - ROUNDING)) for length in (east - west, north - south)
    )
    return _sensible(crs, west, north, (pixel, pixel), (rows, columns))


def _outline(source: Grid, crs: pyproj.CRS, pixel: float) -> Bounds:
    """West, south, east, north of the source in another projection, outward to whole pixels."""
    x, y = edges(source.x), edges(source.y)
    to_target = pyproj.Transformer.from_crs(source.crs, crs, always_xy=True)
    west, south, east, north = to_target.transform_bounds(x[0], y[-1], x[-1], y[0], densify_pts=99)
    if not np.isfinite([west, south, east, north]).all() or east <= west:
        raise SquallError(
            "the source has no plain outline in the target's projection",
            found=f"{west:g}, {south:g}, {east:g}, {north:g}",
            expected="west < east, not across the antimeridian",
            remedy="give bounds",
        )
    outward = (
        (np.floor(west / pixel), np.floor(south / pixel)),
        (np.ceil(east / pixel), np.ceil(north / pixel)),
    )
    return tuple(float(corner) * pixel for pair in outward for corner in pair)  # type: ignore[return-value]


def _sensible(
    crs: pyproj.CRS, west: float, north: float, pixel: tuple[float, float], shape: tuple[int, int]
) -> Grid:
    if min(shape) < 2 or shape[0] * shape[1] > MOST_PIXELS:  # metres taken for degrees, or so
        raise SquallError(
            "a target grid of no sensible size",
            found=f"{shape[0]}×{shape[1]} pixels of {pixel[0]:g}",
            expected=f"2×2 to {MOST_PIXELS} pixels",
            remedy="give pixel and bounds in the target's units: metres, or degrees",
        )
    return Grid.from_corner(crs, west, north, pixel, shape)


def _crs(text: str) -> pyproj.CRS:
    try:
        return pyproj.CRS(text)
    except pyproj.exceptions.CRSError as error:
        raise SquallError(
            "not a projection",
            found=repr(text),
            expected="EPSG:3035, a PROJ string or WKT",
            remedy="see https://epsg.io for codes",
        ) from error


def _check_bounds(name: str, bounds: Bounds | None) -> None:
    if bounds is None:
        return
    west, south, east, north = bounds
    if not (np.isfinite(bounds).all() and west < east and south < north):
        raise SquallError(
            f"{name} encloses nothing",
            found=", ".join(f"{value:g}" for value in bounds),
            expected="west, south, east, north with west < east and south < north",
            remedy="check their order",
        )
