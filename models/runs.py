"""What a training run has come to, by its checkpoints: its history, its best epoch, its outcome."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models import checkpoints
from models.data import TrainingData
from models.learner import Learner
from models.training import TrainSettings
from pipelines import storage
from pipelines.errors import NotFoundError, SquallError

Metrics = dict[str, float]
FREE = {
    "baselines",
    "checkpoint",
    "early_stopping",
    "epochs",
    "gpu",
    "least_workers",
    "loaders",
    "max_failures",
    "model",
    "ray_address",
    "run",
    "score_events",
    "tracking",
    "workers",
}
"""Settings with which a run may go on that was begun with others."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run gives: weights by parameter name, their epoch's metrics, and every epoch's."""

    weights: dict[str, Tensor]
    metrics: Metrics
    history: list[Metrics]


def identity(data: TrainingData, settings: TrainSettings) -> dict[str, Any]:
    """What a run has to be continued with."""
    return settings.model_dump(mode="json", exclude=FREE) | {"in_channels": data.in_channels}


def best_epoch(history: list[Metrics], kept: Any = None) -> Metrics | None:
    """The epoch with the lowest validation loss; None where nothing was validated."""
    known = [
        epoch
        for epoch in history
        if "validation_loss" in epoch and (kept is None or int(epoch["step"]) in kept)
    ]
    return min(known, key=lambda epoch: epoch["validation_loss"], default=None)


def stops(history: list[Metrics], patience: int | None) -> bool:
    """Whether so many epochs have gone by without a better one."""
    best = best_epoch(history)
    if patience is None or best is None:
        return False
    return history[-1]["epoch"] - best["epoch"] >= patience


def check_resumes(place: str, data: TrainingData, settings: TrainSettings) -> None:
    """Whether a run of that name, if there is one, is this run."""
    resumed = checkpoints.newest(place)
    if resumed is None:
        return
    state = resumed[1]
    wanted, begun = identity(data, settings), state["identity"]
    other = [name for name in wanted if wanted[name] != begun.get(name)]
    if other:
        name = other[0]
        raise SquallError(
            "a run of that name was begun with other settings",
            found=f"train.{name} {wanted[name]}",
            expected=str(begun.get(name)),
            remedy="name another run (train.run), or go on with the settings that it began with",
        )
    if state["data_version"] != data.version:
        log.warning("the archive has changed since the run began: it goes on with what is there")


def outcome(place: str) -> Trained:
    """The best epoch of a run that has ended, of those whose checkpoints were kept."""
    last = checkpoints.newest(place)
    if last is None:
        raise NotFoundError(
            "the run left no checkpoint",
            found=f"none in {storage.display(place)}",
            expected="one of its last step",
            remedy="see whether the storage can be written, and run it again",
        )
    state = last[1]
    history: list[Metrics] = state["history"]
    kept = {checkpoint.step: checkpoint for checkpoint in checkpoints.found(place)}
    best = best_epoch(history, kept)
    if best is not None and best["step"] != last[0].step:
        state = checkpoints.read(place, kept[int(best["step"])])
    return Trained(Learner.weights_of(state), best or history[-1], history)
