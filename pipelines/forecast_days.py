"""Old forecasts, a whole day of init_times in one immutable store: its layout, and reading it.

`{root}/forecasts/{product}/days/{YYYYMMDD}.zarr` holds ``rain_rate(init_time, [member,] lead_time,
y, x)``, and every other variable that a forecast had, of the newest revision of each init_time.
Stock ``xr.open_zarr(url)`` opens it; ``xr.open_zarr(url, group="superseded")`` gives the older
revisions in the same form, an init_time as often as it has them.

The pixels are the integers that were published. A forecast with fewer lead times, members or
variables than others of its day is missing there. What it had, and its global attributes, is in
``forecast(init_time)``, as JSON, so that it reads back as it was. The root's attribute
``forecasts`` names all revisions of each init_time: what is there is known without opening arrays.

A single store that the day holds too is only left over, and the day counts. `pipelines.retention`
makes these stores.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipelines import storage
from pipelines.times import INIT_TIME_FORMAT

FOLDER = "days"
SUPERSEDED = "superseded"
INDEX = "forecasts"
"""The root's attribute: init_time label → its revisions."""
FORECAST = "forecast"
"""The variable that says of each forecast what it was."""
PER_FORECAST = {"revision": 1, "model": "", "quality": "", "publish_time": ""}
"""What each forecast says of itself that `open_forecasts` keeps, and what stands for nothing."""
NAME = re.compile(r"\d{8}\.zarr")
DAY = pd.Timedelta("1D")

Key = tuple[pd.Timestamp, int]
"""A forecast's init_time and revision."""


def day_url(folder: str, init_time: pd.Timestamp) -> str:
    """Where the day of an init_time is, or would be, in a product's folder of forecasts."""
    return f"{folder}/{FOLDER}/{init_time:%Y%m%d}.zarr"


def find_day(folder: str, init_time: pd.Timestamp) -> "Day | None":
    """The complete day store that an init_time belongs into, None where there is none."""
    url = day_url(folder, init_time)
    return Day(url) if storage.exists(storage.join(url, storage.ROOT_METADATA)) else None


def find_days(
    folder: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
) -> list["Day"]:
    """The complete day stores of days that reach into start … end, ascending."""
    found = []
    for name in filter(NAME.fullmatch, storage.names(f"{folder}/{FOLDER}")):
        date = pd.to_datetime(name.removesuffix(".zarr"), format="%Y%m%d", errors="coerce")
        if pd.isna(date) or (start is not None and date + DAY <= start):
            continue
        if (end is None or date <= end) and (day := find_day(folder, date)) is not None:
            found.append(day)
    return found


@dataclass(frozen=True)
class Day:
    """A complete day store."""

    url: str

    @property
    def date(self) -> pd.Timestamp:
        """The day: its 00:00 UTC."""
        return pd.Timestamp(self.url.rsplit("/", 1)[-1].removesuffix(".zarr")).as_unit("ns")

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Its global attributes; nothing else is read."""
        return dict(storage.read_json(storage.join(self.url, storage.ROOT_METADATA))["attributes"])

    @cached_property
    def rows(self) -> dict[Key, tuple[bool, int]]:
        """Every forecast's place: whether among the superseded, and its row there."""
        told = sorted(self.attributes[INDEX].items())
        times = pd.to_datetime([label for label, _ in told], format=INIT_TIME_FORMAT).as_unit("ns")
        newest = [(time, max(revisions)) for time, (_, revisions) in zip(times, told, strict=True)]
        older = [
            (time, revision)
            for time, (_, revisions) in zip(times, told, strict=True)
            for revision in sorted(revisions)[:-1]
        ]
        return {key: (False, row) for row, key in enumerate(newest)} | {
            key: (True, row) for row, key in enumerate(older)
        }

    def revisions(self, init_time: pd.Timestamp) -> list[int]:
        """The revisions of an init_time, ascending; none where the day has none of it."""
        return sorted(revision for time, revision in self.rows if time == init_time)

    def forecast_attributes(self, key: Key) -> dict[str, Any]:
        """A forecast's global attributes."""
        return dict(self._told(key)["attributes"])

    def open(self, key: Key) -> xr.Dataset:
        """One forecast, lazily, as it was."""
        chosen = self._select([key], superseded=self.rows[key][0])
        attrs = self.forecast_attributes(key)
        attrs.pop("coordinates", None)  # xarray's own note, in files only
        return chosen.isel(init_time=0).drop_vars(PER_FORECAST).assign_attrs(attrs)

    def open_all(self, keys: Sequence[Key]) -> list[xr.Dataset]:
        """Some of its forecasts, lazily, by init_time: the newest ones, then superseded ones.

        Lead times, members and variables that none of them has are left out.
        """
        by_place = {False: list[Key](), True: list[Key]()}
        for key in keys:
            by_place[self.rows[key][0]].append(key)
        return [
            self._select(chosen, superseded=superseded)
            for superseded, chosen in by_place.items()
            if chosen
        ]

    def _select(self, keys: Sequence[Key], *, superseded: bool) -> xr.Dataset:
        dataset = self._superseded if superseded else self._newest
        told = [self._told(key) for key in keys]
        labels = {
            dim: sorted({position for one in told for position in one["labels"].get(dim, ())})
            for dim in {dim for one in told for dim in one["labels"]}
        }
        whole = all(len(at) == dataset.sizes[dim] for dim, at in labels.items())
        dataset = dataset.isel(init_time=[self.rows[key][1] for key in keys])
        dataset = dataset if whole else dataset.isel(labels)
        if "member" in dataset.dims and "member" not in labels:  # single forecasts, as member 0
            dataset = dataset.isel(member=0, drop=True)
        kept = {*PER_FORECAST, *(name for one in told for name in one["variables"])}
        return dataset.drop_vars([name for name in dataset.variables if name not in kept])

    def _told(self, key: Key) -> dict[str, Any]:
        superseded, row = self.rows[key]
        told = self._told_by_superseded if superseded else self._told_by_newest
        return dict(told[row])

    @cached_property
    def _newest(self) -> xr.Dataset:
        return _opened(self.url, None)

    @cached_property
    def _superseded(self) -> xr.Dataset:
        return _opened(self.url, SUPERSEDED)

    @cached_property
    def _told_by_newest(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self._newest[FORECAST].values]

    @cached_property
    def _told_by_superseded(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self._superseded[FORECAST].values]


def _opened(url: str, group: str | None) -> xr.Dataset:
    """A group of a day store, lazily; what it says of each forecast is read."""
    dataset = xr.open_zarr(storage.zarr_store(url), group=group).drop_attrs(deep=False)
    told = {name: ("init_time", np.array(dataset[name].values.tolist())) for name in PER_FORECAST}
    return dataset.assign_coords(told)
