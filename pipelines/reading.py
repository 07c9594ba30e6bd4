"""The fast path from an archive to a training sample: one crop of successive slots, in mm/h.

Reads the stored integers themselves and decodes them once, to float32; xarray decodes them to
float64 and cuts afterwards. Local archives are read through tensorstore where it is installed,
which decodes the chunks of a crop at the same time; everything else through zarr-python. Both give
the same numbers.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.archive import USABLE, Archive
from pipelines.errors import SquallError
from pipelines.fast import available
from pipelines.units import MISSING, unpack

Window = tuple[slice, slice, slice]
ALL = slice(None)


class _Opened(NamedTuple):
    """What a reader holds once it has read: never pickled, never forked."""

    shape: tuple[int, int, int]
    usable: NDArray[np.bool_]
    read: Callable[[Window], NDArray[np.uint16]]
    process: int


class SampleReader:
    """Crops of an archive, for training.

    Nothing is opened before the first read, and a pickled reader opens anew: give it to the worker
    that uses it. Workers are spawned, never forked; a forked reader says so instead of hanging.
    Which slots are committed is read once, with the opening: a frame that is committed later reads
    as missing until a new reader is made.

    Parameters
    ----------
    url : the archive, in any layout
    fast : True for tensorstore, False for zarr-python; None (default) for tensorstore where it is
        installed and the archive is local

    Raises `SquallError` where `fast` is True and tensorstore is not installed or the archive is not
    local; `NotFoundError`, at the first read, where there is no archive.
    """

    def __init__(self, url: str, fast: bool | None = None) -> None:
        self.url, self.fast = storage.normalise(url), fast
        self._opened: _Opened | None = None
        if fast:
            _require_fast(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleReader, (self.url, self.fast)

    def read(self, slots: slice, y: slice = ALL, x: slice = ALL) -> NDArray[np.float32]:
        """(time, y, x) rain rate in mm/h; NaN where not observed or the slot is not committed.

        Slices are of successive slots, rows and columns, cut at the archive's ends.
        """
        return unpack(self.read_stored(slots, y, x))

    def read_stored(self, slots: slice, y: slice = ALL, x: slice = ALL) -> NDArray[np.uint16]:
        """The same as stored: 0.01 mm/h, 65535 for what `read` gives as NaN."""
        opened = self._opened or self._open()
        if opened.process != os.getpid():
            raise RuntimeError(
                "a SampleReader was carried over a fork; start workers with spawn, or make the "
                "reader in the worker"
            )
        slots, y, x = (
            slice(*along.indices(length)[:2])
            for along, length in zip((slots, y, x), opened.shape, strict=True)
        )
        stored = opened.read((slots, y, x))
        uncommitted = ~opened.usable[slots]
        if uncommitted.any():
            stored[uncommitted] = MISSING
        return stored

    def _open(self) -> _Opened:
        archive = Archive(self.url)
        usable = np.isin(archive.status().to_numpy(), USABLE)
        array = archive.fast_rain_rate() if self.fast is not False else None
        self._opened = _Opened(
            archive.shape,
            usable,
            (lambda window: archive.read_stored(*window))
            if array is None
            else (lambda window: array[window].read().result()),
            os.getpid(),
        )
        return self._opened


def _require_fast(url: str) -> None:
    if storage.local_path(url) is None:
        raise SquallError(
            "tensorstore reads local archives only",
            found=url,
            expected="a local folder",
            remedy="leave `fast` out: zarr-python reads this one",
        )
    if not available(url):
        raise SquallError(
            "tensorstore is not installed",
            found="fast=True",
            expected="the package tensorstore",
            remedy="pip install 'squall[fast]', or leave `fast` out",
        )
