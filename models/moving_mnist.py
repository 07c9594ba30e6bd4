"""Moving MNIST (Srivastava et al. 2015, "Unsupervised Learning of Video Representations using
LSTMs", section 3): handwritten digits that drift over a black square and bounce off its sides.

The benchmark's standard form: frames of 64×64 pixels in [0, 1], two digits of 28×28, ten past
frames and ten future ones. A digit starts anywhere, in any direction, at 3.6 pixels a frame (a
tenth of the way that it has); where digits overlap the brighter one is seen.

Sequences are made as they are needed. Number n of a seed is always the same one, whichever worker
asks, in whatever order; those for testing are of digits that training never sees.
"""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from models.data import CPU, Batch, share
from pipelines import storage
from pipelines.errors import NotFoundError, SquallError

TRAIN_FILE, TEST_FILE = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
SIZE, DIGIT, DIGITS = 64, 28, 2
PAST, FUTURE = 10, 10
WAY = SIZE - DIGIT
"""How far a digit can go, in pixels."""
SPEED = 0.1
"""Of the way, a frame."""
IDX_IMAGES = 0x803
"""What an idx file of images begins with: unsigned bytes, three dimensions."""
VALIDATION_SAMPLES = 64
TEST_SEQUENCES = 10_000
TEST_SEED = 10_000
"""The test set is one, whatever seed a network is trained with."""


def read_images(folder: str, name: str) -> UInt8[np.ndarray, "image y x"]:
    """The images of an idx file in a folder, plain or gzipped; a URL will do.

    Raises `NotFoundError` where there is none, `SquallError` where it is no such file or cut short.
    """
    found = [url for ending in ("", ".gz") if storage.exists(url := f"{folder}/{name}{ending}")]
    if not found:
        raise NotFoundError(
            "no MNIST images",
            found=f"neither {name} nor {name}.gz in {storage.display(folder)}",
            expected="the four idx files of MNIST, or those with images",
            remedy="name the folder that has them",
        )
    content = storage.read_bytes(found[0])
    try:
        content = gzip.decompress(content) if found[0].endswith(".gz") else content
    except (OSError, EOFError) as error:
        raise _not_images(found[0], f"gzip that does not end: {error}") from error
    head = np.frombuffer(content[:16], ">u4")
    if len(head) < 4 or head[0] != IDX_IMAGES or tuple(head[2:]) != (DIGIT, DIGIT):
        raise _not_images(found[0], f"a file that begins with {content[:16].hex()}")
    count = int(head[1])
    if len(content) != 16 + count * DIGIT**2:
        raise _not_images(found[0], f"{len(content)} bytes for {count} images")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, DIGIT, DIGIT)


def _not_images(url: str, found: str) -> SquallError:
    return SquallError(
        f"{storage.display(url)} holds no MNIST images",
        found=found,
        expected="an idx file of 28×28 images, whole",
        remedy="fetch it again",
    )


def positions(
    start: NDArray[np.floating], velocity: NDArray[np.floating], frames: int
) -> NDArray[np.intp]:
    """Where digits are: (frame, digit, 2) in pixels, from start and velocity in parts of the way.

    A digit that comes to a side goes back the way it has gone too far: its path is a straight line,
    folded.
    """
    straight = start + np.arange(frames)[:, None, None] * velocity
    folded = 1 - np.abs(straight % 2 - 1)
    return (folded * WAY).round().astype(np.intp)


def sequence(
    images: UInt8[np.ndarray, "image y x"], seed: int, number: int, frames: int = PAST + FUTURE
) -> UInt8[np.ndarray, "time Y X"]:
    """Sequence `number` of a seed, (time, y, x), 0 to 255."""
    rng = np.random.default_rng([seed, number])
    chosen = rng.integers(len(images), size=DIGITS)
    angle = rng.uniform(0, 2 * math.pi, DIGITS)
    velocity = SPEED * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    places = positions(rng.uniform(size=(DIGITS, 2)), velocity, frames)
    canvas = np.zeros((frames, SIZE, SIZE), np.uint8)
    for digit, image in enumerate(images[chosen]):
        for frame, (y, x) in zip(canvas, places[:, digit], strict=True):
            window = frame[y : y + DIGIT, x : x + DIGIT]
            np.maximum(window, image, out=window)
    return canvas


@lru_cache(maxsize=2)
def _images(folder: str, name: str) -> UInt8[np.ndarray, "image y x"]:
    return read_images(folder, name)


@dataclass(frozen=True)
class MovingMNISTData:
    """Moving MNIST as `models.data.TrainingData`.

    Parameters
    ----------
    folder : folder or URL with MNIST's idx files
    """

    folder: str
    samples_per_epoch: int
    batch_size: int
    seed: int
    in_channels: int = 1
    past_frames: int = PAST
    leads: tuple[str, ...] = tuple(f"frame {k}" for k in range(1, FUTURE + 1))

    @cached_property
    def _training_images(self) -> UInt8[np.ndarray, "image y x"]:
        return _images(self.folder, TRAIN_FILE)

    @property
    def version(self) -> str:
        """The folder: MNIST is always the same."""
        return self.folder

    def training(
        self, steps: range, rank: int, world_size: int, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """New sequences every epoch."""
        for step in steps:
            numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
            mine = share(numbers, rank, world_size)
            yield from self._batches(self._training_images, self.seed, mine, device)

    def validation(self, rank: int, world_size: int, device: torch.device = CPU) -> Iterator[Batch]:
        """Sequences of training digits that no epoch comes to: those of another seed."""
        mine = share(range(VALIDATION_SAMPLES), rank, world_size)
        yield from self._batches(self._training_images, self.seed + TEST_SEED + 1, mine, device)

    def test(self, sequences: int = TEST_SEQUENCES) -> Iterator[Batch]:
        """The first sequences of the test set."""
        images = _images(self.folder, TEST_FILE)
        return self._batches(images, TEST_SEED, list(range(sequences)), CPU)

    def _batches(
        self,
        images: UInt8[np.ndarray, "image y x"],
        seed: int,
        numbers: list[int],
        device: torch.device,
    ) -> Iterator[Batch]:
        for first in range(0, len(numbers), self.batch_size):
            some = [sequence(images, seed, n) for n in numbers[first : first + self.batch_size]]
            yield batch_of(torch.from_numpy(np.stack(some)).to(device))


def batch_of(sequences: Tensor) -> Batch:
    """Sequences (batch, time, y, x), 0 to 255, as a network takes them: [0, 1], all observed."""
    frames: Float[Tensor, "B time 1 H W"] = sequences[:, :, None].float() / 255
    future = frames[:, PAST:]
    return Batch(frames[:, :PAST], future, torch.ones_like(future, dtype=torch.bool))
