"""Publishing forecasts: each once, all or nothing, the newest known to all."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import xarray as xr

from pipelines import storage
from pipelines.errors import ExistsError, SquallError
from pipelines.forecast_days import find_day
from pipelines.forecasts import (
    LATEST,
    Published,
    folder_url,
    forecast_name,
    forecast_url,
    is_complete,
    parse_name,
    revisions,
)
from pipelines.lock import exclusive
from pipelines.once import add_attributes, publish_once
from pipelines.products import encodings
from pipelines.times import now, time_text


class CompactedError(SquallError):
    """A forecast for a day whose forecasts are in one store already."""


def publish(root: str, product: str, forecast: xr.Dataset) -> str:
    """Publish a forecast and return its URL. Readers see all of it or nothing.

    The first of an init_time is revision 1. Another one, by another model or from other inputs, is
    the next revision, and the older ones are marked as superseded; their data stays as it was.

    Raises `ExistsError` where that model's newest forecast of the init_time is from the same inputs
    (`model`, `inputs_sha256`): of several that race or try again one is one. Raises
    `CompactedError` where the day of the init_time is in one store already, which is immutable.
    """
    init_time = pd.Timestamp(forecast["init_time"].item())
    began = time.perf_counter()

    def stamp() -> dict[str, Any]:
        seconds = round(time.perf_counter() - began, 3)
        return {"publish_time": time_text(now("ms")), "seconds_publish": seconds}

    while True:
        earlier = revisions(root, product, init_time)
        _refuse_the_same(forecast, earlier)
        revision = earlier[-1].revision + 1 if earlier else 1
        _refuse_after_compaction(root, product, init_time)
        url = forecast_url(root, product, init_time, revision)
        if publish_once(forecast.assign_attrs(revision=revision), url, encodings(forecast), stamp):
            break
    mark_superseded(root, product, init_time)
    refresh_latest(root, product)
    return url


def _refuse_the_same(forecast: xr.Dataset, earlier: Sequence[Published]) -> None:
    for one in reversed(earlier):
        if one.attributes.get("model") != forecast.attrs.get("model"):
            continue
        if one.attributes.get("inputs_sha256") == forecast.attrs.get("inputs_sha256"):
            raise ExistsError(
                "this forecast is already published",
                found=storage.display(one.url),
                expected="no forecast for that init_time by that model from the same inputs",
                remedy="read the one that is there; forecasts are immutable",
            )
        return


def _refuse_after_compaction(root: str, product: str, init_time: pd.Timestamp) -> None:
    day = find_day(folder_url(root, product), init_time)
    if day is not None:
        raise CompactedError(
            f"no forecast can be added to {init_time:%Y-%m-%d}",
            found=f"init_time {time_text(init_time)}, and its day in {storage.display(day.url)}",
            expected="an init_time whose day is not compacted",
            remedy="publish it under another product or root, or raise retention.compact_after "
            "before such work",
        )


def mark_superseded(root: str, product: str, init_time: pd.Timestamp) -> int:
    """Have all revisions but the newest say which one counts instead; how many did not yet.

    A publisher that died between publishing and this leaves it to the next run.
    """
    earlier = revisions(root, product, init_time)
    marked = 0
    for one in earlier[:-1]:
        if one.day is None and "superseded_by" not in one.attributes:
            successor = earlier[one.revision]
            when = successor.attributes.get("publish_time", time_text(now("ms")))
            name = successor.url.rsplit("/", 1)[-1]
            add_attributes(one.url, {"superseded_by": name, "superseded_time": when})
            marked += 1
    return marked


def refresh_latest(root: str, product: str) -> None:
    """Have `latest.json` name the newest forecast there is."""
    url = f"{folder_url(root, product)}/{LATEST}"
    with exclusive(url, by="publisher"):
        there = sorted(
            filter(None, map(parse_name, storage.names(folder_url(root, product)))), reverse=True
        )
        for init_time, revision in there:
            if is_complete(forecast_url(root, product, init_time, revision)):
                name = forecast_name(init_time, revision)
                content = {"init_time": time_text(init_time), "forecast": name}
                if not storage.exists(url) or storage.read_json(url) != content:
                    storage.write_json(url, content)
                return
