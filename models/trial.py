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
from models.losses import Loss
from models.training import Learner, TrainSettings, evaluate
from pipelines.archive import Archive
from pipelines.errors import SquallError
from pipelines.samples import build_index, complete_init_times
from pipelines.split import split
from pipelines.times import utc

Report = Callable[[int, dict[str, float]], None]


def archive_data(archive_url: str, settings: TrainSettings) -> ArchiveData:
    """What `squall train` would train on and validate with, under the same settings.

    Raises `SquallError` where the archive has nothing to learn from or to validate with.
    """
    archive = Archive(archive_url)
    shape = settings.sequence_shape(archive)
    times = archive.usable_times(
        utc(settings.start) if settings.start else None,
        utc(settings.end) if settings.end else None,
    )
    parts = split(
        complete_init_times(times, archive.timestep, shape),
        archive.timestep,
        shape,
        settings.validation_fraction,
        settings.test_fraction,
        settings.split_seed,
    )
    training = build_index(archive, parts.training, shape)
    if len(parts.validation) == 0:
        raise SquallError(
            "no sequence to compare trials by",
            found=f"{len(training)} samples to train on, none for validation",
            expected="validation samples that share no frame with the others",
            remedy="raise train.validation_fraction, or give it a longer archive",
        )
    return ArchiveData(
        archive_url,
        training,
        build_index(archive, parts.validation, shape),
        settings.samples_per_epoch,
        settings.batch_size,
        settings.seed,
        settings.normalisation,
    )


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
    torch.manual_seed(settings.seed)
    learner = Learner.start(settings, settings.build_network(data.in_channels).to(device))
    measured = Measured(learner.network, settings.build_loss(), measure)
    own = replace(data, batch_size=settings.batch_size)
    steps = steps_per_epoch(own, 1)
    for epoch in range(settings.epochs):
        losses = list(learner.epoch(epoch, own.training(epoch, 0, 1), steps, device))
        validation = (batch.to(device) for batch in data.validation(0, 1))
        metrics = {"loss": float(torch.stack(losses).mean())}
        metrics |= evaluate(measured, validation, measure)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise SquallError(
                    f"{name} is no longer a number",
                    found=f"{value} in epoch {epoch + 1}",
                    expected="a finite loss",
                    remedy="a lower learning_rate or gradient_clip",
                )
        report(epoch, metrics)


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
