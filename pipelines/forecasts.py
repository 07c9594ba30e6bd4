"""Forecasts: one immutable Zarr store per init_time, complete or not there.

`{root}/forecasts/{product}/{YYYYMMDDTHHMMZ}.zarr` holds ``rain_rate([member,] lead_time, y, x)``;
``latest.json`` beside them names the newest. Stock ``xr.open_zarr(url)`` opens one.
"""

import numpy as np
import pandas as pd
import xarray as xr

from pipelines import storage
from pipelines.archive import PACKING, TIME_ENCODING
from pipelines.errors import ExistsError, NotFoundError
from pipelines.grid import Grid
from pipelines.times import INIT_TIME_FORMAT, init_time_label, now, time_text
from pipelines.units import LARGEST_MM_H

LATEST = "latest.json"
CHUNK = 256


def forecast_url(root: str, product: str, init_time: pd.Timestamp) -> str:
    """Where the forecast of an init_time is."""
    return storage.join(root, "forecasts", product, f"{init_time_label(init_time)}.zarr")


def forecast_dataset(rain_rate: xr.DataArray, attrs: dict[str, object]) -> xr.Dataset:
    """A forecast ready to publish, with CF coordinates.

    Parameters
    ----------
    rain_rate : ([member,] lead_time, y, x) mm/h with a scalar coordinate init_time and a grid
    attrs : what a reader should know: model, input times, quality
    """
    init_time = pd.Timestamp(rain_rate["init_time"].item())
    lead_time = pd.TimedeltaIndex(rain_rate["lead_time"].values)
    coords = Grid.of(rain_rate).coords() | {
        "lead_time": (
            "lead_time",
            lead_time,
            {"standard_name": "forecast_period", "long_name": "time since init_time"},
        ),
        "init_time": (
            (),
            init_time.to_datetime64(),
            {
                "standard_name": "forecast_reference_time",
                "long_name": "time of the newest input frame",
            },
        ),
        "valid_time": (
            "lead_time",
            (init_time + lead_time).to_numpy(),
            {"standard_name": "time", "long_name": "init_time + lead_time"},
        ),
    }
    dims: tuple[str, ...] = ("lead_time", "y", "x")
    if "member" in rain_rate.dims:
        dims = ("member", *dims)
        numbers = np.arange(rain_rate.sizes["member"])
        coords["member"] = ("member", numbers, {"standard_name": "realization"})
    variable = xr.Variable(
        dims,
        rain_rate.transpose(*dims).clip(0, LARGEST_MM_H).data,
        {
            "standard_name": "rainfall_rate",
            "long_name": "forecast rain rate",
            "units": "mm h-1",
            "grid_mapping": "crs",
        },
    )
    return xr.Dataset(
        {"rain_rate": variable},
        coords=coords,
        attrs={"Conventions": "CF-1.11", "title": "Squall precipitation nowcast", **attrs},
    )


def publish(root: str, product: str, forecast: xr.Dataset) -> str:
    """Publish a forecast and return its URL. Readers see all of it or nothing.

    Raises `ExistsError` where the init_time already has one: forecasts are immutable. `latest.json`
    moves only forward.
    """
    init_time = pd.Timestamp(forecast["init_time"].item())
    url = forecast_url(root, product, init_time)
    if is_published(root, product, init_time):
        raise ExistsError(
            "this forecast is already published",
            found=storage.display(url),
            expected="no forecast for that init_time",
            remedy="read the one that is there; forecasts are immutable",
        )
    forecast = forecast.assign_attrs(publish_time=time_text(now()))
    rows, columns = forecast["y"].size, forecast["x"].size
    chunks: tuple[int, ...] = (1, min(CHUNK, rows), min(CHUNK, columns))
    if "member" in forecast.dims:
        chunks = (1, *chunks)
    storage.publish_store(
        forecast,
        url,
        encoding={
            "rain_rate": PACKING | {"chunks": chunks},
            "init_time": TIME_ENCODING,
            "valid_time": TIME_ENCODING,
            "lead_time": {"units": "seconds", "dtype": "int64"},
        },
    )
    newest = latest_init_time(root, product)
    if newest is None or init_time > newest:
        storage.write_json(
            storage.join(root, "forecasts", product, LATEST),
            {"init_time": time_text(init_time), "forecast": f"{init_time_label(init_time)}.zarr"},
        )
    return url


def is_published(root: str, product: str, init_time: pd.Timestamp) -> bool:
    """Whether an init_time has a complete forecast."""
    return storage.exists(f"{forecast_url(root, product, init_time)}/{storage.ROOT_METADATA}")


def latest_init_time(root: str, product: str) -> pd.Timestamp | None:
    """The init_time of the newest forecast, None where there is none."""
    url = storage.join(root, "forecasts", product, LATEST)
    if not storage.exists(url):
        return None
    return pd.Timestamp(storage.read_json(url)["init_time"]).tz_localize(None).as_unit("ns")


def published_init_times(root: str, product: str) -> pd.DatetimeIndex:
    """The init_times of all complete forecasts, ascending."""
    names = storage.names(storage.join(root, "forecasts", product))
    stems = [name.removesuffix(".zarr") for name in names if name.endswith(".zarr")]
    times = pd.DatetimeIndex(
        pd.to_datetime(stems, format=INIT_TIME_FORMAT, errors="coerce"), name="init_time"
    ).dropna()
    return times[[is_published(root, product, time) for time in times]].as_unit("ns")


def open_forecast(root: str, product: str, init_time: pd.Timestamp) -> xr.Dataset:
    """One forecast, lazily; raises `NotFoundError` where the init_time has none."""
    if not is_published(root, product, init_time):
        raise NotFoundError(
            "no such forecast",
            found=f"nothing complete at {storage.display(forecast_url(root, product, init_time))}",
            expected="the init_time of a published forecast",
            remedy="run `squall nowcast`, or list the folder above",
        )
    return xr.open_zarr(storage.zarr_store(forecast_url(root, product, init_time)))


def open_forecasts(root: str, product: str) -> xr.Dataset:
    """All forecasts of a product, lazily: rain_rate(init_time, [member,] lead_time, y, x), mm/h.

    `valid_time` is 2-D. A forecast with fewer lead times than others is missing at the rest; one of
    fewer members, at the other members (a single forecast among ensembles is member 0).
    Raises `NotFoundError` where the product has none.
    """
    init_times = published_init_times(root, product)
    if len(init_times) == 0:
        raise NotFoundError(
            "no forecasts",
            found=f"none at {storage.display(storage.join(root, 'forecasts', product))}",
            expected="at least one published forecast",
            remedy="run `squall nowcast`, or check root and product (`squall doctor`)",
        )
    forecasts = [open_forecast(root, product, time) for time in init_times]
    if any("member" in forecast.dims for forecast in forecasts):
        forecasts = [
            forecast if "member" in forecast.dims else _as_ensemble(forecast)
            for forecast in forecasts
        ]
    return xr.concat(
        [forecast.drop_attrs(deep=False).set_coords("valid_time") for forecast in forecasts],
        dim="init_time",
        data_vars="all",
        coords=["valid_time"],
        compat="override",
        join="outer",
        combine_attrs="override",
    )


def ensemble_mean(rain_rate: xr.DataArray) -> xr.DataArray:
    """The mean over members, where there are any; missing where any member is."""
    return rain_rate.mean("member", skipna=False) if "member" in rain_rate.dims else rain_rate


def _as_ensemble(forecast: xr.Dataset) -> xr.Dataset:
    """A single forecast as an ensemble of one."""
    member = xr.DataArray([0], dims="member", attrs={"standard_name": "realization"})
    return forecast.assign(rain_rate=forecast["rain_rate"].expand_dims(member=member))
