"""A file's bytes before any format: decompressing them, limits, and errors that say what is wrong.

Who sends a file may be mistaken or worse. What is read of one is bounded before it is read: by what
it claims to hold (`check_size`), and while it is decompressed, whatever it claims (`bounded`).
"""

import bz2
import contextlib
import gzip
import importlib
import io
import math
import zlib
from collections.abc import Iterator
from typing import IO, Any

from pipelines.errors import FrameError, SquallError
from pipelines.grid import MOST_PIXELS

READING_ERRORS = (
    *(OSError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(RuntimeError, ArithmeticError, SyntaxError, zlib.error),
)
"""What readers of formats raise on broken files (Pillow: SyntaxError; pyproj: RuntimeError)."""

MOST_BYTES = 8 * MOST_PIXELS
"""No file of a frame is larger, nor becomes larger by decompressing, nor holds a larger array."""


@contextlib.contextmanager
def reading(content: bytes, kind: str) -> Iterator[None]:
    """Turn any failure of reading `content` as a file of this `kind` into a `FrameError`."""
    if not content:
        raise FrameError(
            "empty file", found="0 bytes", expected=kind, remedy="fetch the file again"
        )
    try:
        yield
    except SquallError:
        raise
    except READING_ERRORS as error:
        raise FrameError(
            f"not readable as {kind}",
            found=f"{len(content)} bytes, {type(error).__name__}: {error}",
            expected="a complete file of this source",
            remedy="fetch the file again; it may be truncated or of another source",
        ) from error


def decompressed(content: bytes) -> bytes:
    """The content itself, or what its gzip or bzip2 holds, by the first bytes."""
    if content.startswith(b"\x1f\x8b"):
        return bounded(gzip.GzipFile(fileobj=io.BytesIO(content)))
    if content.startswith(b"BZh"):
        return bounded(bz2.BZ2File(io.BytesIO(content)))
    return content


def bounded(file: IO[bytes] | gzip.GzipFile | bz2.BZ2File) -> bytes:
    """All that an open file gives; `FrameError` where that is more than `MOST_BYTES`."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise too_large(f"more than {MOST_BYTES} bytes, decompressed")
    return content


def check_size(*shape: int, itemsize: int = 8) -> None:
    """Raise `FrameError` where an array of this shape is larger than `MOST_BYTES`."""
    if math.prod(max(1, length) for length in shape) * itemsize > MOST_BYTES:
        raise too_large(f"{'×'.join(map(str, shape))} values of {itemsize} bytes")


def too_large(found: str) -> FrameError:
    """The error of a file that claims or holds too much."""
    return FrameError(
        "a file that holds more than any radar frame",
        found=found,
        expected=f"at most {MOST_BYTES} bytes, {MOST_PIXELS} pixels",
        remedy="fetch the file again; if it repeats, report it to its provider",
    )


def formats_library(module: str, user: str) -> Any:
    """A module of a library that only some formats need; `user` is who needs it.

    Raises `SquallError` where it is not installed: that is no fault of the file's.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SquallError(
            f"{user} needs a library that is not installed",
            found=str(error),
            expected="Squall with its extra `formats`",
            remedy="install it: `pip install 'squall[formats]'`",
        ) from error
