"""One trial of a search for hyper-parameters: a short training on one worker.

`trial` knows nothing of who asked for it; `models.tune` runs many of them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.data import ArchiveData, steps_per_epoch
from models.learner import Learner, learning_rate
from models.losses import Loss
from models.preparation import prepare
from models.training import TrainSettings
from models.validation import metrics, validate
from pipelines.errors import SquallError

Report = Callable[[int, dict[str, float]], None]


def archive_data(archive_url: str, settings: TrainSettings) -> ArchiveData:
    """What `squall train` would train on and validate with, under the same settings.

    Raises `SquallError` where the archive has nothing to learn from or to validate with.
    """
    data = prepare(archive_url, settings).data
    if data.validation_index is None:
        raise SquallError(
            "no sequence to compare trials by",
            found=f"{len(data.training_index)} samples to train on, none for validation",
            expected="validation samples that share no frame with the others",
            remedy="raise train.validation_fraction, or give it a longer archive",
        )
    return data


def trial_settings(base: TrainSettings, chosen: Mapping[str, Any], epochs: int) -> TrainSettings:
    """`base` with what was chosen, by dotted key, on one worker.

    Raises `ValueError` for what does not go together.
    """
    values = base.model_dump(mode="json") | {"epochs": epochs, "workers": 1}
    for key, value in chosen.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    return TrainSettings.model_validate(values)


def trial(settings: TrainSettings, data: ArchiveData, measure: Loss, report: Report) -> None:
    """Train; after each epoch report its number, from 0, with loss and validation_loss.

    The first is the trial's own, the second is by `measure`, on `data`'s validation batches
    whatever the trial's batch size, and comes with persistence's.

    Raises `SquallError` where a loss is no longer a number.
    """
    device = torch.device("cuda" if settings.gpu else "cpu")
    learner = Learner.start(settings, data, device=device)
    measured = Measured(learner.best_network, learner.loss, measure)
    own = replace(
        data,
        batch_size=settings.batch_size,
        augmentation=settings.augment,
        loaders=settings.loaders,
    )
    of_epoch = steps_per_epoch(own)
    steps = range(settings.epochs * of_epoch)
    losses = []
    for step, batch in zip(steps, own.training(steps, 0, 1, device), strict=True):
        losses.append(learner.step(batch, learning_rate(settings, step / steps.stop)).loss)
        if len(losses) < of_epoch:
            continue
        epoch = step // of_epoch
        values = {"loss": float(torch.stack(losses).mean())}
        values |= metrics(validate(measured, data.validation(0, 1, device), measure))
        losses = []
        for name, value in values.items():
            if not math.isfinite(value):
                raise SquallError(
                    f"{name} is no longer a number",
                    found=f"{value} in epoch {epoch + 1}",
                    expected="a finite loss",
                    remedy="a lower learning_rate or gradient_clip",
                )
        report(epoch, values)


class Measured(nn.Module):
    """A network's output as another loss takes it: its rain, or the mean of its members' rain."""

    def __init__(self, network: nn.Module, own: Loss, measure: Loss) -> None:
        super().__init__()
        self.network, self.own, self.measure = network, own, measure

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L 1 H W"]:
        """Forecast."""
        rain = self.own.to_rain(self.network(past, lead_times))
        return self.measure.from_rain(rain.mean(2, keepdim=True))
