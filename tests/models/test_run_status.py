"""The status of a run is whole at every moment, and says how the run ended."""

import json
import multiprocessing
import time

import pytest

from models.run_status import (
    RunStatus,
    mark_stopped,
    read_status,
    reported,
    status_url,
    write_status,
)
from pipelines import storage
from pipelines.errors import SquallError


def write_many(root: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    step = 0
    while time.monotonic() < end:
        step += 1
        metrics = {f"metric-{k}": float(step) for k in range(500)}  # more than one write(2)
        write_status(root, "run", RunStatus("run", "training", step=step, metrics=metrics))


def test_a_status_comes_back_as_written_and_dated(tmp_path):
    status = RunStatus("run", "training", 3, 12, 1, 4, {"loss": 0.5})
    assert read_status(str(tmp_path), "run") is None
    write_status(str(tmp_path), "run", status)
    read = read_status(str(tmp_path), "run")
    assert read is not None
    assert read.updated.endswith("Z")
    assert RunStatus(**{**vars(read), "updated": ""}) == status
    assert read.percent == 25
    assert RunStatus("run", "starting").percent == 0


def test_readers_never_see_half_a_status_though_the_writer_is_killed(tmp_path):
    writer = multiprocessing.get_context("spawn").Process(
        target=write_many, args=(str(tmp_path), 60.0)
    )
    writer.start()
    seen = set()
    end = time.monotonic() + 60
    while len(seen) < 30 and time.monotonic() < end:
        if (status := read_status(str(tmp_path), "run")) is not None:
            assert set(status.metrics.values()) == {float(status.step)}
            seen.add(status.step)
    writer.kill()
    writer.join()
    assert len(seen) >= 30
    last = read_status(str(tmp_path), "run")
    assert last is not None
    assert last.step >= max(seen)


def test_a_run_that_ends_well_keeps_how_far_it_came(tmp_path):
    root = str(tmp_path)

    def train() -> str:
        status = read_status(root, "run")
        assert status is not None
        assert status.state == "starting"
        write_status(root, "run", RunStatus("run", "training", 8, 8, 2, 2, {"loss": 0.1}))
        return "town/1"

    assert reported(root, "run", train) == "town/1"
    status = read_status(root, "run")
    assert status is not None
    assert (status.state, status.model, status.metrics) == ("done", "town/1", {"loss": 0.1})
    assert status.percent == 100


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SquallError("no", found="a", expected="b", remedy="c"), "no: found a; expected b."),
        (RuntimeError("out of memory"), "RuntimeError('out of memory')"),
        (SystemExit(15), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_ends_badly_says_why_and_the_error_goes_on(tmp_path, error, told):
    def train() -> str:
        write_status(str(tmp_path), "run", RunStatus("run", "training", step=3, steps=9))
        raise error

    with pytest.raises(type(error)):
        reported(str(tmp_path), "run", train)
    status = read_status(str(tmp_path), "run")
    assert status is not None
    assert (status.state, status.step) == ("failed", 3)
    assert status.error is not None
    assert status.error.startswith(told)


@pytest.mark.parametrize("content", [b"{", b'{"run": "a"}', b'{"run": "a", "stage": "training"}'])
def test_a_status_that_is_none_is_a_clear_error(tmp_path, content):
    storage.write_bytes(status_url(str(tmp_path), "run"), content)
    with pytest.raises(SquallError, match=r"status of a run does not read.*status\.json"):
        read_status(str(tmp_path), "run")


def test_who_stops_a_run_says_so_where_it_could_not_itself(tmp_path):
    root = str(tmp_path)
    mark_stopped(root, "unknown")
    assert read_status(root, "unknown") is None
    for state, expected in (("training", ("failed", "stopped")), ("done", ("done", None))):
        write_status(root, "run", RunStatus("run", state, 3, 12))
        mark_stopped(root, "run")
        status = read_status(root, "run")
        assert (status.state, status.error, status.step) == (*expected, 3)


def test_the_file_is_plain_json(tmp_path):
    write_status(str(tmp_path), "run", RunStatus("run", "scoring"))
    content = json.loads((tmp_path / "runs/run/status.json").read_text())
    assert content["state"] == "scoring"
