"""Opening an HDF5 file from bytes, with errors that say what is wrong with it."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import pyproj  # noqa: F401  (before h5py: see pipelines.grid)

import h5py  # isort: skip

from pipelines.errors import FrameError


@contextlib.contextmanager
def open_hdf5(content: bytes) -> Iterator[h5py.File]:
    """The file, open for reading. Any failure inside becomes a `FrameError`."""
    if not content:
        raise FrameError(
            "empty file", found="0 bytes", expected="an HDF5 file", remedy="fetch the file again"
        )
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
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


def text(value: object) -> str:
    """A text attribute: bytes, a one-element array of them, or a string."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number(value: object) -> float:
    """A numeric attribute: a scalar, or an array with one element."""
    return float(np.asarray(value).reshape(-1)[0])


def decoder(name: str, version: int) -> str:
    """Name and version of the reading code, for the manifest."""
    return f"{name}/{version} h5py/{h5py.__version__}"
