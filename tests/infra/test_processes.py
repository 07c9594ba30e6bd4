"""What is started goes on without us, and what is ended is that and nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from infra.stack.place import PORTS, RAY_WORKERS, Place, bare_environment
from infra.stack.processes import Part, end, log_of, process_of, start
from pipelines.errors import SquallError

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def part_of(tmp_path, code=FAMILY, ready=None, within_s=20.0):
    log = log_of(tmp_path, "thing")

    def printed():
        assert log.read_text().strip()

    return Part("thing", [sys.executable, "-c", code], {}, "here", ready or printed, None, within_s)


@pytest.fixture
def started(tmp_path):
    part = part_of(tmp_path)
    assert start(tmp_path, part, bare_environment())
    yield part
    end(tmp_path, "thing")


def test_a_part_is_started_once_and_ended_with_its_children(tmp_path, started):
    process = process_of(tmp_path, "thing")
    child = int(log_of(tmp_path, "thing").read_text())
    assert not start(tmp_path, started, bare_environment()), "it runs already"
    assert process_of(tmp_path, "thing").pid == process.pid
    assert end(tmp_path, "thing", signal.SIGTERM)
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert not psutil.pid_exists(child)
    assert not end(tmp_path, "thing"), "there is nothing to end any more"


def test_one_that_died_is_started_again(tmp_path, started):
    first = process_of(tmp_path, "thing")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(10)
    assert process_of(tmp_path, "thing") is None
    assert start(tmp_path, started, bare_environment())
    assert process_of(tmp_path, "thing").pid != first.pid


def test_one_that_is_ending_as_we_come_is_started_again(tmp_path, started):
    """It runs when it is looked for, and has gone before it answers."""
    first = process_of(tmp_path, "thing")

    def ready():
        if first.is_running():
            first.kill()
            first.wait(10)
            raise ConnectionError("going")

    assert start(tmp_path, replace(started, ready=ready), bare_environment())
    assert process_of(tmp_path, "thing").pid != first.pid


def test_a_pid_that_is_anothers_now_is_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        record = tmp_path / "run" / "thing.json"
        record.parent.mkdir()
        began = psutil.Process(other.pid).create_time() - 60
        record.write_text(json.dumps({"pid": other.pid, "began": began}))
        assert process_of(tmp_path, "thing") is None
        assert not end(tmp_path, "thing")
        time.sleep(0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_a_damaged_record_is_no_process(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thing.json").write_text(content)
    assert process_of(tmp_path, "thing") is None


def test_one_that_ends_at_once_is_an_error_that_names_its_log(tmp_path):
    part = part_of(tmp_path, code="raise SystemExit(3)")
    with pytest.raises(SquallError, match=r"it has ended.*thing\.log"):
        start(tmp_path, part, bare_environment())


def test_one_that_never_answers_is_ended(tmp_path):
    def never():
        raise ConnectionError("nobody there")

    part = part_of(tmp_path, ready=never, within_s=1.0)
    with pytest.raises(SquallError, match="nobody there"):
        start(tmp_path, part, bare_environment())
    assert process_of(tmp_path, "thing") is None


def test_credentials_are_made_once_and_only_their_owner_reads_them(tmp_path):
    place = Place.open(tmp_path / "stack", 5000)
    secret = place.secrets["s3-secret"]
    path = place.write_environment()
    private = [path, place.ray_token, place.folder / "secrets.json"]
    assert {one.stat().st_mode & 0o777 for one in private} == {0o600}
    again = Place.open(tmp_path / "stack", 6000)
    assert again.secrets["s3-secret"] == secret
    assert again.base_port == 5000, "as at first"
    told = subprocess.run(
        ["sh", "-c", f". {path}; echo $AWS_SECRET_ACCESS_KEY"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == secret


def test_every_server_has_a_port_of_its_own(tmp_path):
    place = Place.open(tmp_path, 7000)
    ports = [place.port(name) for name in PORTS]
    assert len({*ports}) == len(PORTS)
    assert max(ports) < 7000 + RAY_WORKERS[0]


def test_a_programs_python_is_ours(monkeypatch):
    """Ray starts a job's by its name."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = shutil.which("python", path=bare_environment()["PATH"])
    assert found == str(Path(sys.executable).parent / "python")


def test_another_servers_address_does_not_get_into_the_stack(monkeypatch):
    for name in ("AWS_PROFILE", "PREFECT_API_URL", "RAY_ADDRESS", "SQUALL_ROOT"):
        monkeypatch.setenv(name, "elsewhere")
    assert "elsewhere" not in bare_environment().values()
