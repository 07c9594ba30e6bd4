"""Where a network's sequences come from: batches of samples, for each worker its share.

`TrainingData` is what a training run needs to know; `ArchiveData` is an archive's,
`models.moving_mnist.MovingMNISTData` that of Moving MNIST.

Steps are counted through all epochs. What a step's batch holds follows from the seed and the
step's number, however many workers share it and wherever a run begins again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.augmentation import AugmentSettings, augment
from models.normalisation import Kind, RainNormalisation
from pipelines.reading import SampleReader
from pipelines.samples import SampleIndex

INPUT_CHANNELS = 2
"""Rain rate, normalised, and whether it was observed: missing is not dry."""
READ_AHEAD = 4
"""Batches that each loader has ready."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Sequences as a network takes them. T past and L future frames, H×W pixels.

    `weight` is how many samples of the archive each one stands for, relative to the others: 1 in
    training, one over the chance that it was drawn with in validation.
    """

    past: Float[Tensor, "B T C H W"]
    future: Float[Tensor, "B L 1 H W"]
    observed: Bool[Tensor, "B L 1 H W"]
    weight: Float[Tensor, " B"] | None = None

    def split(self, pieces: int) -> list["Batch"]:
        """At most so many batches of samples that follow each other."""
        size = -(-len(self.past) // pieces)
        weights = [None] * pieces if self.weight is None else self.weight.split(size)
        parts = (part.split(size) for part in (self.past, self.future, self.observed))
        return [Batch(*piece) for piece in zip(*parts, weights, strict=False)]


def network_input(
    past_mm_h: Float[Tensor, "... H W"], normalisation: RainNormalisation
) -> Float[Tensor, "... 2 H W"]:
    """Rain rate in mm/h (NaN = not observed) as two channels: normalised, and observed or not."""
    observed = past_mm_h.isfinite()
    rain_rate = normalisation.encode(past_mm_h.where(observed, 0.0))
    return torch.stack([rain_rate, observed.to(rain_rate.dtype)], dim=-3)


def batch_of(
    sequences_mm_h: Float[Tensor, "B time H W"],
    past_frames: int,
    normalisation: RainNormalisation,
    weight: Float[Tensor, " B"] | None = None,
) -> Batch:
    """Sequences in mm/h (NaN = not observed) as a network takes them."""
    past, future = sequences_mm_h[:, :past_frames], sequences_mm_h[:, past_frames:, None]
    observed = future.isfinite()
    encoded = normalisation.encode(future.where(observed, 0.0))
    return Batch(network_input(past, normalisation), encoded, observed, weight)


class SequenceDataset(Dataset[Tensor]):
    """The samples of an index: (time, y, x) mm/h, NaN where not observed, read as asked for."""

    def __init__(self, archive_url: str, index: SampleIndex) -> None:
        self.index = index
        self.reader = SampleReader(archive_url)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, sample: int) -> Float[Tensor, "time y x"]:
        return torch.from_numpy(self.index.read(self.reader, sample))


def load(
    dataset: SequenceDataset, batches: Iterable[list[int]], loaders: int, device: torch.device
) -> Iterator[Float[Tensor, "B time y x"]]:
    """Batches of samples on a device: read ahead by so many processes, or here where there are 0.

    Loaders are started by a fork server, which is young enough to be forked from.
    """
    ahead: dict[str, Any] = {}
    if loaders:
        ahead = {"multiprocessing_context": "forkserver", "prefetch_factor": READ_AHEAD}
    pinned = device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_sampler=batches,  # any iterable will do
        num_workers=loaders,
        pin_memory=pinned,
        **ahead,
    )
    for sequences in loader:
        yield sequences.to(device, non_blocking=pinned)


def draw(acceptance: NDArray[np.float64], count: int, seed: Sequence[int]) -> list[int]:
    """`count` samples, each with a chance in proportion to its acceptance."""
    rng = np.random.default_rng(list(seed))
    return rng.choice(len(acceptance), size=count, p=acceptance / acceptance.sum()).tolist()


def share(samples: Sequence[Any], rank: int, world_size: int) -> list[Any]:
    """A worker's part of a batch: every worker's together are all of it."""
    return list(samples[rank::world_size])


@runtime_checkable
class TrainingData(Protocol):
    """What a run trains on. It is sent to every worker, and opened there.

    Attributes
    ----------
    in_channels : channels of a past frame
    samples_per_epoch, batch_size : samples of an epoch and of a step, of all workers together
    version : what the samples are made from, as a hash or a name
    past_frames : of a sequence, up to its init_time
    leads : how each lead time is called, such as 15min
    """

    @property
    def in_channels(self) -> int: ...  # noqa: D102
    @property
    def samples_per_epoch(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def past_frames(self) -> int: ...  # noqa: D102
    @property
    def leads(self) -> tuple[str, ...]: ...  # noqa: D102

    def training(
        self, steps: range, rank: int, world_size: int, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """A worker's share of each step's batch."""
        ...

    def validation(self, rank: int, world_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """A worker's batches for validation, the same ones every time; there may be none."""
        ...


def steps_per_epoch(data: TrainingData) -> int:
    """How many whole batches an epoch has."""
    return data.samples_per_epoch // data.batch_size


@dataclass(frozen=True)
class ArchiveData:
    """Samples of an archive, drawn with a chance in proportion to their acceptance.

    Parameters
    ----------
    validation_samples : how many are drawn for validation, likewise, and weighted by one over their
        acceptance, so that what is averaged over them is as if all counted alike
    loaders : processes of each worker that read ahead
    """

    archive_url: str
    training_index: SampleIndex
    validation_index: SampleIndex | None
    samples_per_epoch: int
    batch_size: int
    seed: int
    normalisation: Kind = "log"
    augmentation: AugmentSettings = AugmentSettings()
    validation_samples: int = 64
    loaders: int = 0
    version: str = ""
    leads: tuple[str, ...] = ()
    in_channels: int = INPUT_CHANNELS

    @property
    def past_frames(self) -> int:
        """See `TrainingData`."""
        return self.training_index.shape.past

    def training(
        self, steps: range, rank: int, world_size: int, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """See `TrainingData`."""
        dataset = SequenceDataset(self.archive_url, self.training_index)
        shares = (share(batch, rank, world_size) for batch in self.batches(steps))
        loaded = load(dataset, shares, self.loaders, device)
        for step, sequences in zip(steps, loaded, strict=True):
            keys = [(self.seed, step, k) for k in range(rank, self.batch_size, world_size)]
            yield self._batch_of(augment(sequences, keys, self.augmentation))

    def batches(self, steps: range) -> Iterator[list[int]]:
        """The samples of each step, of all workers together."""
        of_epoch: list[int] = []
        for step in steps:
            epoch, place = divmod(step, steps_per_epoch(self))
            if place == 0 or not of_epoch:
                chance = self.training_index.acceptance
                of_epoch = draw(chance, self.samples_per_epoch, (self.seed, epoch))
            yield of_epoch[place * self.batch_size : (place + 1) * self.batch_size]

    def validation(self, rank: int, world_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """See `TrainingData`."""
        if self.validation_index is None:
            return
        dataset = SequenceDataset(self.archive_url, self.validation_index)
        acceptance = self.validation_index.acceptance
        mine = share(draw(acceptance, self.validation_samples, (self.seed,)), rank, world_size)
        cuts = range(0, len(mine), self.batch_size)
        batches = [mine[cut : cut + self.batch_size] for cut in cuts]
        for samples, sequences in zip(batches, load(dataset, batches, 0, device), strict=True):
            weight = torch.from_numpy(acceptance.max() / acceptance[samples]).float()
            yield self._batch_of(sequences, weight.to(device))

    def _batch_of(self, sequences: Tensor, weight: Tensor | None = None) -> Batch:
        return batch_of(sequences, self.past_frames, RainNormalisation(self.normalisation), weight)
