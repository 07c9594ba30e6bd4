"""Storage: URLs, and writes that a reader never sees half done."""

import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr

from pipelines import storage


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder's URL: a local one, and one that is only an fsspec file system."""
    if request.param == "file":
        return f"file://{tmp_path}/store"
    return f"memory://{uuid.uuid4().hex}/store"


def test_a_path_becomes_an_absolute_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("here") == f"file://{tmp_path.resolve()}/here"
    assert storage.normalise(tmp_path / "a" / ".." / "b") == f"file://{tmp_path.resolve()}/b"
    assert storage.normalise(f"file://{tmp_path}/b/") == f"file://{tmp_path.resolve()}/b"
    assert storage.normalise("s3://bucket/prefix/") == "s3://bucket/prefix"


@pytest.mark.parametrize("name", ["[507]", "a*", "a?", "plain"])
def test_what_looks_like_a_pattern_is_removed_alone(place, name):
    """A claim in a bucket once stayed because of a bracket in its path."""
    for folder in (name, "ab", "5"):
        storage.write_bytes(f"{place}/{folder}/c/0", b"1")
    storage.remove(f"{place}/{name}")
    assert not storage.exists(f"{place}/{name}/c/0")
    assert storage.exists(f"{place}/ab/c/0")
    assert storage.exists(f"{place}/5/c/0")


def test_normalising_twice_changes_nothing(tmp_path):
    for url in (tmp_path, f"file://{tmp_path}/", "s3://bucket/a", "~/x"):
        once = storage.normalise(url)
        assert storage.normalise(once) == once


def test_only_a_local_url_has_a_path(tmp_path):
    assert storage.local_path(f"file://{tmp_path}/a") == tmp_path / "a"
    assert storage.local_path(str(tmp_path)) == tmp_path
    assert storage.local_path("s3://bucket/a") is None


def test_people_are_shown_plain_paths(tmp_path):
    assert storage.display(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert storage.display("s3://bucket/a") == "s3://bucket/a"


def test_what_was_written_is_read(place):
    url = storage.join(place, "deep", "object")
    assert not storage.exists(url)
    for content in (b"one", b"", b"another"):
        storage.write_bytes(url, content)
        assert storage.exists(url)
        assert storage.read_bytes(url) == content


def test_json_comes_back_as_itself(place):
    content = {"a": [1, 2.5, None], "ü": "×"}
    storage.write_json(storage.join(place, "x.json"), content)
    assert storage.read_json(storage.join(place, "x.json")) == content


def test_names_are_sorted_and_none_where_there_is_no_folder(place):
    assert storage.names(place) == []
    for name in ("b", "a/inside", "c.json"):
        storage.write_bytes(storage.join(place, name), b"")
    assert storage.names(place) == ["a", "b", "c.json"]


def test_a_new_object_is_listed_at_once(place):
    assert storage.names(place) == []
    storage.write_bytes(storage.join(place, "a"), b"")
    assert storage.names(place) == ["a"]
    storage.write_bytes(storage.join(place, "b"), b"")
    assert storage.names(place) == ["a", "b"]


def test_removing_takes_all_and_removing_again_does_nothing(place):
    storage.write_bytes(storage.join(place, "a", "b"), b"")
    storage.remove(place)
    assert not storage.exists(place)
    storage.remove(place)


def test_a_write_that_fails_leaves_the_old_object_and_no_litter(tmp_path, monkeypatch):
    url = storage.join(str(tmp_path), "object")
    storage.write_bytes(url, b"old")

    def fail(self: Path, target: Path) -> None:
        assert self.read_bytes() == b"new", "the whole content is staged before it is put in place"
        raise OSError("disk gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"old"
    assert storage.names(str(tmp_path)) == ["object"]


def test_a_published_store_opens_with_stock_xarray(place):
    values = np.arange(12.0).reshape(3, 4)
    dataset = xr.Dataset({"a": (("y", "x"), values)}, coords={"x": [1, 2, 3, 4]}, attrs={"k": "v"})
    storage.publish_store(dataset, place, encoding={"a": {"chunks": (1, 4)}})
    opened = xr.open_zarr(place)
    xr.testing.assert_identical(opened.load(), dataset)


def test_a_store_is_published_chunks_first_and_root_metadata_last(place, monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(storage, "write_bytes", lambda url, content: written.append(url))
    dataset = xr.Dataset({"a": (("y", "x"), np.ones((3, 4)))}, coords={"x": [1, 2, 3, 4]})
    storage.publish_store(dataset, place, encoding={"a": {"chunks": (1, 4)}})
    keys = [url.removeprefix(storage.normalise(place) + "/") for url in written]
    chunks, arrays = ["a/c/0/0", "a/c/1/0", "a/c/2/0", "x/c/0"], ["a/zarr.json", "x/zarr.json"]
    assert keys == [*chunks, *arrays, "zarr.json"]


def test_every_chunk_of_a_published_store_is_written(place):
    # What an attempt that died left behind would show through a chunk that is not.
    encoding = {"a": {"chunks": (1, 2), "fill_value": -1.0}}
    for values in ([[1.0, 2.0], [3.0, 4.0]], [[-1.0, -1.0], [3.0, 4.0]]):
        dataset = xr.Dataset({"a": (("y", "x"), np.array(values))})
        storage.publish_store(dataset, place, encoding)
        np.testing.assert_array_equal(xr.open_zarr(place)["a"].values, values)


def test_listings_of_remote_file_systems_are_never_cached():
    fs, path = storage.filesystem("memory://bucket/a")
    assert isinstance(fs, fsspec.AbstractFileSystem)
    assert path.endswith("bucket/a")
    assert not fs.dircache.use_listings_cache


def test_a_public_bucket_is_asked_without_credentials_and_no_other_is():
    pytest.importorskip("s3fs")
    assert storage.filesystem("s3://noaa-mrms-pds/CONUS")[0].anon
    assert not storage.filesystem("s3://noaa-mrms-pds-of-another/CONUS")[0].anon


class Refusal(Exception):
    """What S3 answers, as botocore raises it."""

    def __init__(self, code):
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class Bucket:
    """Answers a create-only PUT as s3fs does: invalid argument, whatever S3 said."""

    def __init__(self, code):
        self.code = code

    def pipe_file(self, path, content, mode):
        assert mode == "create"
        raise OSError(22, "At least one condition did not hold") from Refusal(self.code)


def test_what_is_there_already_in_a_bucket_is_not_created(monkeypatch):
    monkeypatch.setattr(storage, "filesystem", lambda url: (Bucket("PreconditionFailed"), url))
    assert storage.create_bytes("s3://bucket/key", b"") is False
    monkeypatch.setattr(storage, "filesystem", lambda url: (Bucket("InvalidRequest"), url))
    with pytest.raises(OSError, match="condition"):
        storage.create_bytes("s3://bucket/key", b"")


@pytest.mark.slow
def test_of_an_object_and_its_folder_in_a_bucket(bucket):
    place, _ = bucket
    assert storage.create_bytes(f"{place}/folder/1", b"first")
    assert not storage.create_bytes(f"{place}/folder/1", b"second")
    assert storage.read_bytes(f"{place}/folder/1") == b"first"
    assert storage.names(f"{place}/folder") == ["1"]
    storage.remove(f"{place}/folder/1")
    assert storage.names(f"{place}/folder") == [], "some servers keep the folder, and list it"
