"""CF netCDF of any provider: standard name, units, grid mapping, one time."""

import gzip

import numpy as np
import pandas as pd
import pyproj
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources import get_source
from pipelines.sources.cf import AMOUNT_MM, HOURS, _mm_per_hour

pytest.importorskip("h5netcdf")

FIELD = np.array([[0.0, 1.0, np.nan], [-1.0, 2.5, 10.0]], np.float32)
TIME = pd.Timestamp("2024-06-01T00:05")
LAEA = {
    "grid_mapping_name": "lambert_azimuthal_equal_area",
    "longitude_of_projection_origin": 10.0,
    "latitude_of_projection_origin": 55.0,
    "false_easting": 0.0,
    "false_northing": 0.0,
    "semi_major_axis": 6378137.0,
    "inverse_flattening": 298.257223563,
}


def dataset(field=FIELD, *, x=(1.0, 3.0, 5.0), y=(3.0, 1.0), times=(TIME,), bounds=None, **attrs):
    """A field on a projected grid in km; `attrs` of its variable."""
    axis = {"axis": "X", "standard_name": "projection_x_coordinate", "units": "km"}
    content = xr.Dataset(
        {
            "rain": (
                ("time", "y", "x"),
                np.broadcast_to(field, (len(times), *np.shape(field))),
                {"standard_name": "rainfall_rate", "units": "mm h-1", "grid_mapping": "crs"}
                | attrs,
            ),
            "crs": ((), np.int32(0), LAEA),
        },
        coords={
            "time": ("time", pd.DatetimeIndex(times), {"standard_name": "time"}),
            "x": ("x", np.array(x), axis),
            "y": (
                "y",
                np.array(y),
                {"standard_name": "projection_y_coordinate", "units": "km"},
            ),
        },
    )
    content["time"].encoding["units"] = "seconds since 1970-01-01"
    if bounds:
        content["time"].attrs["bounds"] = "time_bnds"
        content["time_bnds"] = ("time", "nv"), np.array([bounds], "datetime64[ns]")
    return content


def geographic(x=(8.0, 9.0, 10.0), y=(50.0, 49.0), field=FIELD):
    content = dataset(field).isel(time=0).drop_vars("crs").assign_coords(x=list(x), y=list(y))
    content = content.rename(x="lon", y="lat")
    del content["rain"].attrs["grid_mapping"]
    content["lon"].attrs = {"standard_name": "longitude", "units": "degrees_east"}
    content["lat"].attrs = {"standard_name": "latitude", "units": "degrees_north"}
    return content


def netcdf4(content):
    return bytes(content.to_netcdf(engine="h5netcdf"))


def read(content):
    return get_source("cf").read(netcdf4(content) if isinstance(content, xr.Dataset) else content)


@pytest.mark.parametrize(
    ("name", "units", "mm_h"),
    [
        ("rainfall_rate", "mm h-1", 1.0),
        ("rainfall_rate", "mm/hr", 1.0),
        ("rainfall_rate", "m s-1", 3.6e6),
        ("lwe_precipitation_rate", "mm d-1", 1 / 24),
        ("precipitation_flux", "kg m-2 s-1", 3600.0),
        ("precipitation_flux", "kg/m^2/s", 3600.0),
        ("rainfall_flux", "kg m**-2 h**-1", 1.0),
        ("rainfall_flux", "kg.m-2.min-1", 60.0),
    ],
)
def test_a_rate_becomes_millimetres_an_hour(name, units, mm_h):
    frame = read(dataset(standard_name=name, units=units))
    np.testing.assert_allclose(frame.values[1, 1:], [2.5 * mm_h, 10 * mm_h], rtol=1e-6)
    assert frame.attrs["cf_standard_name"] == name


@given(st.sampled_from(list(AMOUNT_MM)), st.sampled_from(list(HOURS)))
def test_every_rate_is_its_amount_over_its_time(amount, time):
    assert _mm_per_hour(f"{amount} {time}-1") == AMOUNT_MM[amount] / HOURS[time]


@pytest.mark.parametrize("units", ["mm", "m", "1", "", "K", "mm h", "furlong s-1", "mm year-1"])
def test_units_that_are_no_rate_are_an_error_that_names_them(units):
    with pytest.raises(FrameError, match="units that are not understood"):
        read(dataset(units=units))


def test_fill_and_negative_values_are_missing_and_zero_is_dry():
    frame = read(dataset())
    expected = [[True, True, False], [False, True, True]]
    np.testing.assert_array_equal(frame["observed"], expected)
    assert frame.values[0, 0] == 0


def test_packed_integers_and_their_fill_value_are_decoded():
    content = dataset(np.array([[0, 1, 2], [3, 4, 65535]], np.uint16))
    content["rain"].attrs |= {"scale_factor": 0.5, "_FillValue": np.uint16(65535)}
    np.testing.assert_allclose(read(content).values, [[0, 0.5, 1], [1.5, 2, np.nan]])


@pytest.mark.parametrize(
    ("name", "units", "mm"),
    [
        ("precipitation_amount", "kg m-2", 1.0),
        ("rainfall_amount", "kg m-2", 1.0),
        ("lwe_thickness_of_precipitation_amount", "m", 1000.0),
    ],
)
def test_an_amount_is_a_rate_by_the_times_bounds(name, units, mm):
    bounds = (TIME - pd.Timedelta("5min"), TIME)
    frame = read(dataset(standard_name=name, units=units, bounds=bounds))
    np.testing.assert_allclose(frame.values[1, 1:], [30 * mm, 120 * mm], rtol=1e-6)
    assert frame.attrs["cell_methods"] == "time: mean (interval: 5 min, ends at time)"


def test_an_amount_is_a_rate_by_the_interval_of_the_cell_methods():
    attrs = {"standard_name": "rainfall_amount", "units": "kg m-2"}
    frame = read(dataset(**attrs, cell_methods="time: sum (interval: 15 min)"))
    np.testing.assert_allclose(frame.values[1, 1:], [10, 40], rtol=1e-6)
    for method in ("time: sum", "time: sum (interval: 0 min)", "time: sum (interval: 1 age)"):
        with pytest.raises(FrameError):
            read(dataset(**attrs, cell_methods=method))


def test_reflectivity_becomes_rain_by_a_named_relation():
    name = "equivalent_reflectivity_factor"
    field = np.array([[23.0103, -10.0, np.nan], [0, 0, 39.0103]])
    frame = read(dataset(field, standard_name=name, units="dBZ"))
    # Z = 200·R^1.6: 200 mm⁶/m³ is 1 mm/h; 16 dB more is ten times the rain.
    np.testing.assert_allclose(frame.values[[0, 1], [0, 2]], [1, 10], rtol=1e-5)
    assert frame["observed"].values.sum() == 5
    assert frame.attrs["z_r_relation"] == "Marshall–Palmer 1948: a=200, b=1.6"
    with pytest.raises(FrameError, match="dBZ"):
        read(dataset(field, standard_name=name, units="mm6 m-3"))


def test_the_grid_is_the_grid_mappings_in_metres():
    grid = Grid.of(read(dataset()))
    assert grid.x.tolist() == [1000, 3000, 5000]
    assert grid.y.tolist() == [3000, 1000]
    lon, lat = grid.lonlat(np.zeros(1), np.zeros(1))
    assert (lon[0], lat[0]) == pytest.approx((10, 55))


def test_rows_from_south_to_north_are_turned_with_their_coordinate():
    upside_down = dataset().isel(y=[1, 0], x=[2, 1, 0]).transpose("time", "x", "y")
    assert read(upside_down).identical(read(dataset()))


def test_longitude_and_latitude_need_no_grid_mapping():
    grid = Grid.of(read(geographic()))
    assert grid.is_geographic
    assert (grid.x.tolist(), grid.y.tolist()) == ([8, 9, 10], [50, 49])
    east = Grid.of(read(geographic(x=(230.0, 231.0, 232.0))))
    assert east.x.tolist() == [-130, -129, -128]


def test_a_scalar_time_and_a_time_of_length_one_are_the_same():
    assert read(dataset().isel(time=0)).identical(read(dataset()))
    assert pd.Timestamp(read(dataset())["time"].item()) == TIME


def test_two_times_in_a_file_are_an_error_that_says_how_to_split_it():
    with pytest.raises(FrameError, match=r"2 times.*cdo splitsel,1"):
        read(dataset(times=(TIME, TIME + pd.Timedelta("5min"))))


def test_netcdf_3_and_gzipped_files_are_read_alike():
    expected = read(dataset())
    assert read(gzip.compress(netcdf4(dataset()))).identical(expected)
    assert read(bytes(dataset().to_netcdf(engine="scipy"))).identical(expected)


def broken(name):
    content = dataset()
    if name == "no-field":
        content["rain"].attrs["standard_name"] = "air_temperature"
    elif name == "two-fields":
        content["more"] = content["rain"]
    elif name == "no-time":
        content = content.isel(time=0).drop_vars("time")
    elif name == "no-mapping":
        del content["rain"].attrs["grid_mapping"]
    elif name == "levels":
        content["rain"] = content["rain"].expand_dims(level=[1, 2])
    elif name == "uneven":
        content = content.assign_coords(x=("x", [1.0, 3.0, 6.0], content["x"].attrs))
    elif name == "no-axis":
        content["y"].attrs = {"units": "km"}
    elif name == "coordinate-units":
        content["x"].attrs["units"] = "rad"
    elif name == "degrees-on-a-projection":
        content["x"].attrs["units"] = "degrees"
    elif name == "feet":
        content["crs"].attrs = {"crs_wkt": pyproj.CRS("+proj=laea +units=us-ft").to_wkt()}
    elif name == "rotated-pole":
        content = geographic()
        content["rain"].attrs["grid_mapping"] = "crs"
        content["crs"] = (
            (),
            np.int32(0),
            {
                "grid_mapping_name": "rotated_latitude_longitude",
                "grid_north_pole_latitude": 39.25,
                "grid_north_pole_longitude": -162.0,
            },
        )
    return content


@pytest.mark.parametrize(
    "name",
    [
        *("no-field", "two-fields", "no-time", "no-mapping", "levels", "uneven", "no-axis"),
        *("coordinate-units", "degrees-on-a-projection", "feet", "rotated-pole"),
    ],
)
def test_a_file_that_cannot_be_understood_is_a_frame_error(name):
    with pytest.raises(FrameError):
        read(broken(name))


@pytest.mark.parametrize("keep", [0, 4, 600, -100])
def test_a_truncated_file_is_a_frame_error(keep):
    for content in (netcdf4(dataset()), bytes(dataset().to_netcdf(engine="scipy"))):
        with pytest.raises(FrameError, match="fetch the file again"):
            read(content[:keep])


@pytest.mark.parametrize(
    "name", ["radar_202406010005.nc", "20240601T000500Z.nc4", "a-202406010005.nc.gz"]
)
def test_the_time_is_in_the_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (file,) = get_source("cf").find(str(tmp_path))
    assert file.valid_time == TIME
