"""Training without Ray: settings, batches, a step, an epoch. `models.ray_training` distributes it.

Everything random follows from the seed and the epoch, so a run that stops and resumes ends with
the weights of one that did not.
"""

import datetime as dt
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from models.data import INPUT_CHANNELS, Batch
from models.losses import LOSSES, Loss, get_loss
from models.networks import build_model, check_options
from models.networks.convlstm import Compute
from models.normalisation import Kind, RainNormalisation
from pipelines.archive import Archive
from pipelines.samples import SequenceShape
from pipelines.section import Section
from pipelines.times import Duration, spaced


class NetworkSettings(Section):
    """Which network, how large. What is not set is as published: see `squall models`."""

    name: str = Field("convlstm", description="Network: see `squall models`.")
    hidden_channels: tuple[int, ...] | None = Field(
        None, min_length=1, description="Channels of each layer's states, first layer first."
    )
    input_kernel: int | None = Field(None, ge=1, description="Input-to-state kernel, odd.")
    state_kernel: int | None = Field(None, ge=1, description="State-to-state kernel, odd.")
    patch_size: int | None = Field(
        None, ge=1, le=32, description="Side of the patches frames are cut into."
    )
    compute: Compute | None = Field(
        None,
        description="How ConvLSTM layers are computed: exact (float32), bf16 (bfloat16, float32 "
        "cell state), either with -remat for less memory, or reference (step by step).",
    )
    options: dict[str, Any] = Field(
        {}, description='Any other option of the network, such as {"strides": [4, 2]}.'
    )

    @model_validator(mode="after")
    def _the_network_has_these_options(self) -> "NetworkSettings":
        check_options(self.name, self.config())
        return self

    def config(self) -> dict[str, Any]:
        """The options that are set, by name."""
        named = self.model_dump(exclude={"name", "options"}, exclude_none=True)
        return named | self.options

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        """The network, untrained."""
        return build_model(
            self.name, in_channels=in_channels, out_channels=out_channels, **self.config()
        )


class TrainSettings(Section):
    """How a network is trained."""

    model: str | None = Field(
        None, description="Name in the model registry; the product's by default."
    )
    network: NetworkSettings = NetworkSettings()
    start: dt.datetime | None = Field(None, description="Learn from frames at or after this time.")
    end: dt.datetime | None = Field(None, description="Learn from frames at or before this time.")
    past: Duration = Field(dt.timedelta(minutes=30), description="How much past the network sees.")
    future: Duration = Field(
        dt.timedelta(minutes=60), description="How far ahead it learns to forecast."
    )
    crop: int = Field(128, ge=8, description="Side of a training crop in pixels.")
    validation_fraction: float = Field(
        0.15, ge=0, lt=1, description="Share of the sequences kept for validation."
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the sequences that training never sees."
    )
    split_seed: int = Field(0, ge=0, description="Deals days to training, validation and test.")
    normalisation: Kind = Field("log", description="Scale on which rain rate is learnt.")
    loss: str = Field(
        "mse",
        description=f"Loss over observed pixels: {', '.join(LOSSES)}, or a sum such as "
        "mse+0.5*gdl.",
    )
    members: int = Field(
        8, ge=2, description="Members that a network forecasts where its loss is crps."
    )
    epochs: int = Field(20, ge=1, description="Passes over `samples_per_epoch` samples.")
    samples_per_epoch: int = Field(256, ge=1, description="Samples drawn for an epoch.")
    batch_size: int = Field(8, ge=1, description="Samples per worker and step.")
    learning_rate: float = Field(
        2e-3, gt=0, description="Adam's learning rate, the highest one of its schedule."
    )
    schedule: Literal["cosine", "onecycle"] = Field(
        "cosine", description="How the learning rate goes: cosine by epoch, onecycle by step."
    )
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of a gradient.")
    seed: int = Field(0, ge=0, description="All randomness follows from it.")
    workers: int = Field(2, ge=1, description="Ray Train workers.")
    gpu: bool = Field(False, description="Give each worker a GPU.")
    max_failures: int = Field(2, ge=0, description="Restarts from the newest checkpoint.")
    run: str | None = Field(
        None, description="Name of the run; the name of an earlier one continues it."
    )
    ray_address: str | None = Field(
        None, description="Ray cluster; RAY_ADDRESS counts too; a local one by default."
    )

    @field_validator("loss")
    @classmethod
    def _the_loss_exists(cls, loss: str) -> str:
        get_loss(loss)
        return loss

    @model_validator(mode="after")
    def _a_sample_for_every_worker(self) -> "TrainSettings":
        if self.samples_per_epoch < self.workers:
            raise ValueError("samples_per_epoch must be at least workers")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "TrainSettings":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation and test fraction must leave something to train on")
        return self

    def build_loss(self) -> Loss:
        """The loss, on the scale on which rain rate is learnt."""
        return get_loss(self.loss, RainNormalisation(self.normalisation))

    @property
    def out_channels(self) -> int:
        """Channels that the network puts out: one, or as many as members where the loss is crps."""
        return self.members if self.build_loss().of_ensemble else 1

    def build_network(self, in_channels: int = INPUT_CHANNELS) -> nn.Module:
        """The network, untrained: rain rate and observed mask in, rain rate or its members out."""
        return self.network.build(in_channels, self.out_channels)

    def sequence_shape(self, archive: Archive) -> SequenceShape:
        """Past, future and crop in the archive's frames and pixels."""
        return SequenceShape(
            past=len(spaced(archive.timestep, self.past, "past")),
            future=len(spaced(archive.timestep, self.future, "future")),
            crop=self.crop,
        )


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    loss: Loss,
    gradient_clip: float,
) -> Float[Tensor, ""]:
    """Forward, loss, backward, update; the loss before the update.

    Nothing in it waits for a value, so that a GPU never idles and a CUDA graph can hold it.
    """
    network.train()
    value = loss(network(batch.past, batch.future.shape[1]), batch.future, batch.observed)
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)
    optimiser.step()
    return value.detach()


ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4
"""Share of a run in which the rate rises, and what it starts and ends with (torch's own)."""


def learning_rate(settings: TrainSettings, epoch: int | float) -> float:
    """The learning rate after so many epochs, a fraction of one included.

    cosine    half a cosine towards zero, by whole epochs (Loshchilov and Hutter 2017, equation 5)
    onecycle  up along half a cosine, then down to nearly nothing, step by step (Smith and Topin
              2019; as `torch.optim.lr_scheduler.OneCycleLR` has it)
    """
    highest = settings.learning_rate
    if settings.schedule == "cosine":
        return _half_cosine(highest, 0.0, int(epoch) / settings.epochs)
    progress = epoch / settings.epochs
    if progress < ONE_CYCLE_RISE:
        return _half_cosine(highest * ONE_CYCLE_START, highest, progress / ONE_CYCLE_RISE)
    rest = (progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)
    return _half_cosine(highest, highest * ONE_CYCLE_END, rest)


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def evaluate(network: nn.Module, validation: Iterable[Batch], loss: Loss) -> dict[str, float]:
    """Mean loss over batches of the network, and of persistence on the same samples."""
    network.eval()
    losses, persistence = [], []
    for batch in validation:
        lead_times = batch.future.shape[1]
        losses.append(float(loss(network(batch.past, lead_times), batch.future, batch.observed)))
        newest = loss.from_rain(batch.past[:, -1:, :1]).expand_as(batch.future)
        persistence.append(float(loss(newest, batch.future, batch.observed)))
    if not losses:
        return {}
    return {
        "validation_loss": sum(losses) / len(losses),
        "validation_persistence": sum(persistence) / len(persistence),
    }


@dataclass
class Learner:
    """A network with its optimiser, as it is between two epochs."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    settings: TrainSettings

    @classmethod
    def start(cls, settings: TrainSettings, network: nn.Module) -> "Learner":
        """Before the first epoch."""
        return cls(
            network, torch.optim.Adam(network.parameters(), settings.learning_rate), settings
        )

    def epoch(
        self, number: int, batches: Iterable[Batch], steps: int, device: torch.device | None = None
    ) -> Iterator[Float[Tensor, ""]]:
        """Train on this worker's batches of an epoch, `steps` of them; yields each step's loss."""
        loss = self.settings.build_loss()
        for step, batch in enumerate(batches):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.settings, number + step / steps)
            yield train_step(
                self.network,
                self.optimiser,
                batch.to(device or torch.device("cpu")),
                loss,
                self.settings.gradient_clip,
            )
