"""Training without Ray: settings, batches, a step, an epoch. `models.ray_training` distributes it.

Everything random follows from the seed and the epoch, so a run that stops and resumes ends with
the weights of one that did not.
"""

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.losses import LOSSES, Loss, get_loss
from models.networks import build_model, check_options
from models.networks.convlstm import Compute
from models.normalisation import Kind, RainNormalisation
from pipelines.archive import Archive
from pipelines.reading import SampleReader
from pipelines.samples import SampleIndex, SequenceShape
from pipelines.section import Section
from pipelines.times import Duration, spaced
from pipelines.units import unpack

INPUT_CHANNELS = 2
"""Rain rate, normalised, and whether it was observed: missing is not dry."""


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

    def build(self, out_channels: int = 1) -> nn.Module:
        """The network, untrained: rain rate and observed mask in, rain rate or its members out."""
        return build_model(
            self.name, in_channels=INPUT_CHANNELS, out_channels=out_channels, **self.config()
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
        2e-3, gt=0, description="Adam's learning rate at first; it falls along half a cosine."
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

    def build_network(self) -> nn.Module:
        """The network, untrained."""
        return self.network.build(self.out_channels)

    def sequence_shape(self, archive: Archive) -> SequenceShape:
        """Past, future and crop in the archive's frames and pixels."""
        return SequenceShape(
            past=len(spaced(archive.timestep, self.past, "past")),
            future=len(spaced(archive.timestep, self.future, "future")),
            crop=self.crop,
        )


@dataclass(frozen=True)
class Batch:
    """Sequences as a network takes them. T past and L future frames, H×W pixels."""

    past: Float[Tensor, "B T 2 H W"]
    future: Float[Tensor, "B L 1 H W"]
    observed: Bool[Tensor, "B L 1 H W"]

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(self.past.to(device), self.future.to(device), self.observed.to(device))


def network_input(
    past_mm_h: Float[Tensor, "... H W"], normalisation: RainNormalisation
) -> Float[Tensor, "... 2 H W"]:
    """Rain rate in mm/h (NaN = not observed) as two channels: normalised, and observed or not."""
    observed = past_mm_h.isfinite()
    rain_rate = normalisation.encode(past_mm_h.where(observed, 0.0))
    return torch.stack([rain_rate, observed.to(rain_rate.dtype)], dim=-3)


class SequenceDataset(Dataset[Tensor]):
    """The samples of an index: (time, y, x) mm/h, NaN where not observed.

    Where all frames fit in `memory_bytes`, as stored, they are read once and kept.
    """

    def __init__(self, archive: Archive, index: SampleIndex, memory_bytes: int = 2**29) -> None:
        self.archive, self.index = archive, index
        self.reader = SampleReader(archive.url)
        slots = index.slots()
        rows, columns = archive.grid.shape
        self._first = slots.start
        self._frames = (
            self.reader.read_stored(slots)
            if (slots.stop - slots.start) * rows * columns * 2 <= memory_bytes
            else None
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, sample: int) -> Tensor:
        if self._frames is None:
            return torch.from_numpy(self.index.read(self.reader, sample))
        slots, y, x = self.index.window(sample)
        slots = slice(slots.start - self._first, slots.stop - self._first)
        return torch.from_numpy(unpack(self._frames[slots, y, x]))


def draw(index: SampleIndex, count: int, seed: Sequence[int]) -> list[int]:
    """`count` samples, each with a chance in proportion to its acceptance."""
    chance = index.acceptance / index.acceptance.sum()
    rng = np.random.default_rng(list(seed))
    return [int(sample) for sample in rng.choice(len(index), size=count, p=chance)]


def batches(
    dataset: SequenceDataset, samples: list[int], batch_size: int, normalisation: RainNormalisation
) -> Iterator[Batch]:
    """The samples in the order given, in batches."""
    past_frames = dataset.index.shape.past
    for sequences in DataLoader(dataset, batch_size=batch_size, sampler=samples):
        past, future = sequences[:, :past_frames], sequences[:, past_frames:, None]
        observed = future.isfinite()
        yield Batch(
            network_input(past, normalisation),
            normalisation.encode(future.where(observed, 0.0)),
            observed,
        )


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    loss: Loss,
    gradient_clip: float,
) -> float:
    """Forward, loss, backward, update; the loss before the update."""
    network.train()
    value = loss(network(batch.past, batch.future.shape[1]), batch.future, batch.observed)
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)
    optimiser.step()
    return float(value.detach())


def learning_rate(settings: TrainSettings, epoch: int) -> float:
    """Half a cosine from `learning_rate` towards zero (Loshchilov and Hutter 2017, equation 5)."""
    return settings.learning_rate * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2


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
        self,
        number: int,
        dataset: SequenceDataset,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> Iterator[float]:
        """Train on this worker's share of an epoch's samples; yields the loss of each step."""
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, number)
        samples = draw(dataset.index, settings.samples_per_epoch, (settings.seed, number))
        share = len(samples) // world_size  # equal shares: workers step together
        samples = samples[rank * share : (rank + 1) * share]
        loss = settings.build_loss()
        normalisation = RainNormalisation(settings.normalisation)
        for batch in batches(dataset, samples, settings.batch_size, normalisation):
            yield train_step(
                self.network,
                self.optimiser,
                batch.to(device or torch.device("cpu")),
                loss,
                settings.gradient_clip,
            )
