"""Regridding against a slow count of sub-pixels, and against GDAL's conserving warp."""

import numpy as np
import pandas as pd
import pyproj
import pytest
from numpy.typing import NDArray

from pipelines.grid import Grid
from pipelines.regrid import regrid
from pipelines.sources import get_source
from pipelines.sources.base import frame

FINE = 24


def by_sub_pixels(
    rain_rate: NDArray[np.float32], source: Grid, target: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean rain rate and observed part of target pixels, from FINE² points in each."""
    (dx, dy), (sx, sy) = target.pixel, source.pixel
    offset = (np.arange(FINE) + 0.5) / FINE - 0.5
    x = (target.x[:, None] + dx * offset).ravel()
    y = (target.y[:, None] - dy * offset).ravel()
    to_source = pyproj.Transformer.from_crs(target.crs, source.crs, always_xy=True)
    px, py = to_source.transform(*np.meshgrid(x, y))
    if source.is_geographic:
        px = px % 360
    column = np.floor((px - source.x[0]) / sx + 0.5).astype(int)
    row = np.floor((source.y[0] - py) / sy + 0.5).astype(int)
    rows, columns = source.shape
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    points = np.full(px.shape, np.nan)
    points[inside] = rain_rate[row[inside], column[inside]]
    blocks = points.reshape(len(target.y), FINE, len(target.x), FINE)
    observed = np.isfinite(blocks)
    part = observed.mean((1, 3))
    total = np.where(observed, blocks, 0).mean((1, 3))
    return np.divide(total, part, out=np.full_like(part, np.nan), where=part > 0), part


def area_m2(grid: Grid) -> NDArray[np.float64]:
    """(y, x) true area of pixels on the ellipsoid, by an equal-area projection."""
    (dx, dy), n = grid.pixel, np.newaxis
    x = np.append(grid.x - dx / 2, grid.x[-1] + dx / 2)
    y = np.append(grid.y + dy / 2, grid.y[-1] - dy / 2)
    to_equal_area = pyproj.Transformer.from_crs(grid.crs, "EPSG:6933", always_xy=True)
    x, y = to_equal_area.transform(*np.broadcast_arrays(x[n, :], y[:, n]))
    along, across = (x[:-1, :-1] - x[1:, 1:], y[:-1, :-1] - y[1:, 1:])
    other_along, other_across = (x[1:, :-1] - x[:-1, 1:], y[1:, :-1] - y[:-1, 1:])
    return np.abs(along * other_across - other_along * across) / 2


def assert_same(rain_rate: NDArray[np.float32], source: Grid, target: Grid) -> None:
    one = frame(rain_rate, source, pd.Timestamp("2024-06-01"), source="test")
    result = regrid(one, target).values
    expected, part = by_sub_pixels(rain_rate, source, target)
    sure = np.abs(part - 0.5) > 2 / FINE
    np.testing.assert_array_equal(np.isfinite(result)[sure], (part > 0.5)[sure])
    both = np.isfinite(result) & (part > 0)
    difference = (result - expected)[both]
    rain = expected[both]
    assert rain.max() > 1
    assert np.sqrt(np.mean(difference**2)) < 0.01 * np.sqrt(np.mean(rain**2))
    assert abs(difference.sum()) < 1e-3 * rain.sum()
    # points are as fine as 1/FINE of a pixel's side, times what rain changes over a pixel
    assert np.abs(difference).max() < rain.max() / FINE


@pytest.fixture(scope="module")
def knmi(radar_data):
    path = radar_data / "knmi/RAD_NL25_RAP_5min_201008260300.h5"
    return get_source("knmi").read(path.read_bytes())


def rainy_patch(knmi, size: int):
    """A patch around the strongest rain, with its grid."""
    smooth = np.nan_to_num(knmi.values).reshape(-1, 5, 140, 5).sum((1, 3))
    row, column = (5 * int(i) for i in np.unravel_index(smooth.argmax(), smooth.shape))
    patch = knmi[row - size // 2 : row + size // 2, column - size // 2 : column + size // 2]
    return patch, Grid.of(patch)


@pytest.mark.parametrize(
    ("crs", "pixel", "shape"),
    [
        ("EPSG:3035", 2000.0, (40, 40)),
        ("EPSG:3035", 600.0, (110, 110)),
        ("EPSG:4326", 0.013, (60, 80)),
        ("ESRI:102017", 1700.0, (50, 50)),  # around the pole
        ("EPSG:32645", 2000.0, (50, 50)),  # turned by most of a right angle
    ],
)
def test_a_knmi_frame_is_what_its_sub_pixels_say(knmi, crs, pixel, shape):
    patch, source = rainy_patch(knmi, 100)
    to_target = pyproj.Transformer.from_crs(source.crs, crs, always_xy=True)
    x, y = to_target.transform(source.x.mean(), source.y.mean())
    rows, columns = shape
    corner = x - columns / 2 * pixel, y + rows / 2 * pixel
    assert_same(patch.values, source, Grid.from_corner(crs, *corner, (pixel, pixel), shape))


@pytest.mark.parametrize(
    "crs",
    ["+proj=lcc +lat_0=38.5 +lon_0=-97.5 +lat_1=38.5 +lat_2=38.5 +R=6371229", "EPSG:5070"],
    ids=["hrrr", "albers"],
)
def test_a_latitude_longitude_field_like_mrms_is_what_its_sub_pixels_say(crs):
    source = Grid.from_corner("EPSG:4326", 278.0, 41.0, (0.01, 0.01), (160, 200))
    rng = np.random.default_rng(7)
    rain_rate = np.kron(rng.gamma(0.4, 6.0, (20, 25)), np.ones((8, 8))) + rng.gamma(
        1.0, 0.2, (160, 200)
    )
    rain_rate[rng.random((160, 200)) < 0.1] = np.nan
    to_target = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_target.transform(279.0, 40.2)
    target = Grid.from_corner(crs, x - 60e3, y + 60e3, (3000.0, 3000.0), (40, 40))
    assert_same(rain_rate.astype(np.float32), source, target)


@pytest.mark.parametrize(
    ("crs", "pixel", "bounds"),
    [
        ("EPSG:3035", 2000.0, (3_590_000.0, 3_700_000.0, 400, 420)),
        ("EPSG:4326", 0.02, (-1.0, 56.5, 600, 500)),
    ],
)
def test_a_whole_frames_rain_is_kept_within_half_a_percent(knmi, crs, pixel, bounds):
    west, north, columns, rows = bounds
    source = Grid.of(knmi)
    target = Grid.from_corner(crs, west, north, (pixel, pixel), (rows, columns))
    result = regrid(knmi, target).values
    before, after = area_m2(source), area_m2(target)
    rain_before = np.nansum(knmi.values * before)
    assert np.nansum(result * after) == pytest.approx(rain_before, rel=5e-3)
    observed_before = before[np.isfinite(knmi.values)].sum()
    assert after[np.isfinite(result)].sum() == pytest.approx(observed_before, rel=5e-3)


def test_a_whole_frame_agrees_with_gdals_conserving_warp(knmi):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.warp import Resampling, reproject

    source = Grid.of(knmi)
    target = Grid.from_corner("EPSG:3035", 3.8e6, 3.5e6, (2000.0, 2000.0), (150, 150))

    def affine(grid: Grid):
        dx, dy = grid.pixel
        return rasterio.Affine(dx, 0, grid.x[0] - dx / 2, 0, -dy, grid.y[0] + dy / 2)

    observed = np.isfinite(knmi.values).astype(np.float64)
    sums = np.zeros((2, *target.shape))
    reproject(
        np.stack([np.nan_to_num(knmi.values).astype(np.float64), observed]),
        sums,
        src_transform=affine(source),
        src_crs=source.crs_wkt,
        dst_transform=affine(target),
        dst_crs=target.crs_wkt,
        resampling=Resampling.sum,
        tolerance=0,
    )
    result = regrid(knmi, target).values
    both = np.isfinite(result) & (sums[1] > 0)
    difference = result[both] - sums[0][both] / sums[1][both]
    rain = result[both]
    assert np.sqrt(np.mean(difference**2)) < 0.03 * np.sqrt(np.mean(rain**2))
    assert abs(difference.sum()) < 2e-3 * rain.sum()
