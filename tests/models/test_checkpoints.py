"""Checkpoints: whole or not there; a storage that refuses for a while loses nothing."""

import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import torch

from models import checkpoints
from models.checkpoints import Writer, found, newest, read
from pipelines import storage


@pytest.fixture
def place(tmp_path):
    return checkpoints.folder(storage.normalise(tmp_path), "run")


def state(step):
    return {"step": step, "weights": torch.full((4,), float(step)), "history": [{"loss": 0.5}]}


def steps(place):
    return [checkpoint.step for checkpoint in found(place)]


def test_what_is_written_is_read_and_the_newest_comes_first(place):
    assert newest(place) is None
    writer = Writer(place, keep=3, patience_s=0.0)
    for step in (2, 10, 4):  # numbers, not texts, are in order
        writer.add(step, state(step), best=None)
    assert steps(place) == [2, 4, 10]
    checkpoint, got = newest(place)
    assert checkpoint.step == got["step"] == 10
    torch.testing.assert_close(got["weights"], torch.full((4,), 10.0))


def test_the_last_and_the_best_are_kept(place):
    writer = Writer(place, keep=2, patience_s=0.0)
    for step in range(1, 8):
        writer.add(step, state(step), best=min(step, 3))
    assert steps(place) == [3, 6, 7]


def test_a_damaged_one_is_passed_over(place):
    writer = Writer(place, keep=5, patience_s=0.0)
    for step in (1, 2, 3):
        writer.add(step, state(step), best=None)
    second, third = found(place)[1:]
    third_path = storage.local_path(f"{place}/{third.name}")
    third_path.write_bytes(third_path.read_bytes()[:-7])
    storage.local_path(f"{place}/{second.name}").write_bytes(b"not what it was")
    assert newest(place)[0].step == 1
    with pytest.raises(ValueError, match="is not what was written"):
        read(place, third)


def test_reading_one_runs_no_code(place, tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    writer = Writer(place, keep=5, patience_s=0.0)
    writer.add(1, state(1), best=None)
    writer.add(2, {"step": 2, "harm": Harmful()}, best=None)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read(place, found(place)[-1])
    assert not (tmp_path / "harm").exists()


class Refusing:
    """A storage that refuses writes until it is told otherwise."""

    def __init__(self, monkeypatch, error):
        self.refuses, self.calls, self.error = True, 0, error
        self.write = storage.write_bytes
        monkeypatch.setattr("pipelines.storage.write_bytes", self)

    def __call__(self, url, content):
        self.calls += 1
        if self.refuses:
            raise self.error
        self.write(url, content)


def test_what_a_storage_refused_is_written_with_the_next_one(place, monkeypatch):
    refusing = Refusing(monkeypatch, OSError(28, "No space left on device"))
    writer = Writer(place, keep=9, patience_s=0.0)
    for step in (1, 2, 3):
        writer.add(step, state(step), best=min(step, 2))
    assert steps(place) == []
    refusing.refuses = False
    writer.add(4, state(4), best=2)
    assert steps(place) == [2, 3, 4], "the best and the newest ones waited"
    assert newest(place)[1]["step"] == 4


def test_a_run_waits_for_its_last_checkpoint_and_not_for_ever(place, monkeypatch):
    refusing = Refusing(monkeypatch, ConnectionError("503 SlowDown"))
    writer = Writer(place, keep=2, patience_s=5.0)
    writer.add(1, state(1), best=None)

    def pause(seconds):
        refusing.refuses = False

    monkeypatch.setattr(checkpoints.time, "sleep", pause)
    writer.finish()
    assert steps(place) == [1]
    refusing.refuses = True
    impatient = Writer(place, keep=2, patience_s=0.0)
    impatient.add(2, state(2), best=None)
    with pytest.raises(ConnectionError, match="SlowDown"):
        impatient.finish()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_it_has_and_takes_the_rest_once_there_is_room(small_disk):
    def large(step):
        return {"step": step, "weights": torch.rand(70_000)}  # 280 kB

    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500_000))
    place = checkpoints.folder(storage.normalise(small_disk), "run")
    writer = Writer(place, keep=9, patience_s=0.0)
    writer.add(1, large(1), best=None)
    writer.add(2, large(2), best=1)
    assert [c.step for c in found(place)] == [1]
    assert newest(place)[1]["step"] == 1
    assert len(os.listdir(storage.local_path(place))) == 1, "no half-written file takes room"
    ballast.unlink()
    writer.finish()
    assert newest(place)[1]["step"] == 2


def write_on(place):
    writer = Writer(place, keep=100, patience_s=0.0)
    for step in range(1, 10**6):
        writer.add(step, state(step), best=None)


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_one(place):
    for _ in range(5):
        process = multiprocessing.get_context("forkserver").Process(target=write_on, args=(place,))
        process.start()
        end = time.monotonic() + 60
        while not found(place) and time.monotonic() < end:
            time.sleep(0.01)
        for _ in range(20):
            checkpoint, got = newest(place)
            assert got["step"] == checkpoint.step
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert newest(place)[0] == found(place)[-1]
