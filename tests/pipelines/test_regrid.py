"""Frames on another grid: crop, blocks and exact overlap; missing stays missing, rain is kept."""

import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.archive import open_archive
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.overlap import overlap
from pipelines.regrid import RegridSettings, regrid, regrid_dataset, target_grid
from pipelines.sources.base import frame
from pipelines.sources.synthetic import PROJECTION

TIME = pd.Timestamp("2024-06-01T00:00")
NAN = math.nan
PLANE = Grid.from_corner(PROJECTION, 0.0, 4000.0, (1000.0, 1000.0), (4, 4))
LATLON = Grid.from_corner("EPSG:4326", 5.0, 53.0, (0.02, 0.01), (9, 8))
TURNED = Grid.from_corner("EPSG:3035", 3_940_000.0, 3_260_000.0, (1500.0, 1500.0), (16, 16))

EQUAL_AREA = target_grid(RegridSettings(crs="EPSG:3035", pixel=900.0), LATLON)

RAIN = arrays(
    np.float32,
    (9, 8),
    elements=st.one_of(st.just(NAN), st.just(0.0), st.floats(0, 300, width=32)),
)
TARGETS = st.sampled_from(
    [
        target_grid(RegridSettings(coarsen=2), LATLON),
        target_grid(RegridSettings(coarsen=3), LATLON),
        target_grid(RegridSettings(pixel=0.013), LATLON),
        target_grid(RegridSettings(pixel=0.004), LATLON),
        target_grid(RegridSettings(crs="EPSG:3035", pixel=700.0), LATLON),
        target_grid(RegridSettings(crs="EPSG:32628", pixel=2300.0), LATLON),
    ]
)


def of(field: object, grid: Grid) -> xr.DataArray:
    return frame(np.asarray(field, np.float32), grid, TIME, source="test")


def inside(rain_rate: NDArray[np.float32]) -> NDArray[np.float32]:
    return rain_rate[np.isfinite(rain_rate)]


FOUR = [
    [1, 3, NAN, 0],
    [5, 7, NAN, 2],
    [NAN, NAN, 0, 0],
    [NAN, 8, 0, 0],
]


def test_blocks_are_means_of_what_is_observed_and_half_of_it_is_enough():
    coarse = target_grid(RegridSettings(coarsen=2), PLANE)
    assert coarse.x.tolist() == [1000.0, 3000.0]
    assert coarse.y.tolist() == [3000.0, 1000.0]
    # (1+3+5+7)/4; (0+2)/2 with two of four observed; one of four is too few; dry
    result = regrid(of(FOUR, PLANE), coarse)
    np.testing.assert_array_equal(result, [[4, 1], [NAN, 0]])
    np.testing.assert_array_equal(result["observed"], [[True, True], [False, True]])
    strict = regrid(of(FOUR, PLANE), coarse, observed_fraction=0.75)
    np.testing.assert_array_equal(strict, [[4, NAN], [NAN, 0]])
    lenient = regrid(of(FOUR, PLANE), coarse, observed_fraction=0.25)
    np.testing.assert_array_equal(lenient, [[4, 1], [8, 0]])


def test_a_block_that_reaches_out_of_the_grid_counts_what_is_outside_as_not_observed():
    coarse = target_grid(RegridSettings(coarsen=3), PLANE)
    assert coarse.shape == (2, 2)
    result = regrid(of(np.arange(16).reshape(4, 4), PLANE), coarse, observed_fraction=1 / 9)
    # rows 0-2 × columns 0-2; column 3; row 3; the last pixel
    np.testing.assert_allclose(result, [[5, 7], [13, 15]])
    assert np.isnan(regrid(of(np.ones((4, 4)), PLANE), coarse).values).sum() == 3


def test_a_finer_grid_repeats_the_sources_values():
    fine = target_grid(RegridSettings(pixel=500.0), PLANE)
    result = regrid(of(FOUR, PLANE), fine)
    np.testing.assert_allclose(result, np.kron(FOUR, np.ones((2, 2))))


def test_a_pixel_across_a_border_takes_each_side_by_its_area():
    shifted = Grid.from_corner(PROJECTION, 250.0, 4000.0, (1000.0, 1000.0), (4, 3))
    result = regrid(of(FOUR, PLANE), shifted)
    # ¾ of the left pixel, ¼ of the right one; where one side is missing the other's value
    np.testing.assert_allclose(
        result, [[1.5, 3, NAN], [5.5, 7, NAN], [NAN, NAN, 0], [NAN, 6, 0]], rtol=1e-6
    )


def test_the_area_of_a_block_in_degrees_shrinks_towards_the_pole():
    north = Grid.from_corner("EPSG:4326", 0.0, 62.0, (1.0, 1.0), (4, 4))
    rows = np.repeat([[3.0], [0.0], [0.0], [0.0]], 4, axis=1)
    result = regrid(of(rows, north), target_grid(RegridSettings(coarsen=2), north))
    upper, lower = math.cos(math.radians(61.5)), math.cos(math.radians(60.5))
    np.testing.assert_allclose(result[0], 3 * upper / (upper + lower), rtol=1e-6)


def test_nothing_asked_for_is_the_frame_itself():
    one = of(FOUR, PLANE)
    target = target_grid(RegridSettings(), PLANE)
    assert target is PLANE
    assert regrid(one, target) is one


def test_a_crop_keeps_pixels_by_their_centres():
    cropped = target_grid(RegridSettings(crop=(400.0, 1600.0, 2600.0, 4000.0)), PLANE)
    result = regrid(of(FOUR, PLANE), cropped)
    np.testing.assert_array_equal(result, np.array(FOUR)[:2, :3])
    both = target_grid(RegridSettings(crop=(0, 0, 4000, 4000), coarsen=2), PLANE)
    assert both.shape == (2, 2)


def test_a_box_in_degrees_is_a_rectangle_around_its_pixels(grid):
    cropped = target_grid(RegridSettings(crop_lonlat=(4.95, 51.97, 5.05, 52.03)), grid)
    lon, lat = cropped.lonlat(*np.meshgrid(cropped.x, cropped.y))
    full_lon, full_lat = grid.lonlat(*np.meshgrid(grid.x, grid.y))
    in_box = (abs(full_lon - 5) <= 0.05) & (abs(full_lat - 52) <= 0.03)
    assert in_box.sum() > 4
    assert set(full_lon[in_box]) <= set(lon.ravel())
    assert set(full_lat[in_box]) <= set(lat.ravel())
    assert cropped.shape < grid.shape


def test_longitudes_count_modulo_360():
    west = Grid.from_corner("EPSG:4326", 260.0, 40.0, (1.0, 1.0), (4, 6))
    cropped = target_grid(RegridSettings(crop_lonlat=(-99, 37, -96, 39)), west)
    assert cropped.x.tolist() == [261.5, 262.5, 263.5]
    field = np.arange(24.0).reshape(4, 6)
    american = Grid.from_corner("EPSG:4326", -100.0, 40.0, (1.0, 1.0), (4, 6))
    np.testing.assert_allclose(regrid(of(field, west), american), field, rtol=1e-6)
    np.testing.assert_allclose(regrid(of(field, american), west), field, rtol=1e-6)


def test_labels_and_attributes_are_the_sources(grid):
    one = of(np.ones((8, 8)), grid)
    result = regrid(one, target_grid(RegridSettings(crs="EPSG:4326", pixel=0.02), grid))
    assert result.attrs == one.attrs
    assert result.dtype == np.float32
    assert result["time"].item() == one["time"].item()
    assert set(result.coords) == set(one.coords)
    assert Grid.of(result).is_geographic
    assert result["x"].attrs["standard_name"] == "longitude"


def test_the_default_target_holds_the_whole_source(grid):
    target = target_grid(RegridSettings(crs="EPSG:3035", pixel=1000.0), grid)
    assert target.x[0] % 1000 == 500
    assert overlap(grid, target).sum() * 1.0 == pytest.approx(64 * 4, rel=1e-3)
    given_bounds = target_grid(RegridSettings(pixel=3000.0, bounds=(0, 0, 7000, 6000)), grid)
    assert given_bounds.shape == (2, 3)
    assert given_bounds.x[0] == 1500
    assert given_bounds.y[0] == 4500


def test_what_the_source_does_not_cover_is_missing():
    far = Grid.from_corner("EPSG:4326", 100.0, 53.0, (0.02, 0.01), (9, 8))
    assert np.isnan(regrid(of(np.ones((9, 8)), LATLON), far).values).all()
    beyond = Grid.from_corner("EPSG:3035", 9e6, 9e6, (1000.0, 1000.0), (9, 8))
    assert np.isnan(regrid(of(np.ones((9, 8)), LATLON), beyond).values).all()


@given(TARGETS, st.floats(0, 300, width=32))
def test_a_constant_field_stays_constant_to_the_bit(target, value):
    values = inside(regrid(of(np.full((9, 8), value), LATLON), target).values)
    assert values.size
    assert set(values.tolist()) == {value}


@given(RAIN, TARGETS)
def test_values_stay_between_the_sources_extremes_and_missing_stays_missing(rain_rate, target):
    result = regrid(of(rain_rate, LATLON), target).values
    if np.isnan(rain_rate).all():
        assert np.isnan(result).all()
    if inside(result).size:
        assert inside(result).min() >= inside(rain_rate).min()
        assert inside(result).max() <= inside(rain_rate).max()
    observed = regrid(of(np.where(np.isnan(rain_rate), NAN, 1), LATLON), target)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(observed))


@given(RAIN, st.integers(2, 5))
def test_blocks_conserve_rain_and_observed_area(rain_rate, k):
    grid = Grid.from_corner(PROJECTION, 0.0, 9000.0, (1000.0, 1000.0), (9, 8))
    coarse = target_grid(RegridSettings(coarsen=k), grid)
    result = regrid(of(rain_rate, grid), coarse, observed_fraction=1e-5)
    pixels = np.zeros((coarse.shape[0] * k, coarse.shape[1] * k))
    pixels[:9, :8] = np.isfinite(rain_rate)
    observed_pixels = pixels.reshape(coarse.shape[0], k, coarse.shape[1], k).sum((1, 3))
    total = (result.fillna(0).values * observed_pixels).sum()
    assert total == pytest.approx(np.nansum(rain_rate.astype(float)), rel=1e-5)


@given(RAIN)
def test_reprojection_conserves_rain_over_observed_area(rain_rate):
    parts = overlap(LATLON, EQUAL_AREA)
    rain = np.nan_to_num(rain_rate.astype(float)).ravel()
    # LAEA is true to area: what a source pixel gives away is its area on the ellipsoid
    given_away = np.asarray(parts.sum(axis=0)) * 900**2
    assert (parts @ rain).sum() * 900**2 == pytest.approx((rain * given_away).sum(), rel=1e-9)
    equator_m, polar_m = 6378137.0, 6356752.3142
    e2 = 1 - (polar_m / equator_m) ** 2
    latitude = np.radians(np.repeat(LATLON.y, 8))
    meridian = equator_m * (1 - e2) / (1 - e2 * np.sin(latitude) ** 2) ** 1.5
    normal = equator_m / np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    area_m2 = np.radians(0.01) * meridian * np.radians(0.02) * normal * np.cos(latitude)
    np.testing.assert_allclose(given_away, area_m2, rtol=1e-4)


def test_overlaps_of_a_covered_pixel_sum_to_one():
    source = Grid.from_corner("EPSG:4326", 4.0, 54.0, (0.02, 0.01), (200, 150))
    sums = np.asarray(overlap(source, TURNED).sum(axis=1))
    np.testing.assert_allclose(sums, 1, rtol=1e-9)


def test_the_same_input_gives_the_same_bytes():
    rain_rate = np.random.default_rng(1).gamma(0.3, 5, (9, 8))
    target = target_grid(RegridSettings(crs="EPSG:3035", pixel=700.0), LATLON)
    first = regrid(of(rain_rate, LATLON), target).values.tobytes()
    again = Grid(str(target.crs_wkt), target.x.copy(), target.y.copy())
    assert regrid(of(rain_rate, LATLON), again).values.tobytes() == first


@pytest.mark.parametrize(
    "settings",
    [
        RegridSettings(coarsen=3),
        RegridSettings(crop=(-4000.0, -4000.0, 4000.0, 4000.0)),
        RegridSettings(crs="EPSG:4326", pixel=0.05),
    ],
    ids=["coarsen", "crop", "reproject"],
)
def test_a_lazy_dataset_is_its_frames_one_by_one(archive, settings):
    dataset = open_archive(archive.url).isel(time=slice(0, 12)).chunk(time=5)
    dataset["rain_rate"] = dataset["rain_rate"].astype(np.float32)
    target = target_grid(settings, archive.grid)
    lazy = regrid_dataset(dataset, target)
    assert lazy.chunks["time"] == (5, 5, 2)
    assert lazy["rain_rate"].chunks is not None
    assert Grid.of(lazy).matches(target)
    assert lazy["status"].identical(
        dataset["status"].drop_vars("crs").assign_coords(crs=lazy["crs"])
    )
    assert lazy["rain_rate"].dims == ("time", "y", "x")
    assert lazy["rain_rate"].attrs == dataset["rain_rate"].attrs
    for time in lazy["time"].values:
        field = dataset["rain_rate"].sel(time=time).values
        one = regrid(of(field, archive.grid), target)
        np.testing.assert_array_equal(lazy["rain_rate"].sel(time=time).values, one.values)
    assert np.isfinite(lazy["rain_rate"]).any()


def test_a_dataset_on_its_own_grid_stays_and_eager_is_lazy(archive):
    dataset = open_archive(archive.url).isel(time=slice(0, 3))
    assert regrid_dataset(dataset, archive.grid) is dataset
    target = target_grid(RegridSettings(coarsen=2), archive.grid)
    eager, lazy = regrid_dataset(dataset.load(), target), regrid_dataset(dataset.chunk(), target)
    assert eager["rain_rate"].chunks is None
    xr.testing.assert_identical(eager, lazy.compute())
    assert {"lat", "lon"} <= set(lazy.coords)


def test_flags_have_no_area_mean(archive):
    dataset = open_archive(archive.url).isel(time=slice(0, 2))
    flagged = dataset.assign(flag=dataset["rain_rate"] > 1)
    with pytest.raises(SquallError, match=r"no area mean: found flag \(bool\)"):
        regrid_dataset(flagged, target_grid(RegridSettings(coarsen=2), archive.grid))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (0, 0, 1, 1), "crop_lonlat": (0, 0, 1, 1)}, "two crops"),
        ({"crs": "EPSG:3035"}, "without its pixel size: found crs"),
        ({"bounds": (0, 0, 1, 1)}, "without its pixel size: found bounds"),
        ({"pixel": 1.0, "coarsen": 2}, "two ways to a target grid: found coarsen and pixel"),
        ({"pixel": 1.0, "crop": (0, 0, 1, 1)}, "two ways to a target grid"),
        ({"crop": (1, 0, 0, 1)}, "crop encloses nothing"),
        ({"pixel": 1.0, "bounds": (0, 1, 1, 0)}, "bounds encloses nothing"),
        ({"crs": "EPSG:none", "pixel": 1.0}, "not a projection"),
        ({"coarsen": 1}, "greater than or equal to 2"),
        ({"observed_fraction": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(fields, message):
    with pytest.raises(ValidationError, match=message):
        RegridSettings(**fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RegridSettings(crop_lonlat=(100, 0, 101, 1)), "crop_lonlat leaves less than 2×2"),
        (RegridSettings(crop=(9e6, 9e6, 9.1e6, 9.1e6)), "crop leaves less than 2×2"),
        (RegridSettings(coarsen=100), "no sensible size: found 1×1"),
        (RegridSettings(crs="EPSG:4326", pixel=1000), "no sensible size: found 1×1|2×"),
        (RegridSettings(pixel=0.01), "no sensible size: found 1600000×1600000"),
    ],
)
def test_a_target_of_no_sense_is_an_error(grid, settings, message):
    with pytest.raises(SquallError, match=message):
        target_grid(settings, grid)
