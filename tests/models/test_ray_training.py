"""Ray Train: a run that was killed and resumed ends with the weights of one that was not."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
import torch

from models.data import ArchiveData
from models.ray_training import fit
from models.registry import load_model
from models.train import train_model
from models.training import TrainSettings
from pipelines import storage
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
    workers=2,
    max_failures=1,
)


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
def samples(archive):
    shape = SETTINGS.sequence_shape(archive)
    times = complete_init_times(archive.usable_times(), archive.timestep, shape)
    return build_index(archive, times[:12], shape)


class KillOnce:
    """Kills the worker that runs it after an epoch, the first time; a file remembers."""

    def __init__(self, epoch: int, memory: Path) -> None:
        self.epoch, self.memory = epoch, memory

    def __call__(self, epoch: int) -> None:
        with (self.memory / f"epochs-{ray.train.get_context().get_world_rank()}").open("a") as log:
            log.write(f"{epoch}\n")
        killed = self.memory / "killed"
        rank = ray.train.get_context().get_world_rank()
        if epoch == self.epoch and rank == 1 and not killed.exists():
            killed.touch()
            time.sleep(4)  # until the controller has seen the report
            os.kill(os.getpid(), signal.SIGKILL)


def data_of(archive, samples):
    size = SETTINGS.samples_per_epoch, SETTINGS.batch_size, SETTINGS.seed
    return ArchiveData(archive.url, samples, None, *size)


def test_a_killed_and_resumed_run_has_the_weights_of_an_undisturbed_one(
    cluster, archive, samples, tmp_path
):
    place = storage.normalise(tmp_path / "runs")
    data = data_of(archive, samples)
    undisturbed = fit(data, SETTINGS, storage_url=place, run_name="undisturbed")
    resumed = fit(
        data,
        SETTINGS,
        storage_url=place,
        run_name="killed",
        on_epoch_end=KillOnce(1, tmp_path),
    )
    assert (tmp_path / "killed").exists()
    epochs = (tmp_path / "epochs-0").read_text().split()
    assert epochs.count("0") == 1, "it resumed from a checkpoint, not from the start"
    assert epochs[-1] == "2"
    assert resumed.weights.keys() == undisturbed.weights.keys()
    for name, weights in undisturbed.weights.items():
        assert torch.equal(resumed.weights[name], weights), name
    assert resumed.history == undisturbed.history
    assert undisturbed.history[-1]["loss"] < undisturbed.history[0]["loss"]


def test_a_run_of_the_same_name_goes_on_where_it_stopped(cluster, archive, samples, tmp_path):
    place = storage.normalise(tmp_path / "runs")
    short = SETTINGS.model_copy(update={"epochs": 1})
    first = fit(data_of(archive, samples), short, storage_url=place, run_name="one")
    second = fit(data_of(archive, samples), SETTINGS, storage_url=place, run_name="one")
    assert len(first.history) == 1
    assert second.history[0] == first.history[0]
    assert len(second.history) == SETTINGS.epochs


def test_training_registers_a_champion(cluster, archive, tmp_path):
    root = storage.normalise(tmp_path)
    settings = SETTINGS.model_copy(update={"epochs": 1})
    model_id = train_model(root, "small", archive.url, settings)
    model = load_model(root, "small")
    assert model.id == model_id
    assert model.past_frames == 3
    assert model.timestep == archive.timestep
    assert {"loss", "validation_loss", "validation_persistence"} <= model.metrics.keys()
