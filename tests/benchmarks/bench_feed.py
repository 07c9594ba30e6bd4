"""Is a network fed faster than it learns? Batches against steps, in one run.

    python -m tests.benchmarks.bench_feed                  # CPU
    python -m tests.benchmarks.bench_feed --device cuda    # a GPU

Builds an archive in the training layout (see bench_samples), then measures, in turns: how many
samples a second are fed where nobody learns, how many the network consumes of batches that are
there already, and a training with both, of whose time it says how much was waited for batches. The
loaders of a turn are started before it is timed.
"""

import argparse
import statistics
import tempfile
import time

import torch

from models.augmentation import AugmentSettings
from models.data import ArchiveData
from models.learner import Learner
from models.training import NetworkSettings, TrainSettings
from models.worker import Clock
from pipelines.samples import SequenceShape, build_index, complete_init_times

from .bench_samples import build

PAST, FUTURE = 6, 12


def waited(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaders", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    settings = TrainSettings(
        network=NetworkSettings(hidden_channels=(64, 64), compute="bf16"),
        batch_size=options.batch,
        workers=1,
    )
    learner = Learner(settings, settings.build_network().to(device))
    with tempfile.TemporaryDirectory() as folder:
        archive = build(f"{folder}/rain.zarr", options.frames, options.size)
        shape = SequenceShape(PAST, FUTURE, options.crop)
        times = complete_init_times(archive.usable_times(), archive.timestep, shape)
        index = build_index(archive, times, shape)
        print(
            f"{len(index)} samples of {PAST}+{FUTURE} frames, {options.crop}²; batches of "
            f"{options.batch}; {options.steps} steps a turn, {options.rounds} rounds; {device.type}"
        )
        print(f"{'loaders':>7} {'fed/s':>8} {'consumed/s':>11} {'fed:consumed':>13} {'waited':>7}")
        augmentation = AugmentSettings(flip=True, rotate=True, jitter=0.1)
        for loaders in options.loaders:
            data = ArchiveData(
                archive.url, index, None, 10**6, options.batch, 0, "log", augmentation, 1, loaders
            )
            rows = [turn(data, learner, options.steps, device) for _ in range(options.rounds)]
            fed, consumed, ratio, share = (
                statistics.median(column) for column in zip(*rows, strict=True)
            )
            print(f"{loaders:7} {fed:8.1f} {consumed:11.1f} {ratio:13.2f} {share:7.1%}")


def turn(
    data: ArchiveData, learner: Learner, steps: int, device: torch.device
) -> tuple[float, float, float, float]:
    """Samples fed and consumed a second, their ratio, and the share of a training that was waited.

    The first batch of each is not timed: it starts the loaders.
    """
    batches = data.training(range(steps + 1), 0, 1, device)
    ready = [next(batches)]
    begun = time.perf_counter()
    ready += batches
    waited(device)
    fed = steps * data.batch_size / (time.perf_counter() - begun)
    learner.step(ready[0], 1e-4)
    waited(device)
    begun = time.perf_counter()
    for batch in ready[1:]:
        learner.step(batch, 1e-4)
    waited(device)
    consumed = steps * data.batch_size / (time.perf_counter() - begun)
    del ready
    batches = data.training(range(steps + 1), 0, 1, device)
    learner.step(next(batches), 1e-4)
    waited(device)
    clock = Clock()
    for _ in range(steps):
        with clock.waiting():
            batch = next(batches)
        learner.step(batch, 1e-4)
        clock.samples += len(batch.past)
    waited(device)
    return fed, consumed, fed / consumed, clock.metrics()["data_wait"]


if __name__ == "__main__":
    main()
