"""A store is published exactly once, whoever races, stalls or fails."""

import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import xarray as xr

from pipelines import once, storage
from pipelines.once import LostClaimError, add_attributes, sweep

from .publishers import attempt, attempts, numbers_in, race

NAME = "20240601T0500Z.zarr"


@pytest.fixture
def memory(monkeypatch):
    """The URL of a store in an object store, whose create-only PUT is atomic as S3's is."""
    lock, create = threading.Lock(), storage.create_bytes

    def create_alone(url, content):
        with lock:
            return create(url, content)

    monkeypatch.setattr(storage, "create_bytes", create_alone)
    monkeypatch.setattr(once, "LEASE_S", 0.4)
    monkeypatch.setattr(once, "POLL_S", 0.02)
    return f"memory://{uuid.uuid4().hex}/{NAME}"


def in_threads(works):
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(60) for future in [pool.submit(work) for work in works]]


def objects(url):
    """All that lies under a URL, by key."""
    fs, path = storage.filesystem(url)
    return {key.removeprefix(path): fs.cat_file(key) for key in fs.find(path)}


def claims(url):
    return storage.names(f"{url.rsplit('/', 1)[0]}/claims")


# Races -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("publishers", [2, 4])
def test_of_processes_that_race_in_a_folder_one_publishes_a_whole_store(tmp_path, publishers):
    for number in range(5):
        url = f"file://{tmp_path}/{number}/{NAME}"
        published = race(attempts(url, publishers))
        assert sorted(published) == [False] * (publishers - 1) + [True]
        assert numbers_in(url) == {published.index(True) + 1}
        assert os.listdir(tmp_path / str(number)) == [NAME]


@pytest.mark.parametrize("publishers", [2, 4])
def test_of_threads_that_race_in_an_object_store_one_publishes_a_whole_store(memory, publishers):
    published = in_threads(attempts(memory, publishers))
    assert sorted(published) == [False] * (publishers - 1) + [True]
    assert numbers_in(memory) == {published.index(True) + 1}
    assert claims(memory) == []


@pytest.mark.slow
@pytest.mark.parametrize("publishers", [2, 4])
def test_of_processes_that_race_in_a_bucket_one_publishes_a_whole_store(bucket, publishers):
    place, environ = bucket
    for number in range(3):
        url = f"{place}/{publishers}/{number}/{NAME}"
        published = race(attempts(url, publishers, environ))
        assert sorted(published) == [False] * (publishers - 1) + [True]
        assert numbers_in(url) == {published.index(True) + 1}
        assert claims(url) == []


# Claims ------------------------------------------------------------------------------------------


class Stall:
    """Stops a thread as it is about to create a key, until it is told to go on."""

    def __init__(self, monkeypatch, url, key):
        self.stalled, self.go_on = threading.Event(), threading.Event()
        create = storage.create_bytes

        def stall(where, content):
            if where == f"{url}/{key}" and not self.stalled.is_set():
                self.stalled.set()
                assert self.go_on.wait(60)
            return create(where, content)

        monkeypatch.setattr(storage, "create_bytes", stall)


@pytest.mark.parametrize("key", ["field/c/0/0", "field/c/5/0", "field/zarr.json"])
def test_a_stalled_holder_is_taken_over_and_changes_nothing_when_it_wakes(memory, monkeypatch, key):
    stall = Stall(monkeypatch, memory, key)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, 1, memory)
        assert stall.stalled.wait(30)
        began = time.monotonic()
        assert attempt(2, memory)
        assert time.monotonic() - began >= once.LEASE_S
        before = objects(memory)
        stall.go_on.set()
        with pytest.raises(LostClaimError, match="being published by another process"):
            first.result(30)
    assert objects(memory) == before
    assert numbers_in(memory) == {2}
    assert claims(memory) == []


def test_a_holder_that_stalls_at_its_last_object_has_not_published(memory, monkeypatch):
    stall = Stall(monkeypatch, memory, "zarr.json")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, 1, memory)
        assert stall.stalled.wait(30)
        assert attempt(2, memory)
        before = objects(memory)
        stall.go_on.set()
        assert first.result(30) is False
    assert objects(memory) == before
    assert numbers_in(memory) == {2}


def test_of_two_that_find_a_dead_holder_one_takes_over(memory):
    dead = once._Claim(memory)
    assert dead.take()
    storage.write_bytes(f"{memory}/field/c/0/0", b"of an attempt that died")
    published = in_threads(attempts(memory, 2))
    assert sorted(published) == [False, True]
    assert numbers_in(memory) == {published.index(True) + 1}
    assert claims(memory) == []


def test_a_slow_holder_that_lives_is_waited_for(memory, monkeypatch):
    create = storage.create_bytes

    def slowly(url, content):
        if "/field/c/" in url:
            time.sleep(0.3)
        return create(url, content)

    monkeypatch.setattr(storage, "create_bytes", slowly)
    monkeypatch.setattr(once, "TOGETHER", 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, 1, memory)
        while not claims(memory):
            time.sleep(0.01)
        assert attempt(2, memory) is False
        assert first.result(30) is True
    assert numbers_in(memory) == {1}


def test_an_attempt_that_fails_keeps_nobody_waiting(memory, monkeypatch):
    monkeypatch.setattr(once, "LEASE_S", 600.0)
    create = storage.create_bytes

    def full(url, content):
        if url.endswith("field/c/3/0"):
            raise OSError("no space")
        return create(url, content)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create_bytes", full)
        with pytest.raises(OSError, match="no space"):
            attempt(1, memory)
    assert claims(memory) == []
    assert attempt(2, memory)
    assert numbers_in(memory) == {2}


def test_an_attempt_that_fails_leaves_the_claim_of_who_took_over(memory):
    failed, successor = once._Claim(memory), once._Claim(memory)
    assert failed.take()
    assert successor.take()
    failed.release()
    assert claims(memory) == [f"{NAME}.2"]
    successor.renew()
    assert claims(memory) == [f"{NAME}.2", f"{NAME}.3"]
    successor.release()
    assert claims(memory) == []


def test_a_holder_whose_claim_was_swept_does_not_take_the_next_for_its_own(memory):
    stalled, successor = once._Claim(memory), once._Claim(memory)
    assert stalled.take()
    stalled.remove()
    assert successor.take()
    assert stalled.number == successor.number == 1
    with pytest.raises(LostClaimError):
        stalled.renew()
    successor.renew()


def test_claims_of_the_dead_are_swept_and_those_of_the_living_not(memory):
    finished, dead, alive = (memory.replace("0500Z", f"050{n}Z") for n in range(3))
    attempt(1, finished)
    for url in (finished, dead):
        storage.write_bytes(f"{url.rsplit('/', 1)[0]}/claims/{url.rsplit('/', 1)[1]}.1", b"")
    folder = memory.rsplit("/", 1)[0]
    assert sweep(folder) == 1
    assert claims(memory) == [f"{dead.rsplit('/', 1)[1]}.1"]
    time.sleep(0.3)
    holder = once._Claim(alive)
    assert holder.take()
    assert sweep(folder, older_than_s=0.2) == 1
    assert claims(memory) == [f"{alive.rsplit('/', 1)[1]}.1"]
    holder.renew()
    assert numbers_in(finished) == {1}


# Debris ------------------------------------------------------------------------------------------


def test_a_folder_that_no_publisher_made_is_moved_out_of_the_way(tmp_path):
    path = tmp_path / NAME
    (path / "field").mkdir(parents=True)
    (path / "field/zarr.json").write_text("half a store")
    assert attempt(1, f"file://{path}")
    assert numbers_in(f"file://{path}") == {1}
    aside = [one for one in tmp_path.iterdir() if one.is_dir() and one != path]
    assert [(one / "field/zarr.json").read_text() for one in aside] == ["half a store"]


def test_what_died_long_ago_is_swept_and_nothing_else(tmp_path):
    attempt(1, f"file://{tmp_path}/{NAME}")
    dead, alive = (tmp_path / f".{NAME}.{uuid.uuid4().hex}" for _ in range(2))
    for staged in (dead, alive):
        (staged / "field/c").mkdir(parents=True)
    latest, lock = tmp_path / f".latest.json.{uuid.uuid4().hex}", tmp_path / ".nfs.deadbeef"
    for file in (latest, lock):
        file.touch()
    for path in (dead / "field", dead, alive, latest, lock):
        os.utime(path, (1, 1))  # of `alive`, an array was written to just now
    assert sweep(str(tmp_path)) == 2
    assert {one.name for one in tmp_path.iterdir()} == {NAME, alive.name, lock.name}
    assert numbers_in(f"file://{tmp_path}/{NAME}") == {1}
    assert sweep(str(tmp_path)) == 0


def test_a_folder_that_is_not_there_has_nothing_to_sweep(tmp_path):
    assert sweep(str(tmp_path / "nothing")) == 0
    assert sweep(f"memory://{uuid.uuid4().hex}") == 0


@pytest.mark.parametrize("place", ["folder", "object store"])
def test_attributes_are_added_to_those_that_are_there(tmp_path, memory, place):
    url = f"file://{tmp_path}/{NAME}" if place == "folder" else memory
    attempt(1, url)
    before = objects(url)
    add_attributes(url, {"superseded_by": "another"})
    attrs = xr.open_zarr(storage.zarr_store(url)).attrs
    assert attrs == {"by": 1, "stamped": 1, "superseded_by": "another"}
    changed = {key for key, content in objects(url).items() if content != before[key]}
    assert changed == {"/zarr.json"}


def test_adding_attributes_dies_before_or_after_and_leaves_what_can_be_swept(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/{NAME}"
    attempt(1, url)
    before = objects(url)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: pytest.fail("died"))
        patch.setattr(type(tmp_path), "replace", lambda *_: os.replace())
        with pytest.raises(pytest.fail.Exception):
            add_attributes(url, {"superseded_by": "another"})
    assert objects(url) == before
    assert sweep(str(tmp_path), older_than_s=-1.0) == 1
    assert os.listdir(tmp_path) == [NAME]
