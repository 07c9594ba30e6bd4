"""Forecasts: one immutable Zarr store per init_time and revision, complete or not there.

`{root}/forecasts/{product}/{YYYYMMDDTHHMMZ}.zarr` holds ``rain_rate([member,] lead_time, y, x)``.
A forecast made again, because a frame came late or was corrected, is a new revision beside it:
``….r2.zarr``. The older one stays readable and says that it is superseded. ``latest.json`` names
the newest. Stock ``xr.open_zarr(url)`` opens one. `pipelines.publishing` writes them.

Those of an old day lie together in one store (`pipelines.forecast_days`). What is here reads both,
and a period that has both, alike.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipelines import storage
from pipelines.errors import NotFoundError
from pipelines.forecast_days import PER_FORECAST, Day, find_day, find_days
from pipelines.grid import Grid
from pipelines.times import INIT_TIME_FORMAT, init_time_label, now, time_text, utc
from pipelines.units import LARGEST_MM_H

LATEST = "latest.json"
FIRST = 1
"""The revision that a reader had in time."""
MEMBER_ATTRS = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}
NAME = re.compile(r"(?P<init_time>\d{8}T\d{4}Z)(\.r(?P<revision>\d+))?\.zarr")


def folder_url(root: str, product: str) -> str:
    """Where the forecasts of a product are."""
    return storage.join(root, "forecasts", product)


def forecast_name(init_time: pd.Timestamp, revision: int = 1) -> str:
    """The store's name: ``20240601T0500Z.zarr``, later ``20240601T0500Z.r2.zarr``."""
    suffix = "" if revision == 1 else f".r{revision}"
    return f"{init_time_label(init_time)}{suffix}.zarr"


def forecast_url(root: str, product: str, init_time: pd.Timestamp, revision: int = 1) -> str:
    """Where a revision of the forecast of an init_time is."""
    return f"{folder_url(root, product)}/{forecast_name(init_time, revision)}"


def parse_name(name: str) -> tuple[pd.Timestamp, int] | None:
    """The init_time and revision that a store's name says; None where it is no forecast's."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    init_time = pd.to_datetime(match["init_time"], format=INIT_TIME_FORMAT, errors="coerce")
    return None if pd.isna(init_time) else (init_time.as_unit("ns"), int(match["revision"] or 1))


@dataclass(frozen=True, order=True)
class Published:
    """A complete forecast: of which init_time, which revision, and where.

    `url` is its own store, or the store of its `day`.
    """

    init_time: pd.Timestamp
    revision: int
    url: str
    day: Day | None = field(default=None, compare=False, repr=False)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Its global attributes; no pixels are read."""
        if self.day is not None:
            return self.day.forecast_attributes((self.init_time, self.revision))
        return forecast_attributes(self.url)

    def open(self) -> xr.Dataset:
        """It, lazily."""
        if self.day is not None:
            return self.day.open((self.init_time, self.revision))
        return xr.open_zarr(storage.zarr_store(self.url))


def forecast_attributes(url: str) -> dict[str, Any]:
    """A forecast's global attributes, from its root metadata alone."""
    return dict(storage.read_json(storage.join(url, storage.ROOT_METADATA))["attributes"])


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
                "units_metadata": "leap_seconds: none",
            },
        ),
        "valid_time": (
            "lead_time",
            (init_time + lead_time).to_numpy(),
            {
                "standard_name": "time",
                "long_name": "init_time + lead_time",
                "units_metadata": "leap_seconds: none",
            },
        ),
    }
    dims: tuple[str, ...] = ("lead_time", "y", "x")
    if "member" in rain_rate.dims:
        dims = ("member", *dims)
        numbers = np.arange(rain_rate.sizes["member"])
        coords["member"] = ("member", numbers, MEMBER_ATTRS)
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
        attrs={
            "Conventions": "CF-1.11",
            "title": "Squall precipitation nowcast",
            "history": f"{time_text(now())} forecast by squall {version('squall')}",
            **attrs,
        },
    )


def is_complete(url: str) -> bool:
    """Whether there is a complete store."""
    return storage.exists(f"{url}/{storage.ROOT_METADATA}")


def revisions(root: str, product: str, init_time: pd.Timestamp) -> list[Published]:
    """The complete forecasts of an init_time, the newest revision last."""
    day = find_day(folder_url(root, product), init_time)
    found = [] if day is None else _of_day(day, init_time, init_time)
    while True:
        revision = len(found) + 1
        url = forecast_url(root, product, init_time, revision)
        if not is_complete(url):
            return found
        found.append(Published(init_time, revision, url))


def is_published(root: str, product: str, init_time: pd.Timestamp) -> bool:
    """Whether an init_time has a complete forecast."""
    if is_complete(forecast_url(root, product, init_time)):
        return True
    day = find_day(folder_url(root, product), init_time)
    return day is not None and (init_time, 1) in day.rows


def latest_init_time(root: str, product: str) -> pd.Timestamp | None:
    """The init_time of the newest forecast, None where there is none."""
    url = f"{folder_url(root, product)}/{LATEST}"
    return utc(storage.read_json(url)["init_time"]) if storage.exists(url) else None


def published(
    root: str,
    product: str,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
) -> list[Published]:
    """All complete forecasts with start ≤ init_time ≤ end, by init_time and revision."""
    folder = folder_url(root, product)
    names = storage.names(folder)
    days = find_days(folder, start, end)
    found = {(one.init_time, one.revision): one for day in days for one in _of_day(day, start, end)}
    for name in names:
        key = parse_name(name)
        if key is None or key in found or not _within(key[0], start, end):
            continue
        if is_complete(f"{folder}/{name}"):
            found[key] = Published(*key, f"{folder}/{name}")
    return sorted(found.values())


def _of_day(day: Day, start: pd.Timestamp | None, end: pd.Timestamp | None) -> list[Published]:
    """The forecasts of a day with start ≤ init_time ≤ end, by init_time and revision."""
    return [
        Published(*key, day.url, day) for key in sorted(day.rows) if _within(key[0], start, end)
    ]


def _within(time: pd.Timestamp, start: pd.Timestamp | None, end: pd.Timestamp | None) -> bool:
    return (start is None or start <= time) and (end is None or time <= end)


def published_init_times(root: str, product: str) -> pd.DatetimeIndex:
    """The init_times of all complete forecasts, ascending."""
    times = dict.fromkeys(one.init_time for one in published(root, product))
    return pd.DatetimeIndex(list(times), name="init_time").as_unit("ns")


def known(of: Sequence[Published], at: pd.Timestamp | None = None) -> Published | None:
    """Of the revisions of an init_time the one that counts; at a time, the one that counted then.

    None where nothing was published by then.
    """
    for one in reversed(of):
        if at is None or utc(one.attributes["publish_time"]) <= at:
            return one
    return None


def open_forecast(
    root: str,
    product: str,
    init_time: pd.Timestamp,
    revision: int | None = None,
    *,
    known_at: pd.Timestamp | None = None,
) -> xr.Dataset:
    """One forecast, lazily: the newest revision, a given one, or the newest at `known_at` (UTC).

    Raises `NotFoundError` where the init_time has none.
    """
    there = revisions(root, product, init_time)
    if revision is not None:
        there = there[revision - 1 : revision] if revision > 0 else []
    chosen = known(there, known_at)
    if chosen is None:
        url = forecast_url(root, product, init_time, revision or 1)
        by_then = f" by {time_text(known_at)}" if known_at is not None else ""
        raise NotFoundError(
            "no such forecast",
            found=f"nothing complete at {storage.display(url)}{by_then}",
            expected="the init_time, and revision, of a published forecast",
            remedy="run `squall nowcast`, or list the folder above",
        )
    return chosen.open()


def open_forecasts(
    root: str,
    product: str,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    *,
    known_at: pd.Timestamp | None = None,
) -> xr.Dataset:
    """All forecasts of a product, lazily: rain_rate(init_time, [member,] lead_time, y, x), mm/h.

    The newest revision of each init_time from `start` to `end`; with `known_at` (UTC), the one that
    a reader would have had at that time. `valid_time` is 2-D; revision, model, quality and
    publish_time(init_time) say what each is. A forecast with fewer lead times than others is
    missing at the rest; one of fewer members, at the other members (a single forecast among
    ensembles is member 0). Raises `NotFoundError` where there is none.
    """
    by_time = itertools.groupby(published(root, product, start, end), lambda one: one.init_time)
    counts = [known(list(group), known_at) for _, group in by_time]
    chosen = [one for one in counts if one is not None]
    if not chosen:
        raise NotFoundError(
            "no forecasts",
            found=f"none at {storage.display(folder_url(root, product))}",
            expected="at least one published forecast",
            remedy="run `squall nowcast`, or check root and product (`squall doctor`)",
        )
    together = xr.concat(
        _as_ensembles(_opened(chosen)),
        dim="init_time",
        data_vars="all",
        coords=["valid_time", *PER_FORECAST],
        compat="override",
        join="outer",
        combine_attrs="override",
    )
    together = together.sortby("init_time")  # those of a day's two groups alternate
    together = together.transpose("init_time", "member", ..., missing_dims="ignore")
    return together.assign_coords(valid_time=_valid_time(together))


def _opened(chosen: Sequence[Published]) -> list[xr.Dataset]:
    """Forecasts, lazily, by init_time: those of a day store together, single ones each."""
    opened: list[xr.Dataset] = []
    for day, group in itertools.groupby(chosen, lambda one: one.day):
        if day is None:
            opened += map(_labelled, group)
        else:
            opened += day.open_all([(one.init_time, one.revision) for one in group])
    return opened


def _labelled(one: Published) -> xr.Dataset:
    """A forecast, lazily, with what differs from one to the next as coordinates."""
    forecast = one.open()
    told = {name: forecast.attrs.get(name, default) for name, default in PER_FORECAST.items()}
    forecast = forecast.drop_attrs(deep=False).set_coords("valid_time").assign_coords(told)
    return forecast.expand_dims("init_time")


def ensemble_mean(rain_rate: xr.DataArray) -> xr.DataArray:
    """The mean over members, where there are any; missing where any member is."""
    return rain_rate.mean("member", skipna=False) if "member" in rain_rate.dims else rain_rate


def _valid_time(forecasts: xr.Dataset) -> xr.Variable:
    """valid_time(init_time, lead_time), also at lead times that a forecast lacks."""
    times = forecasts["init_time"].variable + forecasts["lead_time"].variable
    return xr.Variable(times.dims, times.values, forecasts["valid_time"].attrs)


def _as_ensembles(forecasts: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Where some are ensembles, a single forecast becomes an ensemble of one."""
    ensembles = [one for one in forecasts if "member" in one.dims]
    if not ensembles:
        return list(forecasts)
    of_members = {name for one in ensembles for name in one if "member" in one[name].dims}
    member = xr.Variable("member", [0], ensembles[0]["member"].attrs)
    return [
        one
        if "member" in one.dims
        else one.assign(
            {name: one[name].expand_dims("member") for name in of_members.intersection(one)}
        ).assign_coords(member=member)
        for one in forecasts
    ]
