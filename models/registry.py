"""The model registry: `{root}/models/{name}/{version}/`, and `champion.json` that names one.

A version is immutable: weights (safetensors), settings, archive and training metrics, written in
that order with `model.json` last. A version without `model.json` does not exist.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from safetensors.torch import load, save
from torch import Tensor, nn

from models.data import INPUT_CHANNELS
from models.training import TrainSettings
from pipelines import storage
from pipelines.errors import NotFoundError
from pipelines.times import now, time_text

NO_TIMESTEP = pd.Timedelta(0)
"""Of a model whose frames have no times."""
WEIGHTS, CARD, CHAMPION = "weights.safetensors", "model.json", "champion.json"


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
) -> str:
    """Add a version and return its name: when it was made and what its weights hash to."""
    content = save({key: tensor.contiguous() for key, tensor in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    version = f"{now():%Y%m%dT%H%M%SZ}-{digest[:8]}"
    folder = storage.join(root, "models", name, version)
    storage.write_bytes(f"{folder}/{WEIGHTS}", content)
    storage.write_json(
        f"{folder}/{CARD}",
        {
            "name": name,
            "version": version,
            "created": time_text(now()),
            "weights_sha256": digest,
            "past_frames": past_frames,
            "in_channels": in_channels,
            "timestep_seconds": timestep.total_seconds(),
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            "archive": archive,
            "metrics": metrics,
            "history": list(history),
            "settings": settings.model_dump(mode="json"),
        },
    )
    return version


def promote(root: str, name: str, version: str) -> None:
    """Make a version the one that nowcasts are made with."""
    storage.write_json(
        storage.join(root, "models", name, CHAMPION),
        {"version": version, "since": time_text(now())},
    )


def champion(root: str, name: str) -> str:
    """The version that nowcasts are made with; `NotFoundError` where there is none."""
    url = storage.join(root, "models", name, CHAMPION)
    if not storage.exists(url):
        raise NotFoundError(
            f"no trained model called {name!r}",
            found=f"nothing at {storage.display(url)}",
            expected="a champion in the model registry",
            remedy="run `squall train`, or nowcast with a baseline: `--model advection`",
        )
    return str(storage.read_json(url)["version"])


def load_model(root: str, name: str, version: str | None = None) -> Model:
    """A version (the champion by default), ready to predict.

    Raises `NotFoundError` where it is not there or its weights are not the ones that were saved.
    """
    version = version or champion(root, name)
    folder = storage.join(root, "models", name, version)
    if not storage.exists(f"{folder}/{CARD}"):
        raise NotFoundError(
            f"no version {version!r} of model {name!r}",
            found=", ".join(storage.names(storage.join(root, "models", name))) or "none",
            expected=f"{storage.display(folder)}/{CARD}",
            remedy="name one of those found, or train one",
        )
    card = storage.read_json(f"{folder}/{CARD}")
    content = storage.read_bytes(f"{folder}/{WEIGHTS}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["weights_sha256"]:
        raise NotFoundError(
            f"the weights of {name}/{version} are not the ones that were saved",
            found=f"sha256 {digest}",
            expected=card["weights_sha256"],
            remedy="restore them from a backup, or promote another version",
        )
    settings = TrainSettings.model_validate(card["settings"])
    in_channels = card.get("in_channels", INPUT_CHANNELS)
    network = settings.build_network(in_channels)
    network.load_state_dict(load(content))
    network.eval()
    return Model(
        name=name,
        version=version,
        network=network,
        settings=settings,
        weights_sha256=digest,
        past_frames=card["past_frames"],
        in_channels=in_channels,
        timestep=pd.Timedelta(seconds=card["timestep_seconds"]),
        metrics=card["metrics"],
    )
