"""Exports of a forecast: every reader finds what was published, or nothing at all."""

import datetime as dt
import sys
import time
import uuid

import netCDF4
import numpy as np
import pandas as pd
import pyproj
import pytest
import xarray as xr

from pipelines import cog, forecast_export, storage
from pipelines.errors import ExistsError, NotFoundError, SquallError, UnknownNameError
from pipelines.forecast_export import export_forecast
from pipelines.forecasts import forecast_dataset, open_forecast
from pipelines.grid import Grid
from pipelines.once import publish_once
from pipelines.products import ProductSettings, encodings, with_products
from pipelines.publishing import publish
from pipelines.skill_attributes import skill_attributes
from pipelines.sources import get_source
from pipelines.sources.synthetic import PROJECTION

pytest.importorskip("h5netcdf")

INIT_TIME = pd.Timestamp("2024-06-01T05:00")
ATTRS = {
    "model": "persistence",
    "input_times": ["2024-06-01T04:55:00Z", "2024-06-01T05:00:00Z"],
    "input_age_seconds": [300.0, 0.0],
    "bridged_times": [],
    "input_window": 2,
    "seconds_predict": 0.25,
    "fallback_reason": "",
    **skill_attributes(None, "persistence", INIT_TIME, dt.timedelta(0)),
    "recent_skill_lead_seconds": [300.0, 600.0],
    "recent_skill": [0.5, 0.25],
    "trust_horizon_seconds": 300.0,
    "recent_skill_advection": [],
}
LAEA = Grid.from_corner(PROJECTION, -8000.0, 8000.0, (2000.0, 1000.0), (8, 10))
DEGREES = Grid.from_corner("EPSG:4326", 5.0, 52.0, (0.02, 0.01), (8, 10))


def made(grid=LAEA, *, members=None, lead_times=12, init_time=INIT_TIME, settings=None):
    """A forecast with products: gamma-distributed rain, the first row unknown."""
    shape = (*(() if members is None else (members,)), lead_times, *grid.shape)
    values = np.random.default_rng(11).gamma(0.5, 6, shape).astype("f4")
    values[..., 0, :] = np.nan
    rain_rate = xr.DataArray(
        values,
        dims=("lead_time", "y", "x") if members is None else ("member", "lead_time", "y", "x"),
        coords=grid.coords(lonlat=False)
        | {
            "lead_time": pd.timedelta_range("5min", periods=lead_times, freq="5min"),
            "init_time": init_time.to_datetime64(),
        },
    )
    return with_products(forecast_dataset(rain_rate, ATTRS), settings or ProductSettings())


@pytest.fixture
def published(tmp_path):
    """Publish a forecast, packed with its products, as product ``test``; root and what opens."""

    def put(forecast):
        root = str(tmp_path / "root")
        label = pd.Timestamp(forecast["init_time"].item()).strftime("%Y%m%dT%H%MZ")
        url = storage.join(root, "forecasts", "test", f"{label}.zarr")
        assert publish_once(forecast, url, encodings(forecast), dict)
        return root, xr.open_zarr(url).load()

    return put


# netCDF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [None, 3])
def test_a_netcdf_file_is_the_forecast_bit_for_bit(tmp_path, published, members):
    root, stored = published(made(members=members))
    target = str(tmp_path / "to" / "forecast.nc")
    exported = export_forecast(root, "test", target, "netcdf", init_time=INIT_TIME)
    assert exported.urls == (f"file://{target}",)
    with xr.open_dataset(target) as opened:  # stock: no engine named
        xr.testing.assert_equal(opened.load(), stored)
        assert set(opened.coords) == set(stored.coords)
        for name in stored.variables:
            assert opened[name].attrs == stored[name].attrs, name
    with (
        xr.open_dataset(target, mask_and_scale=False) as packed,
        xr.open_zarr(
            f"{root}/forecasts/test/20240601T0500Z.zarr", mask_and_scale=False
        ) as stored_packed,
    ):
        for name in stored_packed.data_vars:
            assert packed[name].dtype.kind == "u"
            np.testing.assert_array_equal(packed[name], stored_packed[name])


def test_the_netcdf_library_reads_every_attribute_and_the_file_is_deflated(tmp_path, published):
    root, _ = published(made())
    target = tmp_path / "forecast.nc"
    export_forecast(root, "test", str(target), "netcdf", init_time=INIT_TIME)
    with netCDF4.Dataset(target) as file:
        attrs = {name: file.getncattr(name) for name in file.ncattrs()}
        assert list(attrs["input_times"]) == ATTRS["input_times"]
        assert list(attrs["input_age_seconds"]) == [300.0, 0.0]
        assert len(attrs["bridged_times"]) == 0
        assert attrs["input_window"] == 2
        assert attrs["fallback_reason"] == ""
        assert list(attrs["recent_skill"]) == [0.5, 0.25]
        assert (attrs["trust_horizon_seconds"], len(attrs["recent_skill_advection"])) == (300, 0)
        assert "exported by squall" in attrs["history"].splitlines()[-1]
        assert "20240601T0500Z.zarr" in attrs["history"]
        assert file["rain_rate"].filters()["zlib"]
        assert file["rain_rate"].chunking() == [1, 8, 10]
        assert "_FillValue" not in file["x"].ncattrs()


# GeoTIFF -----------------------------------------------------------------------------------------


def knmi(request):
    file = min((request.getfixturevalue("radar_data") / "knmi").iterdir())
    return Grid.of(get_source("knmi").read(file.read_bytes()))


@pytest.mark.parametrize("name", ["laea", "degrees", "knmi"])
def test_a_geotiff_has_the_values_where_they_are_on_earth(tmp_path, published, request, name):
    rasterio = pytest.importorskip("rasterio")
    grid = knmi(request) if name == "knmi" else {"laea": LAEA, "degrees": DEGREES}[name]
    root, stored = published(made(grid, lead_times=3))
    target = tmp_path / "rain.tif"
    export_forecast(root, "test", str(target), "cog", init_time=INIT_TIME, variables=["rain_rate"])
    with rasterio.open(target) as file:
        np.testing.assert_array_equal(file.read(), stored["rain_rate"].astype("f4"))
        assert np.isnan(file.nodata)
        assert file.read_masks(1)[0].max() == 0, "the row that is not known"
        assert file.read_masks(1)[1:].min() == 255
        found = np.array([file.xy(row, column) for row, column in ((0, 0), (7, 9))])
        expected = [[grid.x[0], grid.y[0]], [grid.x[9], grid.y[7]]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.descriptions == tuple(
            f"2024-06-01T05:{minute:02}:00Z" for minute in (5, 10, 15)
        )
        assert file.units == ("mm h-1",) * 3
        assert file.tags(2)["lead_time"] == "10min"
        assert file.tags()["model"] == "persistence"
        assert file.tags()["init_time"] == "2024-06-01T05:00:00Z"
        theirs = pyproj.CRS(file.crs.to_wkt())
    x, y = grid.x[[0, -1]], grid.y[[0, -1]]
    to_lonlat = pyproj.Transformer.from_crs(theirs, theirs.geodetic_crs, always_xy=True)
    np.testing.assert_allclose(to_lonlat.transform(x, y), grid.lonlat(x, y), atol=1e-7)


def test_a_geotiff_is_tiled_with_overviews_by_the_mean_of_what_is_known(tmp_path, published):
    rasterio = pytest.importorskip("rasterio")
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (600, 700))
    root, stored = published(made(grid, lead_times=1))
    target = tmp_path / "rain.tif"
    export_forecast(root, "test", str(target), "cog", init_time=INIT_TIME)
    with rasterio.open(target) as file:
        assert file.block_shapes == [(256, 256)]
        assert file.overviews(1) == [2, 4]
    with rasterio.open(target, overview_level=0) as file:
        overview = file.read(1)
    field = stored["rain_rate"].values[0].astype("f4")
    assert overview.shape == (300, 350)
    np.testing.assert_allclose(overview[0], field[1].reshape(350, 2).mean(axis=1), rtol=1e-5)
    means = field.reshape(300, 2, 350, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(overview[1:], means[1:], rtol=1e-5)


def test_a_folder_has_a_geotiff_for_every_variable_threshold_and_member(tmp_path, published):
    rasterio = pytest.importorskip("rasterio")
    settings = ProductSettings(accumulations=("15min",), thresholds_mm_h=(0.1, 5))
    root, stored = published(made(members=2, lead_times=3, settings=settings))
    target = tmp_path / "tiffs"
    exported = export_forecast(root, "test", str(target), "cog", init_time=INIT_TIME)
    names = {
        *("rain_rate_member_0", "rain_rate_member_1", "rain_amount_15min"),
        *("exceedance_probability_threshold_0.1", "exceedance_probability_threshold_5"),
    }
    expected = {f"20240601T0500Z_{name}.tif" for name in names}
    assert {path.name for path in target.iterdir()} == expected
    assert {url.rsplit("/", 1)[1] for url in exported.urls} == expected
    assert str(exported).endswith(f"export: {target} (5 files)")
    with rasterio.open(target / "20240601T0500Z_exceedance_probability_threshold_5.tif") as file:
        share = stored["exceedance_probability"].sel(threshold=5).astype("f4")
        np.testing.assert_array_equal(file.read(), share)
    with rasterio.open(target / "20240601T0500Z_rain_rate_member_1.tif") as file:
        np.testing.assert_array_equal(file.read(), stored["rain_rate"][1].astype("f4"))


def test_one_file_takes_one_field_and_the_error_says_how(tmp_path, published):
    root, _ = published(made())
    with pytest.raises(SquallError, match=r"rain_amount_15min, .*rain_rate; .*--variable"):
        export_forecast(root, "test", str(tmp_path / "a.tif"), "cog", init_time=INIT_TIME)
    assert not (tmp_path / "a.tif").exists()


# MLWP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("grid", [LAEA, DEGREES], ids=["projected", "geographic"])
@pytest.mark.parametrize("ending", ["zarr", "nc"])
def test_an_mlwp_dataset_obeys_every_rule_of_the_specification(
    tmp_path, published, members, grid, ending
):
    root, stored = published(made(grid, members=members))
    target = str(tmp_path / f"mlwp.{ending}")
    export_forecast(root, "test", target, "mlwp", init_time=INIT_TIME)
    open_it = xr.open_zarr if ending == "zarr" else xr.open_dataset
    with open_it(target) as opened:
        dataset = opened.load()
    space = {"xc", "yc"} if grid is LAEA else {"longitude", "latitude"}
    attrs = {str(name): dataset[name].attrs for name in dataset.coords}
    # time_coordinate (forecast) 3.1, 3.2
    assert {"reference_time", "lead_time"} <= set(dataset.dims)
    assert {"reference_time", "lead_time"} <= set(dataset.coords)
    # 4
    assert attrs["reference_time"]["standard_name"] in {"forecast_reference_time", "time"}
    assert attrs["lead_time"]["standard_name"] == "forecast_period"
    assert attrs["lead_time"]["units"] in {"s", "seconds", "h", "hours"}
    assert attrs["valid_time"]["standard_name"] == "time"
    # spatial_coordinate (grid) 3.1, 3.2
    assert space <= set(dataset.dims)
    assert {"longitude", "latitude"} <= set(dataset.coords)
    # 3.4: of other dimensions only `member`
    known = space | {"reference_time", "lead_time"}
    assert set(dataset.dims) == (known if members is None else known | {"member"})
    # 4
    for name, unit in (("longitude", "degrees_east"), ("latitude", "degrees_north")):
        assert (attrs[name]["standard_name"], attrs[name]["units"]) == (name, unit)
    for name in {"xc", "yc"} & space:
        assert attrs[name]["standard_name"] == f"projection_{name[0]}_coordinate"
        assert attrs[name]["units"] in {"m", "meter", "metre"}
    # uncertainty 3.1, 3.2, 4
    if members is not None:
        assert {"member"} <= set(dataset.dims) & set(dataset.coords)
        assert attrs["member"]["standard_name"] == "realization"
    # README: the traits that a validator takes from the attributes
    uncertainty = "deterministic" if members is None else "ensemble"
    assert dataset.attrs["mlwp_time_trait"] == "forecast"
    assert dataset.attrs["mlwp_space_trait"] == "grid"
    assert dataset.attrs["mlwp_uncertainty_trait"] == uncertainty

    assert dataset["lead_time"].values.tolist() == [300 * k for k in range(1, 13)]
    assert dataset["reference_time"].values == [INIT_TIME.to_datetime64()]
    np.testing.assert_array_equal(dataset["valid_time"], stored["valid_time"].values[None])
    for name in ("rain_rate", "rain_amount_30min"):
        np.testing.assert_array_equal(dataset[name].values[0], stored[name].values)
    assert "exceedance_probability" not in dataset
    assert dataset.attrs["model"] == "persistence"


# Which, and where to ------------------------------------------------------------------------------


def test_the_newest_is_the_default_and_a_revision_can_be_named(tmp_path):
    root = str(tmp_path / "root")
    for init_time, inputs in (
        (INIT_TIME + pd.Timedelta("5min"), "a"),
        (INIT_TIME, "a"),
        (INIT_TIME, "b"),
    ):
        forecast = made(lead_times=2, init_time=init_time)[["rain_rate"]]
        publish(root, "test", forecast.assign_attrs(inputs_sha256=inputs))

    def of(**chosen):
        target = str(tmp_path / f"{uuid.uuid4().hex}.nc")
        exported = export_forecast(root, "test", target, "netcdf", **chosen)
        with xr.open_dataset(target) as opened:
            return exported.forecast, opened.attrs["inputs_sha256"]

    assert of() == ("20240601T0505Z.zarr", "a")
    assert of(init_time=INIT_TIME) == ("20240601T0500Z.r2.zarr", "b")
    assert of(init_time=INIT_TIME, revision=1) == ("20240601T0500Z.zarr", "a")
    with pytest.raises(NotFoundError, match="no such forecast"):
        of(init_time=INIT_TIME, revision=3)
    with pytest.raises(NotFoundError, match="no forecast of other"):
        export_forecast(root, "other", str(tmp_path / "a.nc"), "netcdf")


def test_an_unknown_variable_names_the_nearest(tmp_path, published):
    root, _ = published(made())
    with pytest.raises(UnknownNameError, match="did you mean 'rain_amount_15min'"):
        export_forecast(
            root,
            "test",
            str(tmp_path / "a.nc"),
            "netcdf",
            init_time=INIT_TIME,
            variables=["rain_amount_15"],
        )


TARGETS = {"netcdf": "a.nc", "cog": "tiffs", "mlwp": "a.zarr"}


@pytest.mark.parametrize("format", list(TARGETS))
def test_what_is_at_the_target_stays(tmp_path, published, format):
    root, _ = published(made())
    target = tmp_path / TARGETS[format]
    target.mkdir()
    (target / "letter.txt").write_text("dear")
    with pytest.raises(ExistsError, match=TARGETS[format]):
        export_forecast(root, "test", str(target), format, init_time=INIT_TIME)
    assert [path.name for path in target.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("format", list(TARGETS))
def test_an_export_that_dies_leaves_nothing(tmp_path, published, format, monkeypatch):
    pytest.importorskip("rasterio")
    root, _ = published(made())
    real, calls = open_forecast, []

    def dying(*chosen):
        """The forecast, whose fourth read of pixels fails while the third is still under way."""

        def read(values):
            calls.append(1)
            if len(calls) > 3:
                raise KeyboardInterrupt
            if len(calls) == 3:
                time.sleep(0.5)
            return values

        forecast = real(*chosen).chunk(lead_time=1)
        return forecast.assign(
            {
                name: variable.copy(data=variable.data.map_blocks(read, meta=variable.data._meta))
                for name, variable in forecast.data_vars.items()
            }
        )

    monkeypatch.setattr(forecast_export, "open_forecast", dying)
    to = tmp_path / "to"
    with pytest.raises(KeyboardInterrupt):
        export_forecast(root, "test", str(to / TARGETS[format]), format, init_time=INIT_TIME)
    assert len(calls) > 3
    time.sleep(0.7)  # whatever still ran has written by now
    assert not to.exists() or not list(to.iterdir())


@pytest.mark.parametrize("name", ["a.nc", "a.tif", "a.zarr"])
def test_an_object_store_gets_the_same(tmp_path, published, name):
    root, stored = published(made(lead_times=2))
    target = f"memory://{uuid.uuid4().hex}/{name}"
    format = {"nc": "netcdf", "tif": "cog", "zarr": "mlwp"}[name[2:]]
    how = {"init_time": INIT_TIME, "variables": ["rain_rate"]}
    assert export_forecast(root, "test", target, format, **how).urls == (target,)
    with pytest.raises(ExistsError):
        export_forecast(root, "test", target, format, **how)
    if name == "a.zarr":
        opened = xr.open_zarr(target)["rain_rate"].values[0]
        np.testing.assert_array_equal(opened, stored["rain_rate"].values)
        return
    export_forecast(root, "test", str(tmp_path / name), format, **how)
    if name == "a.nc":
        (tmp_path / "back.nc").write_bytes(storage.read_bytes(target))
        with xr.open_dataset(tmp_path / "back.nc") as opened:
            np.testing.assert_array_equal(opened["rain_rate"], stored["rain_rate"])
    else:
        rasterio = pytest.importorskip("rasterio")
        with rasterio.MemoryFile(storage.read_bytes(target)) as memory, memory.open() as file:
            np.testing.assert_array_equal(file.read(), stored["rain_rate"].astype("f4"))


def test_a_folder_of_geotiffs_is_not_put_into_an_object_store(published):
    root, _ = published(made())
    target = f"memory://{uuid.uuid4().hex}/tiffs"
    with pytest.raises(SquallError, match="object store"):
        export_forecast(root, "test", target, "cog", init_time=INIT_TIME)
    assert not storage.exists(target)


@pytest.mark.parametrize(("format", "package"), [("netcdf", "h5netcdf"), ("cog", "rasterio")])
def test_without_its_package_the_error_names_the_extra(
    tmp_path, published, monkeypatch, format, package
):
    root, _ = published(made())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SquallError, match=r"pip install 'squall\[formats\]'"):
        export_forecast(root, "test", str(tmp_path / "a"), format, init_time=INIT_TIME)
    assert not (tmp_path / "a").exists()


def test_a_geotiff_is_written_one_lead_time_at_a_time(tmp_path):
    pytest.importorskip("rasterio")
    forecast = made(lead_times=5).chunk(lead_time=1)
    read = []

    def frame(values, block_info=None):
        read.append(block_info[0]["chunk-location"][0])
        return values

    rain_rate = forecast["rain_rate"]
    lazy = rain_rate.copy(data=rain_rate.data.map_blocks(frame, meta=rain_rate.data._meta))
    cog.write_cog(lazy, tmp_path / "a.tif", {})
    assert read == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
