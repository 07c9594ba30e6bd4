"""Where bytes live: fsspec URLs, Zarr stores on them, and writes that readers never see half done.

Every root is an fsspec URL (``file://`` by default, ``s3://`` in production). A plain path means a
local folder.
"""

import contextlib
import glob
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import xarray as xr
import zarr
from fsspec.core import url_to_fs
from zarr.abc.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore

from pipelines.errors import masked

ROOT_METADATA = "zarr.json"
PUBLIC = ("s3://noaa-mrms-pds/",)
"""Buckets that anyone may read without an account: asked without credentials."""


def normalise(url: str | os.PathLike[str]) -> str:
    """A URL with a scheme; a plain or relative path becomes an absolute ``file://`` URL."""
    text = os.fspath(url)
    if "://" in text and not text.startswith("file://"):
        return text.rstrip("/")
    return "file://" + str(Path(text.removeprefix("file://")).expanduser().resolve())


def local_path(url: str) -> Path | None:
    """The folder behind a ``file://`` URL, None for any other."""
    url = normalise(url)
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


def display(url: str) -> str:
    """How to show a URL to a person: local ones as plain paths."""
    path = local_path(url)
    return str(path) if path else masked(url)


def join(root: str, *parts: str) -> str:
    """`root`/part/part, as a URL."""
    return "/".join([normalise(root), *parts])


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path on it. Listings are never served from a cache."""
    url = normalise(url)
    options = {} if url.startswith("file://") else {"use_listings_cache": False}
    if f"{url}/".startswith(PUBLIC):
        options["anon"] = True
    fs, path = url_to_fs(url, **options)
    return fs, path


def exists(url: str) -> bool:
    """Whether an object (or folder) is there."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def names(url: str) -> list[str]:
    """The names directly under a folder, sorted; none where the folder is not there."""
    fs, path = filesystem(url)
    try:
        entries = [entry.rstrip("/") for entry in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(entry.rsplit("/", 1)[-1] for entry in entries if entry != path.rstrip("/"))


def size(url: str) -> int:
    """The bytes of all objects under a folder; 0 where there is none."""
    fs, path = filesystem(url)
    return int(fs.du(path)) if fs.exists(path) else 0


def modified(url: str) -> float:
    """When an object was last written, seconds since 1970."""
    fs, path = filesystem(url)
    return float(fs.modified(path).timestamp())


def read_bytes(url: str) -> bytes:
    """The whole object."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def write_bytes(url: str, content: bytes) -> None:
    """Write one object so that a reader sees the old one or the new one, never part of one.

    An object store's PUT is atomic already; locally a temporary file is renamed into place.
    """
    path = local_path(url)
    if path is None:
        fs, key = filesystem(url)
        fs.pipe_file(key, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            staged.unlink()


def create_bytes(url: str, content: bytes) -> bool:
    """Write an object that is not there yet; False where it is. Of several at once one succeeds.

    For object stores: locally the content would be seen as it grows.
    """
    fs, path = filesystem(url)
    try:
        fs.pipe_file(path, content, mode="create")
    except OSError as error:
        told = getattr(error.__cause__, "response", {})  # s3fs says invalid argument, S3 why
        there = told.get("Error", {}).get("Code") == "PreconditionFailed"
        if there or isinstance(error, FileExistsError):
            return False
        raise
    return True


def read_json(url: str) -> Any:
    """A JSON object."""
    return json.loads(read_bytes(url))


def write_json(url: str, content: Any) -> None:
    """A JSON object, atomically (see `write_bytes`)."""
    write_bytes(url, (json.dumps(content, indent=1) + "\n").encode())


def remove(url: str) -> None:
    """Remove a folder and all under it; nothing happens where there is none."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        if glob.has_magic(path) and local_path(url) is None:  # `rm` would take it for a pattern
            for file in fs.find(path):
                fs.rm_file(file)
        else:
            fs.rm(path, recursive=True)


def zarr_store(url: str) -> Any:
    """What zarr and xarray open: a `LocalStore` (atomic writes) locally, else the URL itself."""
    path = local_path(url)
    return LocalStore(path) if path else url


@contextlib.contextmanager
def consolidating() -> Iterator[None]:
    """Without zarr-python's remark that consolidated metadata is not in the v3 specification.

    Stock xarray writes and reads it; it is how a store becomes visible whole.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        yield


def publish_store(
    dataset: xr.Dataset,
    url: str,
    encoding: dict[str, Any],
    *,
    fill: Callable[[], None] | None = None,
) -> None:
    """Write `dataset` as a Zarr v3 store that is either complete or not there.

    Staged in memory; chunks go up first, then the arrays' metadata, then the root ``zarr.json``
    with consolidated metadata last. A reader who opens the store before that finds none. Every
    chunk is written, an empty one too, so nothing of an attempt that died shows through.

    For what does not fit in memory there is `fill`: where it is given, only the metadata of lazy
    (Dask) variables is written, and `fill` writes their chunks to `url` just before the root's
    metadata.
    """
    objects: dict[str, Buffer] = {}
    with consolidating():
        dataset.to_zarr(  # type: ignore[call-overload]
            MemoryStore(objects),
            mode="w",
            zarr_format=3,
            consolidated=True,
            encoding=encoding,
            write_empty_chunks=True,
            compute=fill is None,
        )
    for key in sorted(objects, key=publish_order):
        if key == ROOT_METADATA and fill is not None:
            fill()
        write_bytes(join(url, key), objects[key].to_bytes())


def publish_order(key: str) -> tuple[int, str]:
    """Chunks, then array metadata, then the root metadata."""
    if key == ROOT_METADATA:
        return 2, key
    return (1, key) if key.endswith(ROOT_METADATA) else (0, key)


def open_group(url: str, mode: str = "r") -> zarr.Group:
    """The Zarr group at a URL, as its root metadata says: the only document that counts."""
    return zarr.open_group(zarr_store(url), mode=mode, use_consolidated=True)  # type: ignore[arg-type]
