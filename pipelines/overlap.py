"""How much of each pixel of one grid lies in each pixel of another: exact areas, once per pair.

First-order conservative remapping (Jones 1999, Monthly Weather Review 127, 2204–2210): a source
pixel is the quadrilateral of its four transformed corners, and its overlap with a target pixel is
an area of polygons in the target's plane, not a count of samples.

GDAL's warp has ``average`` and ``sum``. Its ``average`` takes a box between two opposite corners,
which is another area where grids are turned against each other; its ``sum`` conserves, but takes a
hundred times as long for each frame, as nothing of the geometry is kept.
"""

from functools import lru_cache

import numpy as np
import pyproj
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from pipelines.grid import Grid

PAIRS = 1 << 20
"""Pairs of pixels that are worked on at a time."""
SLIVER = 1e-9
"""Overlaps of a smaller part of a target pixel are rounding."""

Floats = NDArray[np.float64]
GridKey = tuple[str, bytes, bytes]


def overlap(source: Grid, target: Grid) -> csr_array:
    """(target pixels, source pixels) sparse: the part of a target pixel that a source one covers.

    Pixels are counted along rows. A row sums to 1 where the source covers the target pixel, to less
    at its edge. 12 bytes for each pair of pixels that meet; the last few pairs of grids are kept.
    """
    return _overlap(_key(source), _key(target))


def _key(grid: Grid) -> GridKey:
    x, y = (np.asarray(axis, np.float64).tobytes() for axis in (grid.x, grid.y))
    return grid.crs_wkt, x, y


def _grid(key: GridKey) -> Grid:
    crs_wkt, x, y = key
    return Grid(crs_wkt, np.frombuffer(x), np.frombuffer(y))


@lru_cache(maxsize=4)
def _overlap(source_key: GridKey, target_key: GridKey) -> csr_array:
    source, target = _grid(source_key), _grid(target_key)
    rows, columns = target.shape
    u, v, source_pixels = _quadrilaterals(source, target)
    first_u, last_u = _span(u, columns)
    first_v, last_v = _span(v, rows)
    width = last_u - first_u
    ends = np.cumsum(width * (last_v - first_v))
    parts: list[tuple[Floats, NDArray[np.int64], NDArray[np.int64]]] = []
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS, side="right")))
        counts = np.diff(ends[start:stop], prepend=before)
        quad = np.repeat(np.arange(start, stop), counts)
        nth = np.arange(len(quad)) - np.repeat(np.cumsum(counts) - counts, counts)
        column = first_u[quad] + nth % width[quad]
        row = first_v[quad] + nth // width[quad]
        area = _area_in_cell(u[quad] - column[:, None], v[quad] - row[:, None])
        meet = area > SLIVER
        parts.append((area[meet], (row * columns + column)[meet], source_pixels[quad[meet]]))
        start = stop
    shape = rows * columns, source.shape[0] * source.shape[1]
    if not parts:
        return csr_array(shape, dtype=np.float64)
    area, to, of = (np.concatenate(column) for column in zip(*parts, strict=True))
    return csr_array(coo_array((area, (to.astype(np.int32), of.astype(np.int32))), shape=shape))


def _quadrilaterals(source: Grid, target: Grid) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Corners (n, 4) of source pixels in columns and rows of the target, and which pixels.

    Column 0 reaches from 0 to 1. Pixels that the target's projection cannot show are left out.
    """
    x, y = np.meshgrid(edges(source.x), edges(source.y))
    if source.crs != target.crs:
        to_target = pyproj.Transformer.from_crs(source.crs, target.crs, always_xy=True)
        x, y = to_target.transform(x, y)
    dx, dy = target.pixel
    if target.is_geographic:  # 350°E is 10°W; what crosses the far meridian is dropped below
        middle = (target.x[0] + target.x[-1]) / 2
        x = middle + (x - middle + 180) % 360 - 180
    u, v = (x - edges(target.x)[0]) / dx, (edges(target.y)[0] - y) / dy
    rows, columns = target.shape
    u, v = _around(u), _around(v)
    with np.errstate(invalid="ignore"):
        inside = (u.max(1) > 0) & (u.min(1) < columns) & (v.max(1) > 0) & (v.min(1) < rows)
        inside &= np.isfinite(u).all(1) & np.isfinite(v).all(1)
        if target.is_geographic:
            inside &= np.ptp(u, axis=1) * dx < 180
    return u[inside], v[inside], np.flatnonzero(inside)


def edges(centres: Floats) -> Floats:
    """(n + 1,) outer and inner borders of n equally spaced pixels."""
    spacing = (centres[-1] - centres[0]) / (len(centres) - 1)
    return centres[0] + spacing * (np.arange(len(centres) + 1) - 0.5)


def _around(corners: Floats) -> Floats:
    """(y·x, 4) the corners of every pixel in turn, from the lattice (y + 1, x + 1)."""
    turn = corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]
    return np.stack(turn, axis=-1).reshape(-1, 4)


def _span(corners: Floats, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last target column (or row) that a quadrilateral may touch."""
    first = np.floor(corners.min(1)).clip(0, size).astype(np.int64)
    last = np.ceil(corners.max(1)).clip(0, size).astype(np.int64)
    return first, last


def _area_in_cell(u: Floats, v: Floats) -> Floats:
    """(n,) area of quadrilaterals (n, 4) within the unit square.

    Along every side, ∫ clamp(v, 0, 1) du over the part of it with 0 ≤ u ≤ 1; summed around with
    sign this is the area, as slice by slice it is the length of the polygon within the square.
    """
    total = np.zeros(len(u))
    for here, there in ((0, 1), (1, 2), (2, 3), (3, 0)):
        u0, u1, v0, v1 = u[:, here], u[:, there], v[:, here], v[:, there]
        a, b = u0.clip(0, 1), u1.clip(0, 1)
        run = u1 - u0
        slope = np.divide(v1 - v0, run, out=np.zeros_like(run), where=run != 0)
        total += (b - a) * _mean_clamped(v0 + slope * (a - u0), v0 + slope * (b - u0))
    return np.abs(total)


def _mean_clamped(start: Floats, end: Floats) -> Floats:
    """Mean of clamp(t, 0, 1) for t from `start` to `end`."""
    run = end - start
    flat = np.abs(run) < 1e-6
    rise = _clamp_integral(end) - _clamp_integral(start)
    mean = np.divide(rise, run, out=np.zeros_like(run), where=~flat)
    return np.where(flat, ((start + end) / 2).clip(0, 1), mean)


def _clamp_integral(t: Floats) -> Floats:
    """∫ clamp(t, 0, 1) dt from 0."""
    return t.clip(0, 1) ** 2 / 2 + (t - 1).clip(0, None)
