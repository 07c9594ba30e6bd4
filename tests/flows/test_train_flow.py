"""`squall train --submit` and the Prefect flow find their job, and the job ends with them."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import jobs
from models.registry import load_model
from models.run_status import RunStatus, read_status, write_status
from models.training import TrainSettings

from .conftest import BIN, DEADLINE_S, ROOT, Prefect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray's own, many
]

SHORT: dict[str, Any] = {
    "network": {"hidden_channels": (4,)},
    "past": "15min",
    "future": "15min",
    "crop": 32,
    "epochs": 1,
    "samples_per_epoch": 16,
    "batch_size": 4,
    "workers": 1,
}


@pytest.fixture
def project(tmp_path, root, archive) -> Path:
    """A folder to train in: squall.toml, the flows, and a store with `archive` in it."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store/archive").symlink_to(Path(root) / "archive")
    (tmp_path / "flows").symlink_to(ROOT / "flows")
    lines = ['root = "store"', 'product = "test"', "[train]", "network.hidden_channels = [4]"]
    lines += [f"{k} = {v!r}" for k, v in SHORT.items() if k != "network"]
    (tmp_path / "squall.toml").write_text("\n".join(lines))
    return tmp_path


def wait_for(what: Callable[[], Any], within_s: float = DEADLINE_S) -> Any:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {within_s} s")


def job_states(address: str) -> dict[str, str]:
    return {job.submission_id: str(job.status) for job in jobs._client(address).list_jobs()}


def data_of(prefect: Prefect, key: str) -> Any:
    chosen = {"artifacts": {"key": {"any_": [key]}}}
    return prefect.api("/artifacts/latest/filter", chosen)[0]["data"]


def test_the_command_finds_the_job_that_trains_its_run_and_follows_it_to_the_model(
    ray_head, prefect, project
):
    store = str(project / "store")
    first = jobs.submit(ray_head, store, "test", TrainSettings(**SHORT), "attached")
    command = ["train", "--submit", ray_head, "--set", "train.run=attached"]
    run = prefect.run("squall", *command, cwd=project)
    assert run.returncode == 0, run.stdout + run.stderr
    assert [job for job in job_states(ray_head) if job.startswith("attached")] == [first]
    model = load_model(store, "test")
    assert f"model: {project}/store/models/{model.id}" in run.stdout
    assert f"job {first}: SUCCEEDED" in run.stdout
    status = read_status(store, "attached")
    assert status is not None
    assert (status.state, status.model) == ("done", model.id)

    assert float(data_of(prefect, "training-progress")) == 100
    assert "| state | done |" in data_of(prefect, "training-status")
    assert model.id in data_of(prefect, "training-metrics")


def test_the_command_ends_with_its_job_and_the_job_with_the_command(ray_head, prefect, project):
    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / "squall"), "train", "--submit", ray_head, "--epochs", "10000", *words],
            cwd=project,
            env=prefect.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    store = str(project / "store")
    sent = {"sigint": signal.SIGINT, "sigterm": signal.SIGTERM}
    commands = {run: start("--set", f"train.run={run}") for run in sent}
    failing = start("--product", "nothing")
    try:
        for run, command in commands.items():
            wait_for(lambda run=run: read_status(store, run))
            command.send_signal(sent[run])
        told = {run: command.communicate(timeout=DEADLINE_S) for run, command in commands.items()}
        _, error = failing.communicate(timeout=DEADLINE_S)
    finally:
        for command in (*commands.values(), failing):
            command.kill()

    for run, command in commands.items():
        assert command.returncode == 130, told[run]
        (job,) = [job for job in job_states(ray_head) if job.startswith(run)]
        assert job_states(ray_head)[job] == "STOPPED"
        assert f"job {job}: stopped" in told[run][0]
        status = read_status(store, run)
        assert status is not None
        assert (status.state, status.error) == ("failed", "stopped")

    assert failing.returncode == 2, error
    line = error.strip().splitlines()[-1]
    assert re.match(r"squall: the job nothing-\w+-\w+ failed: found no archive: found", line)
    assert "Traceback" not in error


def test_cancelling_a_flow_run_of_a_worker_stops_its_job(ray_head, prefect, project):
    def made(*words: str) -> None:
        run = prefect.run("prefect", "--no-prompt", *words, cwd=project)
        assert run.returncode == 0, run.stdout + run.stderr

    made("work-pool", "create", "training", "--type", "process")
    made("deploy", "flows/train.py:train", "--name", "cancelled", "--pool", "training")
    (deployment,) = prefect.api(
        "/deployments/filter", {"deployments": {"name": {"any_": ["cancelled"]}}}
    )

    def told() -> list[str]:
        of_run = {"logs": {"flow_run_id": {"any_": [created["id"]]}}, "limit": 200}
        return [record["message"] for record in prefect.api("/logs/filter", of_run)]

    settings = {"run": "cancelled", "epochs": 10_000}
    parameters = {"submit": ray_head, "train": settings, "root": str(project / "store")}
    with (project / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [str(BIN / "prefect"), "worker", "start", "--pool", "training"],
            cwd=project,
            env=prefect.environment | {"PATH": f"{BIN}:/usr/bin:/bin"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            created = prefect.api(
                f"/deployments/{deployment['id']}/create_flow_run",
                {"parameters": parameters, "state": {"type": "SCHEDULED"}},
            )
            wait_for(lambda: read_status(str(project / "store"), "cancelled"))
            (job,) = [job for job in job_states(ray_head) if job.startswith("cancelled")]
            # What the training itself says of its progress moves the artifact.
            status = RunStatus("cancelled", "training", step=1, steps=4)
            write_status(str(project / "store"), "cancelled", status)
            wait_for(lambda: float(data_of(prefect, "training-progress")) == 25)
            wait_for(lambda: "run: cancelled" in told())  # the job's log is the run's
            prefect.api(
                f"/flow_runs/{created['id']}/set_state",
                {"state": {"type": "CANCELLING"}},
            )
            wait_for(lambda: job_states(ray_head)[job] == "STOPPED")
            chosen = {"flow_runs": {"id": {"any_": [created["id"]]}}}
            wait_for(
                lambda: prefect.api("/flow_runs/filter", chosen)[0]["state_type"] == "CANCELLED"
            )
        except AssertionError as error:
            raise AssertionError((project / "worker.log").read_text()[-4000:]) from error
        finally:
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=60)
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
