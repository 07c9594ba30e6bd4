"""Zarr arrays through tensorstore, where it is installed (`pip install squall[fast]`).

It encodes and decodes shards several times faster than zarr-python and gives the same values. Like
zarr-python it replaces a local object by renaming a finished one over it.
"""

import importlib.util
from typing import Any

from pipelines import storage

KNOWN = (
    "zarr_format",
    "node_type",
    "shape",
    "data_type",
    "chunk_grid",
    "chunk_key_encoding",
    "fill_value",
    "codecs",
    "attributes",
    "dimension_names",
)
"""What tensorstore takes of an array's metadata."""


def available(url: str) -> bool:
    """Whether tensorstore is installed and the URL is on this machine's file system."""
    local = storage.local_path(url) is not None
    return local and importlib.util.find_spec("tensorstore") is not None


def fast_array(url: str, metadata: dict[str, Any]) -> Any | None:
    """The array at a URL with the metadata given, to be indexed like a NumPy array.

    None where tensorstore is not available.
    Nothing is read to open it: the caller's metadata counts, not what lies beside the chunks.
    """
    if not available(url):
        return None
    import tensorstore

    return tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{storage.local_path(url)}/"},
            "metadata": _without_defaults({name: metadata[name] for name in KNOWN}),
        },
        open=True,
        assume_metadata=True,
        read=True,
        write=True,
    ).result()


def _without_defaults(metadata: Any) -> Any:
    """Metadata without ``checksum: false`` of zstd, which tensorstore does not know."""
    if isinstance(metadata, dict):
        return {
            name: _without_defaults(value)
            for name, value in metadata.items()
            if not (name == "checksum" and value is False)
        }
    if isinstance(metadata, list):
        return [_without_defaults(value) for value in metadata]
    return metadata
