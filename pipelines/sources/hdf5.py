"""Opening an HDF5 file from bytes, with errors that say what is wrong with it."""

import contextlib
import importlib.util
import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyproj  # noqa: F401  (before h5py: see pipelines.grid)

import h5py  # isort: skip

from numpy.typing import NDArray

from pipelines.errors import FrameError
from pipelines.sources.content import check_size


@contextlib.contextmanager
def open_hdf5(content: bytes) -> Iterator[h5py.File]:
    """The file, open for reading. Any failure inside becomes a `FrameError`.

    So does a file that leads to others (external links, external and virtual datasets): they would
    be this machine's; and one with an array larger than any frame.
    """
    if not content:
        raise FrameError(
            "empty file", found="0 bytes", expected="an HDF5 file", remedy="fetch the file again"
        )
    try:
        _check_heaps(content)
        with h5py.File(io.BytesIO(content), "r") as file:
            _check(file)
            yield file
    except FrameError:
        raise
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise FrameError(
            "unreadable HDF5 file",
            found=f"{len(content)} bytes, {type(error).__name__}: {error}",
            expected="a complete file of this source",
            remedy="fetch the file again; it may be truncated or of another source",
        ) from error


def _check(file: h5py.File) -> None:
    # The visitors return what they find: h5py does not let errors of theirs through unharmed.
    if away := file.visititems_links(
        lambda name, link: name if isinstance(link, h5py.ExternalLink) else None
    ):
        raise _leads_away(away, "an external link")
    for dataset in _datasets(file):
        if dataset.external or dataset.is_virtual:
            raise _leads_away(dataset.name, "a dataset whose values are in other files")
        for shape in (dataset.shape or (), dataset.chunks or ()):
            check_size(*shape, itemsize=dataset.dtype.itemsize)


def _datasets(file: h5py.File) -> list[h5py.Dataset]:
    datasets: list[h5py.Dataset] = []
    file.visititems(
        lambda _, it: datasets.append(it) if isinstance(it, h5py.Dataset) else None,
    )
    return datasets


def check_inflating(file: h5py.File) -> None:
    """Raise `ValueError` where a chunk inflates to more than it is, before HDF5 inflates it.

    HDF5 takes the memory that a chunk inflates to, a thousand times its size in the file, whatever
    size it is to have, and says nothing (2.0.0).
    """
    for dataset in _datasets(file):
        _check_inflating(dataset)


def _check_inflating(dataset: h5py.Dataset) -> None:
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    if dataset.chunks is None or h5py.h5z.FILTER_DEFLATE not in filters:
        return
    if filters[-1] == h5py.h5z.FILTER_FLETCHER32:  # four bytes more, at the end
        filters = filters[:-1]
    if filters.index(h5py.h5z.FILTER_DEFLATE) < len(filters) - 1:
        raise ValueError(f"deflated chunks with filters {filters} after it")
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for number in range(dataset.id.get_num_chunks()):
        where = dataset.id.get_chunk_info(number).chunk_offset
        skipped, content = dataset.id.read_direct_chunk(where)
        try:
            inflated = b"" if skipped else zlib.decompressobj().decompress(content, size + 5)
        except zlib.error as error:
            raise ValueError(f"broken chunk: {error}") from error
        if len(inflated) > size + 4:
            raise _inflates(size)


def _inflates(size: int) -> ValueError:
    return ValueError(f"broken chunk: not {size} bytes")


def _check_heaps(content: bytes) -> None:
    """Raise where HDF5 might never come out of a global heap: things of no size, or beyond its end.

    A collection is "GCOL", a version, its size, then objects: index, two fields, size, content; an
    object without an index is free space, and is as large as it says (HDF5 File Format
    Specification 3.0, III.E).
    """
    start = -1
    while (start := content.find(b"GCOL\x01\0\0\0", start + 1)) >= 0:
        (size,) = struct.unpack("<Q", content[start + 8 : start + 16].ljust(8, b"\0"))
        at, end = start + 16, min(start + size, len(content))
        while at + 16 <= end:
            index, length = struct.unpack("<H6xQ", content[at : at + 16])
            step = 16 + -(-length // 8) * 8 if index else length
            if not 0 < step <= end - at:
                raise ValueError(f"a global heap with {step} bytes at byte {at} of {end}")
            at += step


def _leads_away(name: str, found: str) -> FrameError:
    return FrameError(
        "an HDF5 file that leads to other files",
        found=f"{found} at {name}",
        expected="all of a frame in its file",
        remedy="copy it with `h5repack` where those files are, or report it to its provider",
    )


def read_array(dataset: h5py.Dataset) -> NDArray[Any]:
    """The whole of a dataset, in the machine's byte order.

    Where it is in deflated chunks and `isal` is installed, that inflates them: a third to a half
    of HDF5's own time. Everything else goes HDF5's way.
    """
    plan = dataset.id.get_create_plist()
    deflated = (
        dataset.chunks is not None
        and plan.get_nfilters() == 1
        and plan.get_filter(0)[0] == h5py.h5z.FILTER_DEFLATE
        # A chunk that was never written is not in the file: HDF5 knows what stands for it.
        and dataset.id.get_num_chunks() == len(list(dataset.iter_chunks()))
    )
    if deflated and importlib.util.find_spec("isal"):
        values = _inflate_chunks(dataset)
    else:
        _check_inflating(dataset)
        values = np.asarray(dataset[()])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _inflate_chunks(dataset: h5py.Dataset) -> NDArray[Any]:
    isal_zlib = importlib.import_module("isal.isal_zlib")
    values = np.empty(dataset.shape, dataset.dtype)
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for inside in dataset.iter_chunks():
        skipped, content = dataset.id.read_direct_chunk(tuple(part.start for part in inside))
        try:
            content = content if skipped else _inflated(isal_zlib, content, size)
        except isal_zlib.error as error:
            raise ValueError(f"broken chunk: {error}") from error
        chunk = np.frombuffer(content, dataset.dtype).reshape(dataset.chunks)
        # Chunks at the far edges reach beyond the dataset.
        values[inside] = chunk[tuple(slice(part.stop - part.start) for part in inside)]
    return values


def _inflated(isal_zlib: Any, content: bytes, size: int) -> bytes:
    """A chunk of `size` bytes; as with HDF5's own, its checksum has to be right."""
    stream = isal_zlib.decompressobj()
    made: bytes = stream.decompress(content, size + 1)
    if not stream.eof:
        made += stream.decompress(stream.unconsumed_tail, 1)
    if not stream.eof or len(made) != size:
        raise _inflates(size)
    return made


def text(value: object) -> str:
    """A text attribute: bytes, a one-element array of them, or a string; padding is cut off."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0]
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return value.strip(" \0")


def number(value: object) -> float:
    """A numeric attribute: a scalar, or an array with one element."""
    return float(np.asarray(value).reshape(-1)[0])


def decoder(name: str, version: int) -> str:
    """Name and version of the reading code, for the manifest."""
    return f"{name}/{version} h5py/{h5py.__version__}"
