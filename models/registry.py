"""The model registry: `{root}/models/{name}/{version}/`, and `champion.json` that names one.

A version is immutable: weights (safetensors), the scores of its validation, and last its card
(`model.json`). A version without a card does not exist. Weights are used only if they hash to what
the card says and parse as safetensors, a format that holds numbers and nothing that could run.

`champion.json` is replaced whole and remembers every champion there was, and why: proven, forced,
first, rolled back. What is proof, `models.promotion` says; here it is only written down. Promotions
take turns by a lock of the operating system's. An object store has none: of two promotions in the
same moment the later one counts there, whole, and the other may be missing in the history.
"""

import hashlib
import logging
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import pandas as pd
import xarray as xr
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from models.card import CARD, WEIGHTS, Card, read_card, version_url, write_scores
from models.code_version import code_version
from models.data import INPUT_CHANNELS
from models.training import TrainSettings
from pipelines import storage
from pipelines.errors import NotFoundError, SquallError
from pipelines.lock import exclusive
from pipelines.times import now, time_text

log = logging.getLogger(__name__)

NO_TIMESTEP = pd.Timedelta(0)
"""Of a model whose frames have no times."""
CHAMPION = "champion.json"


class ChampionChangedError(SquallError):
    """Another promotion came first."""


@dataclass(frozen=True)
class Model:
    """A trained network with what is known about it.

    Attributes
    ----------
    weights_sha256 : hash of the weights file, which forecasts carry
    past_frames, timestep, in_channels : what it was trained on
    metrics : of its last epoch
    """

    name: str
    version: str
    network: nn.Module
    settings: TrainSettings
    weights_sha256: str
    past_frames: int
    timestep: pd.Timedelta
    metrics: dict[str, float]
    in_channels: int = INPUT_CHANNELS

    @property
    def id(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}"


def save_model(
    root: str,
    name: str,
    weights: dict[str, Tensor],
    settings: TrainSettings,
    *,
    past_frames: int,
    timestep: pd.Timedelta,
    archive: dict[str, Any],
    metrics: dict[str, float],
    in_channels: int = INPUT_CHANNELS,
    history: Sequence[dict[str, float]] = (),
    scores: xr.Dataset | None = None,
    parent: str | None = None,
) -> str:
    """Add a version and return its name: when it was made and what its weights hash to.

    `scores` are sums by forecaster (`models.evaluation`), the version's own called `name`; `parent`
    is the id of the model that it was trained on from. `models.card.Card` explains the rest.
    """
    content = save({key: tensor.contiguous() for key, tensor in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    version = f"{now():%Y%m%dT%H%M%SZ}-{digest[:8]}"
    card = Card(
        name=name,
        version=version,
        created=time_text(now()),
        weights_sha256=digest,
        past_frames=past_frames,
        in_channels=in_channels,
        timestep_seconds=timestep.total_seconds(),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        archive=archive,
        metrics=metrics,
        history=list(history),
        settings=settings.model_dump(mode="json"),
        normalisation=settings.normalisation,
        parent=parent,
        code=code_version(),
    )
    storage.write_bytes(version_url(root, name, version, WEIGHTS), content)
    if scores is not None:
        write_scores(root, name, version, scores)
    storage.write_json(version_url(root, name, version, CARD), card.model_dump())
    return version


def load_model(root: str, name: str, version: str | None = None) -> Model:
    """A version (the champion by default), ready to predict.

    Raises `NotFoundError` where it is not there or its weights are not the ones that were saved,
    `SquallError` where they are not safetensors or card, settings and weights do not fit together.
    """
    card = read_card(root, name, version or champion(root, name))
    content = _weights(root, card)
    try:
        settings = TrainSettings.model_validate(card.settings)
        network = settings.build_network(card.in_channels)
        network.load_state_dict(load(content))
    except (SafetensorError, ValidationError, RuntimeError) as error:
        raise SquallError(
            f"{card.id} cannot be loaded",
            found=textwrap.shorten(str(error), 300),
            expected=f"weights as safetensors, of the network that {CARD} describes",
            remedy="use another version, or the Squall that made it",
        ) from error
    network.eval()
    return Model(
        name=card.name,
        version=card.version,
        network=network,
        settings=settings,
        weights_sha256=card.weights_sha256,
        past_frames=card.past_frames,
        in_channels=card.in_channels,
        timestep=pd.Timedelta(seconds=card.timestep_seconds),
        metrics=card.metrics,
    )


def _weights(root: str, card: Card) -> bytes:
    """The weights file; `NotFoundError` where it is not the one that was saved."""
    url = version_url(root, card.name, card.version, WEIGHTS)
    content = storage.read_bytes(url) if storage.exists(url) else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.weights_sha256:
        raise NotFoundError(
            f"the weights of {card.id} are not the ones that were saved",
            found=f"sha256 {digest} of {len(content)} bytes",
            expected=card.weights_sha256,
            remedy="restore them from a backup, or promote another version",
        )
    return content


def model_names(root: str) -> list[str]:
    """The names of all models, sorted."""
    return storage.names(storage.join(root, "models"))


def versions(root: str, name: str) -> list[Card]:
    """The versions of a model, newest first, without those that are half written or damaged."""
    cards = []
    for version in storage.names(storage.join(root, "models", name)):
        if storage.exists(version_url(root, name, version, CARD)):
            try:
                cards.append(read_card(root, name, version))
            except SquallError as error:
                log.warning("%s", error)
    return sorted(cards, key=lambda card: (card.created, card.version), reverse=True)


# Champions ---------------------------------------------------------------------------------------


How = Literal["proven", "forced", "first", "unproven"]


@dataclass(frozen=True)
class Reign:
    """A version became the champion. Fields that earlier versions of Squall lack have defaults.

    Attributes
    ----------
    since : ISO 8601 UTC
    rolled_back : whether by taking the one after it back
    how : proven better than the champion before; forced, by whom and why; the first of its name; or
        unproven, as every one before there was proof
    by, why : who did it, and what for
    verdict : what was known then: see `models.promotion.Verdict.summary`
    """

    version: str
    since: str
    rolled_back: bool = False
    how: How = "unproven"
    by: str = ""
    why: str = ""
    verdict: dict[str, Any] | None = None

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        if self.rolled_back:
            return f"rolled back{by}"
        if self.how == "forced":
            return f"forced{by} because {self.why}"
        if self.how == "first":
            return "first: no champion to beat; unproven"
        if self.how == "proven" and self.verdict:
            told = self.verdict
            return (
                f"proven{by} by {told['score']} of {told['forecasts']} forecasts in "
                f"{told['blocks']} event blocks, {told['since']} to {told['until']}"
            )
        return f"{self.how}{by}"


def reigns(root: str, name: str) -> list[Reign]:
    """Every champion that a model has had, oldest first; the last one is the champion."""
    url = storage.join(root, "models", name, CHAMPION)
    if not storage.exists(url):
        return []
    try:
        stored = storage.read_json(url)
        own = {"version": stored["version"], "since": stored["since"]}
        known = {field.name for field in fields(Reign)}  # a newer Squall may tell more
        return [
            Reign(**{name: value for name, value in one.items() if name in known})
            for one in stored.get("history", [own])
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SquallError(
            f"the champion of {name!r} cannot be read",
            found=f"{type(error).__name__}: {error}",
            expected=f"JSON as `squall registry promote` writes it to {storage.display(url)}",
            remedy="remove it and promote a version",
        ) from error


def champion(root: str, name: str) -> str:
    """The version that nowcasts are made with; `NotFoundError` where there is none."""
    history = reigns(root, name)
    if not history:
        raise NotFoundError(
            f"no trained model called {name!r}",
            found=f"nothing at {storage.display(storage.join(root, 'models', name, CHAMPION))}",
            expected="a champion in the model registry",
            remedy="run `squall train`, or nowcast with a baseline: `--model advection`",
        )
    return history[-1].version


def promote(
    root: str,
    name: str,
    version: str,
    *,
    how: How = "unproven",
    by: str = "",
    why: str = "",
    verdict: dict[str, Any] | None = None,
    after: Sequence[Reign] | None = None,
) -> None:
    """Make a version the one that nowcasts are made with; nothing changes where it is.

    `how`, `by`, `why` and `verdict` are remembered: see `Reign`. `after` : the reigns that the
    proof is against.

    Raises `NotFoundError` where it is not there or its weights are not the ones that were saved,
    `ChampionChangedError` where the reigns are not, or no longer, those of `after`.
    """

    _weights(root, read_card(root, name, version))

    def next_reign(history: list[Reign]) -> Reign | None:
        if after is not None and history != list(after):
            raise ChampionChangedError(
                f"the champion of {name!r} has changed meanwhile",
                found=history[-1].version if history else "none",
                expected=after[-1].version if after else "none",
                remedy="promote again: it has to be better than the new one",
            )
        same = history and history[-1].version == version
        return None if same else Reign(version, time_text(now()), False, how, by, why, verdict)

    _crown(root, name, next_reign)


def promote_first(root: str, name: str, version: str) -> bool:
    """Make a version the champion if there has been none; whether that was so."""
    try:
        promote(root, name, version, how="first", after=())
    except ChampionChangedError:
        return False
    return True


def rollback(root: str, name: str, by: str = "") -> str:
    """Make the champion before this one the champion again; its version. Again, the one before.

    It was the champion already, so it has nothing to prove. `by` whom is remembered.

    Raises `NotFoundError` where there was none before, or it is no longer what was saved.
    """
    champion(root, name)

    def next_reign(history: list[Reign]) -> Reign:
        before: list[str] = []
        for reign in history:
            if reign.rolled_back:
                before.pop()
            else:
                before.append(reign.version)
        if len(before) < 2:
            raise NotFoundError(
                f"model {name!r} has no champion to go back to",
                found=", ".join(before) or "no champion",
                expected="at least two promotions",
                remedy=f"`squall registry promote {name}/VERSION`",
            )
        _weights(root, read_card(root, name, before[-2]))
        return Reign(before[-2], time_text(now()), rolled_back=True, by=by)

    _crown(root, name, next_reign)
    return champion(root, name)


def _crown(root: str, name: str, next_reign: Callable[[list[Reign]], Reign | None]) -> None:
    """Add what follows from the history so far to it, whole, with nobody in between."""
    url = storage.join(root, "models", name, CHAMPION)
    with exclusive(url, by="promotion"):
        history = reigns(root, name)
        reign = next_reign(history)
        if reign is None:
            return
        own = {"version": reign.version, "since": reign.since}
        everyone = [asdict(one) for one in [*history, reign]]
        storage.write_json(url, own | {"history": everyone})
