"""A forecast with its products obeys CF: the IOOS compliance checker is the judge."""

import datetime as dt
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.forecast_export import write_netcdf
from pipelines.forecasts import forecast_dataset
from pipelines.grid import Grid
from pipelines.products import ProductSettings, encodings, with_products
from pipelines.skill_attributes import skill_attributes
from pipelines.sources import get_source
from pipelines.sources.synthetic import PROJECTION

ACCEPTED = (
    # CF 1.11, 8.1, takes unsigned integers too; the checker has not followed.
    "Variable is not of type byte, short, or int as required for different type",
    # CF 1.11, 7.3.4: a method over something that is no dimension any more has its standard name.
    "cell_methods name component realization does not match a dimension",
)
"""Warnings that are the checker's, or ours to have. Errors are never accepted."""
ATTRS = {
    "model": "persistence",
    "input_times": ["2024-06-01T04:55:00Z", "2024-06-01T05:00:00Z"],
    "input_age_seconds": [300.0, 0.0],
    "bridged_times": [],
    "revision": 1,
    **skill_attributes(None, "persistence", pd.Timestamp(0), dt.timedelta(0)),
    "recent_skill_lead_seconds": [300.0, 600.0],
    "recent_skill": [0.5, 0.25],
    "trust_horizon_seconds": 300.0,
}


@pytest.fixture(scope="module")
def suite():
    runner = pytest.importorskip("compliance_checker.runner")
    suite = runner.CheckSuite()
    suite.load_all_available_checkers()
    return suite


def complaints(suite, path):
    """Weight (3: an error) and text of everything that the checker has against a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = suite.load_dataset(str(path))
        try:
            results, crashed = suite.run_all(dataset, ["cf:1.11"])["cf:1.11"]
        finally:
            dataset.close()
    assert not crashed
    assert len(results) > 15, "the checker has checked"
    failed = [result for result in results if result.value[0] != result.value[1]]
    return [(result.weight, message) for result in failed for message in result.msgs]


def knmi_grid(radar_data):
    file = min((radar_data / "knmi").iterdir())
    return Grid.of(get_source("knmi").read(file.read_bytes()))


def grid_of(name, request):
    if name == "knmi":
        return knmi_grid(request.getfixturevalue("radar_data"))
    projection = {"synthetic": PROJECTION, "geographic": "EPSG:4326"}[name]
    pixel = 0.02 if name == "geographic" else 2000.0
    return Grid.from_corner(projection, 5.0, 52.0, (pixel, pixel), (16, 20))


def forecast_on(grid, members):
    shape = (*(() if members is None else (members,)), 12, *grid.shape)
    values = np.random.default_rng(5).gamma(0.5, 4, shape).astype("f4")
    values[..., 0, :] = np.nan
    rain_rate = xr.DataArray(
        values,
        dims=("lead_time", "y", "x") if members is None else ("member", "lead_time", "y", "x"),
        coords=grid.coords(lonlat=False)
        | {
            "lead_time": pd.timedelta_range("5min", periods=12, freq="5min"),
            "init_time": np.datetime64("2024-06-01T05:00", "ns"),
        },
    )
    return with_products(forecast_dataset(rain_rate, ATTRS), ProductSettings())


@pytest.mark.parametrize("members", [None, 3], ids=["deterministic", "ensemble"])
@pytest.mark.parametrize("name", ["synthetic", "geographic", "knmi"])
def test_a_forecast_with_products_has_no_error_and_no_other_warning(
    suite, tmp_path, request, name, members
):
    forecast = forecast_on(grid_of(name, request), members)
    assert ("exceedance_probability" in forecast) == (members is not None)
    path = tmp_path / "forecast.nc"
    write_netcdf(forecast, str(path), encodings(forecast))
    found = complaints(suite, path)
    assert [text for weight, text in found if weight >= 3] == []
    assert [text for _, text in found if not any(part in text for part in ACCEPTED)] == []


def test_the_checker_sees_a_wrong_unit(suite, tmp_path):
    forecast = forecast_on(grid_of("synthetic", None), None)
    forecast["rain_amount_30min"].attrs["units"] = "kg m-2"
    path = tmp_path / "forecast.nc"
    write_netcdf(forecast, str(path), encodings(forecast))
    errors = [text for weight, text in complaints(suite, path) if weight >= 3]
    assert any("rain_amount_30min" in text for text in errors)
