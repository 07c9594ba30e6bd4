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


def publish(root: str, product: str, forecast: xr.Dataset, *, once: bool = False) -> str:
    """Publish a forecast and return its URL. Readers see all of it or nothing.

    The first of an init_time is revision 1. Another one, by another model or from other inputs, is
    the next revision, and the older ones are marked as superseded; their data stays as it was.

    Raises `ExistsError` where that model's newest forecast of the init_time is from the same inputs
    (`model`, `inputs_sha256`): of several that race or try again one is published. With `once`,
    where the init_time has any forecast. Raises `CompactedError` where the day of the init_time is
    in one store already, which is immutable.
    """
    init_time = pd.Timestamp(forecast["init_time"].item())
    began = time.perf_counter()

    def stamp() -> dict[str, Any]:
        seconds = round(time.perf_counter() - began, 3)
        return {"publish_time": time_text(now("ms")), "seconds_publish": seconds}

    while True:
        earlier = revisions(root, product, init_time)
        same = earlier[-1] if once and earlier else _the_same(forecast, earlier)
        if same is not None:
            _settle(root, product, init_time)  # whoever published it may have died before that
            raise ExistsError(
                "this forecast is already published",
                found=storage.display(same.url),
                expected="no forecast for that init_time by that model from the same inputs",
                remedy="read the one that is there; forecasts are immutable",
            )
        revision = earlier[-1].revision + 1 if earlier else 1
        _refuse_after_compaction(root, product, init_time)
        url = forecast_url(root, product, init_time, revision)
        if publish_once(forecast.assign_attrs(revision=revision), url, encodings(forecast), stamp):
            break
    _settle(root, product, init_time)
    return url


def _the_same(forecast: xr.Dataset, earlier: Sequence[Published]) -> Published | None:
    """The model's newest forecast of the init_time, where it is from the same inputs.

    For a fallback also one of what was asked for: a poor forecast supersedes no good one.
    """
    wanted = {forecast.attrs.get("model")}
    if forecast.attrs.get("quality") == "fallback":
        wanted.add(forecast.attrs["requested_model"])
    newest = next((one for one in earlier[::-1] if one.attributes.get("model") in wanted), None)
    if newest is None:
        return None
    same = newest.attributes.get("inputs_sha256") == forecast.attrs.get("inputs_sha256")
    return newest if same else None


def _settle(root: str, product: str, init_time: pd.Timestamp) -> None:
    """What follows from what is published."""
    mark_superseded(root, product, init_time)
    refresh_latest(root, product)


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
    """Have `latest.json` name the newest forecast there is.

    Nobody is kept from publishing meanwhile: it looks again after it has written.
    """
    url = f"{folder_url(root, product)}/{LATEST}"
    with exclusive(url, by="publisher"):
        while (content := _latest(root, product)) is not None:
            if storage.exists(url) and storage.read_json(url) == content:
                return
            storage.write_json(url, content)


def _latest(root: str, product: str) -> dict[str, str] | None:
    """What `latest.json` is to say: the newest init_time's newest revision."""
    names = storage.names(folder_url(root, product))
    for init_time, revision in sorted(filter(None, map(parse_name, names)), reverse=True):
        if is_complete(forecast_url(root, product, init_time, revision)):
            name = forecast_name(init_time, revision)
            return {"init_time": time_text(init_time), "forecast": name}
    return None
