"""What happened to a forecast or a model, as events of the Prefect server, for automations.

An event is news, never a condition: none of these raises, and none waits for a server. They are
put on a queue that a thread of Prefect's sends from; where there is no server to send to (a command
on its own, with no `PREFECT_API_URL`) nothing is sent, for nobody would hear it.

An event of a forecast is about the resource ``squall.forecast.{product}``, whose label
`squall.backfill` tells forecasts of the newest frame ("false") from those made later ("true"): only
the former show that the service is alive. One of a model is about ``squall.model.{name}``. What
else is to be said is in the payload, flat.
"""

import logging

import pandas as pd
from prefect.events import emit_event
from prefect.settings import get_current_settings

from pipelines.times import time_text

log = logging.getLogger(__name__)

Payload = dict[str, str | int]

PUBLISHED = "squall.forecast.published"
FALLBACK = "squall.forecast.fallback"
REFUSED = "squall.forecast.refused"
SUPERSEDED = "squall.forecast.superseded"
PROMOTED = "squall.model.promoted"


def published(
    product: str,
    init_time: pd.Timestamp,
    revision: int,
    url: str,
    model: str,
    quality: str,
    *,
    backfill: bool = False,
) -> None:
    """A forecast can be read at `url`. `model` made it; `quality` is its attribute."""
    payload: Payload = {"revision": revision, "url": url, "model": model, "quality": quality}
    _emit(PUBLISHED, product, init_time, payload, backfill=backfill)


def fell_back(
    product: str, init_time: pd.Timestamp, reason: str, *, backfill: bool = False
) -> None:
    """A forecast was made by the fallback, not by the model that was asked for."""
    _emit(FALLBACK, product, init_time, {"reason": reason}, backfill=backfill)


def refused(product: str, init_time: pd.Timestamp, reason: str, *, backfill: bool = False) -> None:
    """No forecast of this init_time was published."""
    _emit(REFUSED, product, init_time, {"reason": reason}, backfill=backfill)


def superseded(
    product: str,
    init_time: pd.Timestamp,
    revision: int,
    by: int,
    reason: str = "",
    *,
    backfill: bool = False,
) -> None:
    """A published revision has a newer one: a frame came late, or corrected."""
    payload: Payload = {"revision": revision, "superseded_by": by, "reason": reason}
    _emit(SUPERSEDED, product, init_time, payload, backfill=backfill)


def promoted(model: str, instead_of: str | None, product: str, reason: str) -> None:
    """A version, name/version, has become the champion by the scores of a product, or by force."""
    name, _, version = model.partition("/")
    resource = {
        "prefect.resource.id": f"squall.model.{name}",
        "prefect.resource.name": f"model {name}",
        "squall.product": product,
    }
    payload: Payload = {"model": model, "version": version, "instead_of": instead_of or "none"}
    _send(PROMOTED, resource, {"product": product, **payload, "reason": reason})


def _emit(
    event: str,
    product: str,
    init_time: pd.Timestamp,
    payload: Payload,
    *,
    backfill: bool,
) -> None:
    resource = {
        "prefect.resource.id": f"squall.forecast.{product}",
        "prefect.resource.name": f"forecasts of {product}",
        "squall.product": product,
        "squall.backfill": str(backfill).lower(),
    }
    _send(event, resource, {"product": product, "init_time": time_text(init_time), **payload})


def _send(event: str, resource: dict[str, str], payload: Payload) -> None:
    try:
        if get_current_settings().api.url is None:
            log.debug("no Prefect server to tell of %s", event)
            return
        emit_event(event, resource=resource, payload=payload)
    except Exception as error:
        log.warning("the event %s was not sent: %s", event, error)
