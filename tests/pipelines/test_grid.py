"""The grid: corners, CF coordinates, and when two grids are the same."""

import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FrameError
from pipelines.grid import Grid, check_shape, snap
from pipelines.sources.synthetic import PROJECTION

LATITUDE_LONGITUDE = Grid.from_corner("EPSG:4326", 5.0, 53.0, (0.5, 0.25), (4, 3))


def test_a_corner_and_a_pixel_size_give_the_pixel_centres():
    grid = Grid.from_corner(PROJECTION, -3000.0, 2000.0, (2000.0, 1000.0), (4, 3))
    assert grid.x.tolist() == [-2000.0, 0.0, 2000.0]
    assert grid.y.tolist() == [1500.0, 500.0, -500.0, -1500.0]
    assert grid.shape == (4, 3)
    assert grid.pixel == (2000.0, 1000.0)


def test_the_projection_centre_is_where_its_definition_says(grid):
    lon, lat = grid.lonlat(np.array([0.0]), np.array([0.0]))
    assert lon == pytest.approx(5.0)
    assert lat == pytest.approx(52.0)


def test_corners_are_the_outer_ones_clockwise_from_the_upper_left(grid):
    corners = grid.corners_lonlat()
    assert list(corners) == ["UL", "UR", "LR", "LL"]
    to_projection = pyproj.Transformer.from_crs("EPSG:4326", PROJECTION, always_xy=True)
    for name, expected in {
        "UL": (-8000, 8000),
        "UR": (8000, 8000),
        "LR": (8000, -8000),
        "LL": (-8000, -8000),
    }.items():
        assert to_projection.transform(*corners[name]) == pytest.approx(expected, abs=1e-3)


def test_coordinates_are_cf(grid):
    dataset = xr.Dataset(coords=grid.coords())
    assert dataset["x"].attrs["standard_name"] == "projection_x_coordinate"
    assert dataset["y"].attrs["standard_name"] == "projection_y_coordinate"
    assert dataset["x"].attrs["units"] == dataset["y"].attrs["units"] == "metre"
    assert dataset["lat"].attrs["units"] == "degrees_north"
    assert dataset["lon"].attrs["standard_name"] == "longitude"
    crs = dataset["crs"].attrs
    assert crs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    assert crs["spatial_ref"] == crs["crs_wkt"] == grid.crs_wkt


def test_cf_parameters_alone_give_back_latitude_and_longitude(grid):
    dataset = xr.Dataset(coords=grid.coords())
    parameters = {k: v for k, v in dataset["crs"].attrs.items() if "wkt" not in k and k != "ref"}
    parameters.pop("spatial_ref")
    crs = pyproj.CRS.from_cf(parameters)
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_lonlat.transform(*np.meshgrid(dataset["x"], dataset["y"]))
    np.testing.assert_allclose(lon, dataset["lon"], atol=1e-4)
    np.testing.assert_allclose(lat, dataset["lat"], atol=1e-4)


@pytest.mark.parametrize(
    "crs", [PROJECTION, "EPSG:3067", "EPSG:31287", "EPSG:4326"], ids=["laea", "tm", "lcc", "latlon"]
)
def test_x_is_eastward_and_y_northward_in_every_projection(crs):
    attrs = xr.Dataset(coords=Grid.from_corner(crs, 0.0, 4.0, (1.0, 1.0), (4, 4)).coords())
    assert attrs["x"].attrs["axis"] == "X"
    assert attrs["y"].attrs["axis"] == "Y"


def test_a_grid_comes_back_from_its_coordinates(grid):
    for one in (grid, LATITUDE_LONGITUDE):
        for lonlat in (True, False):
            again = Grid.of(xr.Dataset(coords=one.coords(lonlat=lonlat)))
            assert again.matches(one)
            assert one.matches(again)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ((-8000.0, 8000.0, 2000.0, (8, 8)), True),
        ((-8000.5, 8000.5, 2000.0, (8, 8)), True),
        ((-8002.0, 8000.0, 2000.0, (8, 8)), False),
        ((-8000.0, 8002.0, 2000.0, (8, 8)), False),
        ((-8000.0, 8000.0, 2001.0, (8, 8)), False),
        ((-8000.0, 8000.0, 2000.0, (8, 7)), False),
    ],
)
def test_grids_are_the_same_within_a_metre(grid, other, same):
    west, north, pixel, shape = other
    assert grid.matches(Grid.from_corner(PROJECTION, west, north, (pixel, pixel), shape)) is same


def test_grids_of_different_projections_differ(grid):
    other = PROJECTION.replace("lat_0=52", "lat_0=53")
    moved = Grid.from_corner(other, -8000.0, 8000.0, (2000.0, 2000.0), (8, 8))
    assert not grid.matches(moved)


def test_a_grid_prints_in_a_line_for_people(grid):
    text = str(grid)
    assert text.startswith("8×8 pixels of 2000×2000 m (")
    assert "upper left -8000, 8000 m" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("coordinate", "snapped"),
    [
        (-8001.2, -8000.0),  # rounded longitude and latitude, as OPERA NIMBUS has them
        (1003.9, 1000.0),  # half a pixel is on the lattice: centres are given so
        (-8005.1, -8005.1),  # off by more than 1/400 of a pixel: really there
        (300.0, 300.0),
        (0.0, 0.0),
    ],
)
def test_a_corner_is_snapped_only_from_rounding_distance(coordinate, snapped):
    assert snap(coordinate, 2000.0) == snapped


@given(st.floats(-1e7, 1e7), st.sampled_from([250.0, 1000.0, 2000.0]))
def test_snapping_moves_little_and_only_once(coordinate, pixel):
    snapped = snap(coordinate, pixel)
    assert abs(snapped - coordinate) <= pixel / 400
    assert snap(snapped, pixel) == snapped


@given(st.integers(-5000, 5000), st.floats(-2.4, 2.4))
def test_a_rounded_corner_comes_back_to_the_metre(half_pixels, rounding):
    assert snap(half_pixels * 500.0 + rounding, 1000.0) == half_pixels * 500.0


def test_a_field_of_another_shape_than_its_grid_is_an_error(grid):
    check_shape((8, 8), grid)
    with pytest.raises(FrameError, match=r"found \(8, 9\) pixels; expected \(8, 8\)"):
        check_shape((8, 9), grid)


def test_a_datum_shift_does_not_hide_the_projections_name():
    shifted = "+proj=lcc +lat_0=50 +lon_0=4 +lat_1=49 +lat_2=51 +ellps=intl +towgs84=-106,-52,-103"
    grid = Grid.from_corner(shifted, 0.0, 0.0, (1000.0, 1000.0), (4, 4))
    assert "lambert_conformal_conic" in str(grid)
