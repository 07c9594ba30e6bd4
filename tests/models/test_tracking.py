"""Tracking: what was told can be read back, and a store that fails stops nothing."""

import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from models import tracking
from models.tracking import NoTracker, Sheltered, flat, open_tracker
from pipelines import storage
from pipelines.errors import SquallError
from pipelines.pictures import sequence_picture

LEADS = ["5min", "10min"]
SETTINGS = {"train": {"epochs": 2, "network": {"name": "convlstm"}, "end": None}, "code": {}}


@pytest.fixture(scope="module")
def png():
    rain = np.ones((2, 8, 8))
    return sequence_picture(rain, rain, LEADS, "an event")


def events(root):
    """What TensorBoard would read: (step, tag, value) of every event file of run1."""
    from tensorboardX.proto.event_pb2 import Event

    folder = storage.join(root, "runs", "run1", "tensorboard")
    found = []
    for name in storage.names(folder):
        content = storage.read_bytes(f"{folder}/{name}") if "tfevents" in name else b""
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            found += [(event.step, value.tag, value) for value in event.summary.value]
            content = content[16 + size :]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboardX.*")
@pytest.mark.parametrize("place", ["local", "memory://tracked"])
def test_tensorboard_tells_what_it_was_told_and_goes_on(tmp_path, place, png, caplog):
    root = str(tmp_path) if place == "local" else f"{place}/{tmp_path.name}"
    for step in (1, 2):  # the second run resumes the first
        tracker = open_tracker("tensorboard", None, root, "radar", "run1")
        tracker.settings(SETTINGS)
        tracker.metrics(step, {"loss": 1 / step, "csi_0.5mm_h_5min": 0.25})
        tracker.picture(step, "event", png)
        tracker.end()
    told = events(root)
    numbers = {(step, tag): value.simple_value for step, tag, value in told}
    for step in (1, 2):
        assert numbers[step, "loss"] == pytest.approx(1 / step)
        assert numbers[step, "csi_0.5mm_h_5min"] == 0.25
        assert (step, "event") in numbers
    folder = storage.join(root, "runs", "run1", "tensorboard")
    assert storage.read_json(f"{folder}/settings.json") == SETTINGS
    assert not caplog.records


def test_a_store_is_chosen_by_what_is_there(monkeypatch, tmp_path):
    chosen = []

    class Chosen(NoTracker):
        def __init__(self, place, open_):
            chosen.append(place)

    monkeypatch.setattr(tracking, "Sheltered", Chosen)
    local, remote, server = str(tmp_path), "s3://bucket/root", "http://127.0.0.1:9"
    for url, root in [(None, local), (None, remote), (server, remote)]:
        open_tracker(None, url, root, "radar", "run1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    open_tracker(None, None, local, "radar", "run1")
    assert chosen == [
        f"sqlite:///{local}/mlflow.db",
        "s3://bucket/root/runs/run1/tensorboard",
        server,
        f"{local}/runs/run1/tensorboard",
    ]
    assert isinstance(open_tracker("none", server, remote, "radar", "run1"), NoTracker)


def test_what_can_never_work_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(SquallError, match=r"needs a local folder.*name a server"):
        open_tracker("mlflow", None, "s3://bucket/root", "radar", "run1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, url in [("mlflow", None), (None, "http://127.0.0.1:9")]:
        with pytest.raises(SquallError, match=r"squall\[tracking\]"):
            open_tracker(kind, url, str(tmp_path), "radar", "run1")


class Steps(NoTracker):
    """A tracker that fails at some steps, and waits for `gate`."""

    def __init__(self, *failing):
        self.failing, self.told, self.gate = failing, [], threading.Event()
        self.gate.set()

    def metrics(self, step, values):
        self.gate.wait(10)
        if step in self.failing:
            raise OSError("no space left on device")
        self.told.append((step, values))

    def end(self, *, failed=False):
        self.told.append("failed" if failed else "finished")


def test_a_failure_is_one_warning_and_what_comes_after_is_told(caplog):
    steps, attempts = Steps(3, 4), []

    def open_():
        attempts.append(len(attempts))
        if len(attempts) < 3:
            raise ConnectionError("no server")
        return steps

    tracker = Sheltered("the store", open_)
    for step in range(6):
        tracker.metrics(step, {"loss": 1.0})
    tracker.end(failed=True)
    assert steps.told == [(2, {"loss": 1.0}), (5, {"loss": 1.0}), "failed"]
    assert len(attempts) == 3
    (record,) = caplog.records
    assert "the store is not told" in record.getMessage()
    assert "no server" in record.getMessage()


def test_training_waits_for_no_store(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "MOST_WAITING", 5)
    monkeypatch.setattr(tracking, "END_S", 0.1)
    steps = Steps()
    steps.gate.clear()
    tracker = Sheltered("the store", lambda: steps)
    values = {"loss": 1.0}
    began = time.monotonic()
    for step in range(100):
        tracker.metrics(step, values)
    tracker.end()
    assert time.monotonic() - began < 5
    assert len(caplog.records) == 1
    values["loss"] = 2.0  # what is told is what was so then
    steps.gate.set()
    while len(steps.told) < 5:
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    assert steps.told[:5] == [(step, {"loss": 1.0}) for step in range(5)]


def test_nested_settings_are_flattened_by_dots():
    assert flat(SETTINGS) == {
        "train.epochs": 2,
        "train.network.name": "convlstm",
        "train.end": None,
    }


def environment(**more):
    """A user's, who has not asked for quiet."""
    hidden = ("DO_NOT_TRACK", "CI", "MLFLOW_", "PYTEST_", "GITHUB_", "SQUALL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return kept | more


RUNS = """
import sys
reached = []
sys.addaudithook(lambda event, given: reached.append(given) if event in REACHING else None)
REACHING = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
from models.tracking import open_tracker

root, png = sys.argv[1], open(sys.argv[2], "rb").read()
for epochs, step in ((2, 1), (3, 2)):
    tracker = open_tracker("mlflow", None, root, "radar", "run1")
    tracker.settings({"train": {"epochs": epochs, "network": {"name": "convlstm"}}})
    tracker.metrics(step, {"loss": 1 / step, "csi_0.5mm_h_30min": float("nan")})
    tracker.picture(step, "event", png)
    tracker.end(failed=step == 1)
open_tracker("mlflow", None, root, "radar", "run2").end(failed=True)
sys.exit(f"reached {reached}" if reached else 0)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_keeps_what_it_was_told_and_reaches_nothing_but_its_store(tmp_path, png):
    (tmp_path / "picture.png").write_bytes(png)
    root = tmp_path / "root"
    made = subprocess.run(
        [sys.executable, "-c", RUNS, str(root), str(tmp_path / "picture.png")],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "is not told" not in made.stderr
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'radar'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"run1", "run2"}, "a run of the same name is continued"
    run = runs["run1"]
    assert (run.info.status, runs["run2"].info.status) == ("FINISHED", "FAILED")
    assert run.data.params == {"train.epochs": "2", "train.network.name": "convlstm"}
    resumed = {k: v for k, v in run.data.tags.items() if k.startswith("resumed.")}
    assert resumed == {"resumed.train.epochs": "3"}
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in losses] == [(1, 1.0), (2, 0.5)]
    assert np.isnan(run.data.metrics["csi_0.5mm_h_30min"])
    artifacts = next((root / "mlflow-artifacts").glob("*/artifacts"))
    newest = json.loads((artifacts / "settings.json").read_text())
    assert newest["train"]["epochs"] == 3
    assert len(list((artifacts / "images").glob("event*.png"))) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_training_goes_on_when_the_server_goes_away(tmp_path, png, caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    log = tmp_path / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(MLFLOW_DISABLE_TELEMETRY="true"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(f"{url}/health"), server, log)
        tracker = open_tracker(None, url, "s3://bucket/root", "radar", "run1")
        tracker.settings(SETTINGS)
        tracker.metrics(1, {"loss": 1.0})
        tracker.picture(1, "event", png)
        images = tmp_path / "artifacts"
        wait_until(lambda: any(images.rglob("event*.png")), server, log)
        assert not [r for r in caplog.records if r.name == "models.tracking"]
    finally:
        kill_group(server)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="models.tracking"):
        for step in range(2, 5):
            tracker.metrics(step, {"loss": 1.0})
        assert time.monotonic() - began < 1, "no step waits for the server"
        tracker.end()
    warnings = [record for record in caplog.records if record.name == "models.tracking"]
    assert len(warnings) == 1
    assert url in warnings[0].getMessage()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def wait_until(condition, server, log):
    end = time.monotonic() + 180
    while not condition():
        assert server.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.2)


def kill_group(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(timeout=30)
