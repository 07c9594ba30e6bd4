"""A model version's card (`model.json`) and its scores (`scores.json`): all that is known of it."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import BaseModel, ConfigDict, ValidationError

from models.data import INPUT_CHANNELS
from pipelines import storage
from pipelines.errors import NotFoundError, SquallError
from pipelines.scores import scores

WEIGHTS, CARD, SCORES = "weights.safetensors", "model.json", "scores.json"


class Card(BaseModel):
    """What a version is and where it is from. Fields that earlier versions of Squall lack are None.

    Attributes
    ----------
    created : ISO 8601 UTC
    weights_sha256 : hash of the weights file, which forecasts carry
    past_frames, timestep_seconds, in_channels : what it was trained on
    archive : which frames of which archive, and their digest: see `pipelines.info.provenance`
    metrics, history : of its last epoch, and of every one
    settings : a `models.training.TrainSettings`
    normalisation : the scale on which it learnt rain rate
    parent : id of the model that it was trained on from
    code : the versions that made it: see `models.code_version`
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    created: str
    weights_sha256: str
    past_frames: int
    in_channels: int = INPUT_CHANNELS
    timestep_seconds: float
    parameters: int
    archive: dict[str, Any]
    metrics: dict[str, float]
    history: list[dict[str, Any]] = []
    settings: dict[str, Any]
    normalisation: str | None = None
    parent: str | None = None
    code: dict[str, str] = {}

    @property
    def id(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}"

    @property
    def window(self) -> str:
        """From when to when it learnt, UTC; empty where its frames have no times."""
        first, last = self.archive.get("first_frame"), self.archive.get("last_frame")
        return f"{first[:16]} to {last[:16]}" if first and last else ""


def version_url(root: str, name: str, version: str, *parts: str) -> str:
    """The folder of a version, or a file in it."""
    return storage.join(root, "models", name, version, *parts)


def read_card(root: str, name: str, version: str) -> Card:
    """The card of a version, named as its folder is, copied or not.

    Raises `NotFoundError` where there is no such version, `SquallError` where its card is damaged.
    """
    url = version_url(root, name, version, CARD)
    if not storage.exists(url):
        folder = storage.join(root, "models", name)
        known = [one for one in storage.names(folder) if storage.exists(f"{folder}/{one}/{CARD}")]
        raise NotFoundError(
            f"no version {version!r} of model {name!r}",
            found=", ".join(known) or "none",
            expected=storage.display(url),
            remedy="name one of those found, or train one",
        )
    try:
        card = Card.model_validate_json(storage.read_bytes(url))
    except ValidationError as error:
        first = error.errors()[0]
        raise SquallError(
            f"the card of {name}/{version} is damaged",
            found=f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip(),
            expected=f"JSON as `squall train` writes it to {storage.display(url)}",
            remedy="restore it from a backup, or use another version",
        ) from error
    return card.model_copy(update={"name": name, "version": version})


def to_json(sums: xr.Dataset) -> dict[str, Any]:
    """Sums as JSON: xarray's own dict, lead times in seconds."""
    seconds = sums["lead_time"].values / np.timedelta64(1, "s")
    return sums.assign_coords(lead_time=("lead_time", seconds, {"units": "s"})).to_dict()


def write_scores(root: str, name: str, version: str, sums: xr.Dataset) -> None:
    """Store the sums of a version's validation beside its card."""
    assert name in sums["forecaster"].values, "a version's own sums go by its model's name"
    content = json.dumps(to_json(sums))
    storage.write_bytes(version_url(root, name, version, SCORES), content.encode())


def read_scores(root: str, name: str, version: str) -> xr.Dataset | None:
    """The sums of a version's validation beside the baselines, for `pipelines.scores.scores`.

    By forecaster, of which the version itself is called `name`. None where it was not validated.
    """
    url = version_url(root, name, version, SCORES)
    if not storage.exists(url):
        return None
    sums = xr.Dataset.from_dict(storage.read_json(url))
    return sums.assign_coords(lead_time=pd.to_timedelta(sums["lead_time"].values, unit="s"))


@dataclass(frozen=True)
class Headline:
    """A score over all lead times, beside the best baseline's. None: no cases, or no baseline."""

    score: str
    model: float | None
    best_baseline: str | None
    baseline: float | None


def headlines(sums: xr.Dataset, name: str) -> list[Headline]:
    """CSI, and FSS at the largest scale, at the lowest threshold, of the model called `name`."""
    total = scores(sums.sum("lead_time")).isel(threshold=0)
    event = f"≥ {total['threshold']:g} mm/h"
    found = {f"CSI {event}": total["csi"]}
    if "fss" in total:
        largest = total["fss"].isel(scale=-1)
        found[f"FSS {event}, {largest['scale']:g} km"] = largest
    return [_headline(title, score, name) for title, score in found.items()]


def _headline(title: str, score: xr.DataArray, name: str) -> Headline:
    known = {str(key): value for key, value in score.dropna("forecaster").to_series().items()}
    own = known.pop(name, None)
    best = max(known, key=known.__getitem__, default=None)
    return Headline(title, own, best, None if best is None else known[best])
