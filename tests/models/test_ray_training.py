"""Ray Train: a worker that is killed is replaced, and the run ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from models import checkpoints, runs
from models.preparation import prepare
from models.ray_training import fit
from models.registry import load_model
from models.run_status import read_status
from models.train import train_model
from pipelines import storage
from pipelines.errors import SquallError

from .small_run import SETTINGS, assert_same, changed, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own, many
]


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


class KillOnce:
    """Kills the second worker after a step, the first time; a file remembers."""

    def __init__(self, step: int, memory: Path) -> None:
        self.step, self.memory = step, memory

    def __call__(self, step: int) -> None:
        if ray.train.get_context().get_world_rank() != 1:
            return
        with (self.memory / "steps").open("a") as made:
            made.write(f"{step}\n")
        killed = self.memory / "killed"
        if step == self.step and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_two_workers_of_which_one_is_killed_learn_what_one_left_alone_does(
    cluster,
    run_data,
    undisturbed,
    tmp_path,
):
    told = []
    trained = fit(
        run_data,
        SETTINGS,
        storage_url=storage.normalise(tmp_path / "runs"),
        run_name="killed",
        on_message=told.append,
        after_step=KillOnce(7, tmp_path),
    )
    steps = [int(step) for step in (tmp_path / "steps").read_text().split()]
    assert steps == [*range(1, 8), *range(7, 13)], "it went on from the checkpoint of step 6"
    assert_same(trained, undisturbed, 2e-5)
    assert told[-1].epoch_ends
    assert told[-1].step == 12


def test_bad_news_of_a_worker_is_its_own_error(cluster, run_data, tmp_path):
    wild = changed(learning_rate=1e30, gradient_clip=1e30, workers=1, max_failures=0)
    with pytest.raises(SquallError, match="training diverged"):
        fit(run_data, wild, storage_url=storage.normalise(tmp_path), run_name="wild")


def test_training_registers_a_champion(cluster, archive, tmp_path):
    root = storage.normalise(tmp_path)
    model_id = train_model(root, "small", archive.url, changed(epochs=1, workers=1, loaders=1))
    model = load_model(root, "small")
    assert model.id == model_id
    assert model.past_frames == 3
    assert model.timestep == archive.timestep
    assert {"loss", "validation_loss", "validation_persistence"} <= model.metrics.keys()


def test_a_job_that_is_killed_with_all_its_workers_and_started_again_goes_on(archive, tmp_path):
    """What a restarted job of a cluster's head is: the same command, the same run."""
    own = storage.normalise(tmp_path)
    (tmp_path / "archive").symlink_to(storage.local_path(archive.url).parent)
    settings = changed(workers=1, epochs=20, run="job").model_dump_json(exclude_defaults=True)
    command = [sys.executable, "-m", "models.train", "--root", own, "--product", "test"]
    environment = {name: os.environ[name] for name in os.environ if name != "RAY_ADDRESS"}

    def start():
        return subprocess.Popen(
            [*command, "--settings", settings],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def step():
        status = read_status(own, "job")
        return status.step if status else 0

    first = start()
    end = time.monotonic() + 240
    while step() < 12 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    reached = step()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert 12 <= reached < 80
    second = start()
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output[-3000:]
    trained = runs.outcome(checkpoints.folder(storage.join(own, "runs"), "job"))
    assert [epoch["step"] for epoch in trained.history] == [*range(4, 81, 4)]
    whole = run(
        prepare(archive.url, changed(epochs=20)).data,
        storage.join(own, "whole"),
        changed(epochs=20),
    )
    assert_same(trained, whole, 2e-5)
