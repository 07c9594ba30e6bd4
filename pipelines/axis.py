"""A longer time axis under readers that go on reading: metadata first, the root's last.

Later slots are free: shapes grow, nothing moves. Earlier slots shift every slot number, and with it
the name of every chunk. So that no reader ever finds one frame under another's name, the shifted
chunks get names of another spelling: Zarr v3 knows four (``c/1/0/0``, ``c.1.0.0``, ``1.0.0``,
``1/0/0``), and each prepending takes the next. Who opened the archive before goes on reading the
old names; who opens it after the root metadata changed reads the new ones. The old names go at the
next prepending, or with `remove_leftovers`.
"""

import copy
import json
import os
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipelines import storage

SPELLINGS: tuple[dict[str, Any], ...] = (
    {"name": "default", "configuration": {"separator": "/"}},
    {"name": "default", "configuration": {"separator": "."}},
    {"name": "v2", "configuration": {"separator": "."}},
    {"name": "v2", "configuration": {"separator": "/"}},
)
"""Chunk key encodings, in the order in which prependings take them."""
GROWING = ("rain_rate", "time", "status")
"""The arrays that have a time axis."""


def lengthen(
    url: str,
    root: dict[str, Any],
    seconds: NDArray[np.int64],
    status: NDArray[np.uint8] | None,
    before: int,
) -> None:
    """Give the store at `url` the axis `seconds` (since 1970), `before` slots of it prepended.

    Parameters
    ----------
    root : the root metadata as it is now; by it readers learn shapes and chunk names
    seconds, status : (time,) of the whole new axis; status only where slots are prepended
    before : how many slots come before the first one; a whole number of chunks of `rain_rate`
    """
    new = copy.deepcopy(root)
    arrays = new["consolidated_metadata"]["metadata"]
    for name in GROWING:
        arrays[name]["shape"][0] = len(seconds)
        if before:
            arrays[name]["chunk_key_encoding"] = SPELLINGS[(_spelling(arrays[name]) + 1) % 4]
    if before:
        assert status is not None
        remove_leftovers(url, root)
        _shift(url, root, arrays["rain_rate"], before)
        _write(url, "status", arrays["status"], status)
    _write(url, "time", arrays["time"], seconds)
    for name in GROWING:
        storage.write_json(storage.join(url, name, storage.ROOT_METADATA), arrays[name])
    storage.write_json(storage.join(url, storage.ROOT_METADATA), new)


def leftovers(url: str, root: dict[str, Any]) -> dict[str, list[str]]:
    """Chunks of an older axis, by array: nothing that the root metadata names."""
    arrays = root["consolidated_metadata"]["metadata"]
    return {
        name: [
            key
            for spelling in range(len(SPELLINGS))
            if spelling != _spelling(arrays[name])
            for key in _chunks(url, name, spelling)
        ]
        for name in GROWING
    }


def remove_leftovers(url: str, root: dict[str, Any]) -> int:
    """Remove the chunks of older axes; how many there were."""
    found = leftovers(url, root)
    for name, keys in found.items():
        _remove(url, name, keys)
    return sum(len(keys) for keys in found.values())


def chunk_indices(url: str, root: dict[str, Any], name: str) -> dict[str, tuple[int, ...]]:
    """The chunk objects that an array of the archive has, with their place in its chunk grid."""
    array = root["consolidated_metadata"]["metadata"][name]
    return _chunks(url, name, _spelling(array))


def _spelling(array: dict[str, Any]) -> int:
    encoding = array["chunk_key_encoding"]
    separator = encoding["configuration"]["separator"]
    known = [(one["name"], one["configuration"]["separator"]) for one in SPELLINGS]
    return known.index((encoding["name"], separator))


def _key(spelling: int, index: tuple[int, ...]) -> str:
    separator = SPELLINGS[spelling]["configuration"]["separator"]
    prefix = ["c"] if SPELLINGS[spelling]["name"] == "default" else []
    return separator.join([*prefix, *(str(part) for part in index)])


def _chunks(url: str, name: str, spelling: int) -> dict[str, tuple[int, ...]]:
    """An array's chunk objects of one spelling, by key."""
    fs, path = storage.filesystem(storage.join(url, name))
    try:
        found = fs.find(path)
    except FileNotFoundError:
        return {}
    chunks = {}
    for object_path in found:
        key = object_path[len(path) :].lstrip("/")
        parts = key.replace(".", "/").split("/")
        numbers = [part for part in parts if part.isdigit()]
        index = tuple(int(number) for number in numbers)
        if index and key == _key(spelling, index):
            chunks[key] = index
    return chunks


def _shift(url: str, root: dict[str, Any], new: dict[str, Any], before: int) -> None:
    """The chunks of `rain_rate` under the names that they have on the new axis, as links or copies.

    A chunk is only ever replaced whole, so a link locally is as good as a copy.
    """
    old = root["consolidated_metadata"]["metadata"]["rain_rate"]
    chunks = before // old["chunk_grid"]["configuration"]["chunk_shape"][0]
    base = storage.join(url, "rain_rate")
    folder = storage.local_path(base)
    fs, path = storage.filesystem(base)
    for key, (first, *rest) in _chunks(url, "rain_rate", _spelling(old)).items():
        shifted = _key(_spelling(new), (first + chunks, *rest))
        if folder is None:
            fs.cp_file(f"{path}/{key}", f"{path}/{shifted}")
        else:
            (folder / shifted).parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / key, folder / shifted)


def _write(url: str, name: str, array: dict[str, Any], values: NDArray[Any]) -> None:
    """A whole array's chunks, under the names that its new metadata gives them."""
    content = json.dumps(array).encode()
    metadata = f"{name}/{storage.ROOT_METADATA}"
    objects: dict[str, Buffer] = {metadata: default_buffer_prototype().buffer.from_bytes(content)}
    zarr.open_array(store=MemoryStore(objects), path=name, mode="r+")[:] = values
    for key in objects.keys() - {metadata}:
        storage.write_bytes(storage.join(url, key), objects[key].to_bytes())


def _remove(url: str, name: str, keys: list[str]) -> None:
    fs, path = storage.filesystem(storage.join(url, name))
    if keys:
        fs.rm([f"{path}/{key}" for key in keys])
