"""A file's bytes before any format: decompressing them, and errors that say what is wrong."""

import bz2
import contextlib
import gzip
import importlib
import zlib
from collections.abc import Iterator
from typing import Any

from pipelines.errors import FrameError, SquallError

READING_ERRORS = (
    *(OSError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(RuntimeError, ArithmeticError, SyntaxError, zlib.error),
)
"""What readers of formats raise on broken files (Pillow: SyntaxError; pyproj: RuntimeError)."""


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
        return gzip.decompress(content)
    if content.startswith(b"BZh"):
        return bz2.decompress(content)
    return content


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
