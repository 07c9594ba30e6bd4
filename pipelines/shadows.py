"""Shadow forecasts: what challengers and baselines would have said, where no reader looks.

    {root}/shadows/{forecaster}/forecasts/{product}/…    its forecasts, as those that are served lie
    {root}/shadows/{product}.json                        when each forecaster last had its turn

A forecaster is a baseline's name or a model's `name/version`, and has a root of its own there. So
all that reads, publishes and removes forecasts works on them unchanged:

    open_forecast(shadow_root(root, "sprog"), product, init_time)

Turns outlast the process that took them: where there is too little time for all, whoever goes on,
and whatever came of it, those that waited longest are next.
"""

import logging

from pipelines import storage
from pipelines.forecasts import folder_url
from pipelines.times import now, time_text

log = logging.getLogger(__name__)


def shadow_root(root: str, forecaster: str) -> str:
    """The root under which a forecaster's shadow forecasts are."""
    return storage.join(root, "shadows", forecaster)


def shadow_forecasters(root: str, product: str | None = None) -> list[str]:
    """Who has shadow forecasts, of a product or of any: names and `name/version`s, sorted."""
    found = []
    for name in storage.names(storage.join(root, "shadows")):
        if name.endswith(".json"):
            continue
        inside = storage.names(shadow_root(root, name))
        found += [name] if "forecasts" in inside else [f"{name}/{version}" for version in inside]
    if product is not None:
        found = [one for one in found if storage.names(folder_url(shadow_root(root, one), product))]
    return sorted(found)


def read_turns(root: str, product: str) -> dict[str, str]:
    """When each forecaster last had its turn, ISO 8601; who is not in it never had.

    Damaged, it is as if none had: it is written anew with the next turn.
    """
    url = _turns_url(root, product)
    if not storage.exists(url):
        return {}
    try:
        return {str(name): str(time) for name, time in storage.read_json(url).items()}
    except (ValueError, AttributeError) as error:
        log.warning("%s cannot be read: %s", storage.display(url), error)
        return {}


def take_turn(root: str, product: str, forecaster: str, among: list[str]) -> None:
    """Note that it is a forecaster's turn; only those `among` whom it takes turns are kept.

    Of two processes that do so in the same moment one's turn may be lost: it is then early again.
    """
    turns = {name: time for name, time in read_turns(root, product).items() if name in among}
    turns[forecaster] = time_text(now("ms"))
    storage.write_json(_turns_url(root, product), turns)


def _turns_url(root: str, product: str) -> str:
    return storage.join(root, "shadows", f"{product}.json")
