"""Where a network's sequences come from: batches of samples, for each worker its share.

`TrainingData` is what a training run needs to know; `ArchiveData` is an archive's,
`models.moving_mnist.MovingMNISTData` that of Moving MNIST.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.normalisation import Kind, RainNormalisation
from pipelines.archive import Archive
from pipelines.reading import SampleReader
from pipelines.samples import SampleIndex
from pipelines.units import unpack

INPUT_CHANNELS = 2
"""Rain rate, normalised, and whether it was observed: missing is not dry."""
VALIDATION_SAMPLES = 64


@dataclass(frozen=True)
class Batch:
    """Sequences as a network takes them. T past and L future frames, H×W pixels."""

    past: Float[Tensor, "B T C H W"]
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


def share(samples: list[int], rank: int, world_size: int) -> list[int]:
    """A worker's part of an epoch's samples: all of one size, as workers step together."""
    size = len(samples) // world_size
    return samples[rank * size : (rank + 1) * size]


@runtime_checkable
class TrainingData(Protocol):
    """What a run trains on. It is sent to every worker, and opened there.

    Attributes
    ----------
    in_channels : channels of a past frame
    samples_per_epoch, batch_size : of all workers together, and of one
    """

    @property
    def in_channels(self) -> int: ...  # noqa: D102
    @property
    def samples_per_epoch(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102

    def training(self, epoch: int, rank: int, world_size: int) -> Iterator[Batch]:
        """A worker's batches of an epoch: what they are follows from seed and epoch."""
        ...

    def validation(self, rank: int, world_size: int) -> Iterator[Batch]:
        """A worker's batches for validation, the same ones every epoch; there may be none."""
        ...


def steps_per_epoch(data: TrainingData, world_size: int) -> int:
    """How many batches each worker has in an epoch."""
    return -(-(data.samples_per_epoch // world_size) // data.batch_size)


@dataclass(frozen=True)
class ArchiveData:
    """Samples of an archive, drawn with a chance in proportion to their acceptance."""

    archive_url: str
    training_index: SampleIndex
    validation_index: SampleIndex | None
    samples_per_epoch: int
    batch_size: int
    seed: int
    normalisation: Kind = "log"
    in_channels: int = INPUT_CHANNELS

    def training(self, epoch: int, rank: int, world_size: int) -> Iterator[Batch]:
        """See `TrainingData`."""
        samples = draw(self.training_index, self.samples_per_epoch, (self.seed, epoch))
        return self._batches(self._training, share(samples, rank, world_size))

    def validation(self, rank: int, world_size: int) -> Iterator[Batch]:
        """See `TrainingData`."""
        if self.validation_index is None:
            return iter(())
        samples = draw(self.validation_index, VALIDATION_SAMPLES, (self.seed,))
        return self._batches(self._validation, samples[rank::world_size])

    def _batches(self, dataset: SequenceDataset, samples: list[int]) -> Iterator[Batch]:
        return batches(dataset, samples, self.batch_size, RainNormalisation(self.normalisation))

    @cached_property
    def _training(self) -> SequenceDataset:
        return SequenceDataset(Archive(self.archive_url), self.training_index)

    @cached_property
    def _validation(self) -> SequenceDataset:
        assert self.validation_index is not None
        return SequenceDataset(Archive(self.archive_url), self.validation_index)
