"""Ray Train: whatever happens to a run, it ends with the weights of one that was left alone."""

import os
import signal
from pathlib import Path

import pytest
import ray
import torch

from models.data import ArchiveData
from models.ray_training import fit
from models.registry import load_model
from models.train import train_model
from models.training import CheckpointSettings, TrainSettings
from pipelines import storage
from pipelines.errors import SquallError
from pipelines.samples import build_index, complete_init_times

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own, many
]

SETTINGS = TrainSettings(
    network={"hidden_channels": (4,)},
    past="15min",
    future="15min",
    crop=32,
    epochs=3,
    samples_per_epoch=16,
    batch_size=4,
    average=0.5,
    workers=2,
    loaders=0,
    max_failures=1,
    checkpoint=CheckpointSettings(every_steps=2),
)
"""Four steps an epoch, a checkpoint in its middle and at its end."""


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data(archive):
    shape = SETTINGS.sequence_shape(archive)
    times = complete_init_times(archive.usable_times(), archive.timestep, shape)
    size = SETTINGS.samples_per_epoch, SETTINGS.batch_size, SETTINGS.seed
    training, validation = (build_index(archive, part, shape) for part in (times[:9], times[12:]))
    return ArchiveData(archive.url, training, validation, *size, validation_samples=6)


@pytest.fixture(scope="module")
def undisturbed(cluster, data, tmp_path_factory):
    place = storage.normalise(tmp_path_factory.mktemp("runs"))
    return fit(data, SETTINGS, storage_url=place, run_name="undisturbed")


def losses(trained):
    return [epoch[name] for epoch in trained.history for name in ("loss", "validation_loss")]


def assert_same(trained, expected, tolerance=0.0):
    assert losses(trained) == pytest.approx(losses(expected), rel=max(tolerance, 1e-6))
    assert trained.weights.keys() == expected.weights.keys()
    for name, weights in expected.weights.items():
        torch.testing.assert_close(
            trained.weights[name], weights, rtol=tolerance, atol=tolerance, msg=name
        )


class KillOnce:
    """Kills the worker that runs it after a step, the first time; a file remembers."""

    def __init__(self, step: int, memory: Path) -> None:
        self.step, self.memory = step, memory

    def __call__(self, step: int) -> None:
        rank = ray.train.get_context().get_world_rank()
        with (self.memory / f"steps-{rank}").open("a") as made:
            made.write(f"{step}\n")
        killed = self.memory / "killed"
        if step == self.step and rank == 1 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_within_an_epoch_costs_the_steps_since_the_checkpoint(
    data, undisturbed, tmp_path
):
    place = storage.normalise(tmp_path / "runs")
    killer = KillOnce(7, tmp_path)  # a checkpoint after 6
    resumed = fit(data, SETTINGS, storage_url=place, run_name="killed", after_step=killer)
    assert (tmp_path / "killed").exists()
    steps = (tmp_path / "steps-1").read_text().split()
    assert steps[:7] == [str(step) for step in range(1, 8)]
    assert steps[7] == "7", "it went on from the checkpoint of step 6"
    assert_same(resumed, undisturbed)
    assert undisturbed.history[-1]["loss"] < undisturbed.history[0]["loss"]


def test_one_worker_and_two_learn_the_same(data, undisturbed, tmp_path):
    alone = SETTINGS.model_copy(update={"workers": 1, "accumulate": 2})
    place = storage.normalise(tmp_path)
    assert_same(fit(data, alone, storage_url=place, run_name="alone"), undisturbed, 2e-5)


def test_loaders_that_read_ahead_change_nothing(data, undisturbed, tmp_path):
    import dataclasses

    ahead = dataclasses.replace(data, loaders=1)
    place = storage.normalise(tmp_path)
    assert_same(fit(ahead, SETTINGS, storage_url=place, run_name="ahead"), undisturbed)


def test_a_run_of_the_same_name_goes_on_where_it_stopped(cluster, data, tmp_path):
    place = storage.normalise(tmp_path / "runs")
    short = SETTINGS.model_copy(update={"epochs": 1})
    first = fit(data, short, storage_url=place, run_name="one")
    second = fit(data, SETTINGS, storage_url=place, run_name="one")
    assert len(first.history) == 1
    assert second.history[0] == first.history[0]
    assert len(second.history) == SETTINGS.epochs
    with pytest.raises(SquallError, match="begun with other settings"):
        fit(data, SETTINGS.model_copy(update={"seed": 3}), storage_url=place, run_name="one")


def test_training_registers_a_champion(cluster, archive, tmp_path):
    root = storage.normalise(tmp_path)
    settings = SETTINGS.model_copy(update={"epochs": 1})
    model_id = train_model(root, "small", archive.url, settings)
    model = load_model(root, "small")
    assert model.id == model_id
    assert model.past_frames == 3
    assert model.timestep == archive.timestep
    assert {"loss", "validation_loss", "validation_persistence"} <= model.metrics.keys()
