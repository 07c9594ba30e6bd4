"""Publishing a store exactly once, whoever races, dies or tries again.

Locally an attempt is written into a hidden folder beside its place and renamed there whole: the
operating system lets one rename win, and an attempt that dies leaves nothing that a reader or
another attempt can meet. In an object store nothing can be renamed. There an attempt takes a claim,
which only one can create, then creates chunks, then the arrays' metadata, and last the root's. A
claim whose holder has shown no life for `LEASE_S` is followed by the next. A holder that was away
for long sees so and stops; what it was just creating is there by then, so it changes nothing
([0008](../infra/decisions/0008-published-once.md)).
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr
from dask.system import CPU_COUNT
from zarr.storage import LocalStore

from pipelines import storage
from pipelines.errors import SquallError
from pipelines.lock import exclusive

LEASE_S = 120.0
"""How long a claim without a sign of life keeps others waiting."""
POLL_S = 0.5
TOGETHER = 16
"""Objects written at a time."""
DEBRIS_S = 3600.0
"""What is staged, or claimed, and nobody has touched for so long is of an attempt that died."""
STAGED = re.compile(r"\..+\.[0-9a-f]{32}")
CLAIMS = "claims"

Stamp = Callable[[], Mapping[str, Any]]


class LostClaimError(SquallError):
    """Another process has taken over what this one was publishing."""


def publish_once(dataset: xr.Dataset, url: str, encoding: dict[str, Any], stamp: Stamp) -> bool:
    """Publish `dataset` as a Zarr v3 store at `url`; False where there is a complete one already.

    Readers see all of it or nothing. `stamp` gives attributes that are known only at the end, such
    as when that was; it is called just before the store becomes visible. What is staged lies on the
    local disk: a Dask-backed dataset is never in memory as a whole.
    """
    return publish_written(lambda staged: _write(dataset, staged, encoding), url, stamp)


def publish_written(write: Callable[[Path], None], url: str, stamp: Stamp) -> bool:
    """The same for what `write` writes, with consolidated metadata, into a local folder."""
    path = storage.local_path(url)
    if path is None:
        with tempfile.TemporaryDirectory(prefix="squall-") as folder:
            staged = Path(folder) / "staged.zarr"
            write(staged)
            return _upload(staged, url, stamp)
    staged = _beside(path)
    try:
        write(staged)
        (staged / storage.ROOT_METADATA).write_bytes(_stamped(staged, stamp))
        return _move(staged, path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def add_attributes(url: str, attributes: Mapping[str, Any]) -> None:
    """Add global attributes to a published store. Readers see it without them or with them."""
    root_metadata = storage.join(url, storage.ROOT_METADATA)
    metadata = storage.read_json(root_metadata)
    metadata["attributes"] |= attributes
    path = storage.local_path(url)
    if path is None:
        storage.write_json(root_metadata, metadata)
        return
    staged = _beside(path)  # not within: where this dies, `sweep` finds it there
    staged.write_bytes(_as_bytes(metadata))
    staged.replace(path / storage.ROOT_METADATA)


def sweep(folder: str, older_than_s: float = DEBRIS_S) -> int:
    """Remove what attempts that died have left in a folder; how many there were.

    Locally that is what they staged, hidden; in an object store their claims.
    """
    path = storage.local_path(folder)
    if path is None:
        return _sweep_claims(folder, older_than_s)
    swept = 0
    for staged in path.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if STAGED.fullmatch(staged.name) and time.time() - _touched(staged) > older_than_s:
                shutil.rmtree(staged, ignore_errors=True) if staged.is_dir() else staged.unlink()
                swept += 1
    return swept


def _touched(staged: Path) -> float:
    """When something was last added to a staged file or store, or to one of its arrays."""
    return max(path.stat().st_mtime for path in (staged, *staged.glob("*")))


def _beside(path: Path) -> Path:
    """Where what is to be at `path` is staged: hidden, and no other attempt's."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def _as_bytes(metadata: Mapping[str, Any]) -> bytes:
    return (json.dumps(metadata, indent=1) + "\n").encode()


def _sweep_claims(folder: str, older_than_s: float) -> int:
    names = storage.names(storage.join(folder, CLAIMS))
    swept = 0
    for name in sorted({name.rpartition(".")[0] for name in names}):
        claim = _Claim(storage.join(folder, name))
        with contextlib.suppress(FileNotFoundError):  # its holder has just finished
            if claim.give_up_if_published() or claim.quiet_s() > older_than_s:
                claim.remove()
                swept += 1
    return swept


def _write(dataset: xr.Dataset, staged: Path, encoding: dict[str, Any]) -> None:
    # Dask's own threads write on where one has failed, into a folder that is just being removed;
    # the end of these waits for them.
    with storage.consolidating(), ThreadPoolExecutor(CPU_COUNT) as threads:
        written = dataset.to_zarr(
            LocalStore(staged),
            mode="w",
            zarr_format=3,
            consolidated=True,
            encoding=encoding,
            write_empty_chunks=True,
            compute=False,
        )
        written.compute(scheduler="threads", pool=threads)


def _stamped(staged: Path, stamp: Stamp) -> bytes:
    """The root's metadata with what the stamp adds."""
    metadata = json.loads((staged / storage.ROOT_METADATA).read_bytes())
    metadata["attributes"] |= stamp()
    return _as_bytes(metadata)


# A local folder ----------------------------------------------------------------------------------


def _move(staged: Path, path: Path) -> bool:
    """Rename a finished store into its place; False where one is there."""
    if _renamed(staged, path):
        return True
    if (path / storage.ROOT_METADATA).exists():
        return False
    with exclusive(str(path), by="publisher"):  # a folder that no publisher made: out of the way
        if not (path / storage.ROOT_METADATA).exists():
            path.rename(_beside(path))
        return _renamed(staged, path)


def _renamed(staged: Path, path: Path) -> bool:
    try:
        os.rename(staged, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


# An object store ---------------------------------------------------------------------------------


def _upload(staged: Path, url: str, stamp: Stamp) -> bool:
    with _claimed(url) as claim:
        if claim is None:
            return False
        keys = sorted(
            (str(file.relative_to(staged)) for file in staged.rglob("*") if file.is_file()),
            key=storage.publish_order,
        )
        for metadata in (False, True):  # the arrays' metadata after their chunks
            some = [key for key in keys[:-1] if key.endswith(storage.ROOT_METADATA) == metadata]
            for first in range(0, len(some), TOGETHER):
                claim.hold()
                _put(staged, url, some[first : first + TOGETHER], claim)
        claim.hold()
        return storage.create_bytes(
            storage.join(url, storage.ROOT_METADATA), _stamped(staged, stamp)
        )


def _put(staged: Path, url: str, keys: list[str], claim: "_Claim") -> None:
    """Write some objects at once: each waits for the network most of the time."""

    def put(key: str, how: Callable[[str, bytes], bool | None]) -> bool | None:
        return how(storage.join(url, key), (staged / key).read_bytes())

    with ThreadPoolExecutor(TOGETHER) as pool:
        created = list(pool.map(partial(put, how=storage.create_bytes), keys))
        there = [key for key, new in zip(keys, created, strict=True) if not new]
        if there:
            claim.renew()  # an attempt that died has left them; or have we been taken over?
            list(pool.map(partial(put, how=storage.write_bytes), there))


class _Claim:
    """The right to write a store. Its holder renews it; the one with the highest number counts."""

    def __init__(self, url: str) -> None:
        self.url = url
        folder, _, self._name = url.rpartition("/")
        self._folder = f"{folder}/{CLAIMS}"
        self.number, self._mark = 0, uuid.uuid4().bytes
        self._since = time.monotonic()

    def take(self) -> bool:
        """Wait until nobody alive holds the store; False where it is published by then."""
        seen, since = -1, time.monotonic()
        while not self._published():
            newest = max(self._numbers(), default=0)
            if newest != seen:
                seen, since = newest, time.monotonic()
            if newest and time.monotonic() - since <= LEASE_S:
                time.sleep(POLL_S)
            elif self._create(newest + 1):
                return not self.give_up_if_published()
        return False

    def hold(self) -> None:
        """Before every write: renew the claim in time."""
        if time.monotonic() - self._since > LEASE_S / 4:
            self.renew()

    def renew(self) -> None:
        """Show life. Raises `LostClaimError` where another has taken over."""
        ours = self._is_ours() and self._create(self.number + 1)
        if not ours or self.give_up_if_published():
            raise LostClaimError(
                f"{storage.display(self.url)} is being published by another process",
                found=f"another claim than our number {self.number}",
                expected="one publisher at a time",
                remedy="nothing: the other one's forecast counts",
            )

    def release(self) -> None:
        """Let others go on: no claim of ours, or of those before us, stays; ours goes last."""
        self.remove(self.number)

    def give_up_if_published(self) -> bool:
        """Whether the store is published; then no claim on it is worth anything."""
        if self._published():
            self.remove()
            return True
        return False

    def remove(self, last: int | None = None) -> None:
        """Remove all claims up to a number, by default all there are."""
        for number in self._numbers():
            if last is None or number <= last:
                storage.remove(self._at(number))

    def quiet_s(self) -> float:
        """For how long nobody has claimed or renewed."""
        renewed = [storage.modified(self._at(number)) for number in self._numbers()]
        return time.time() - max(renewed, default=0.0)

    def _published(self) -> bool:
        return storage.exists(storage.join(self.url, storage.ROOT_METADATA))

    def _numbers(self) -> list[int]:
        parts = [name.rpartition(".") for name in storage.names(self._folder)]
        return sorted(int(number) for name, _, number in parts if name == self._name)

    def _at(self, number: int) -> str:
        return f"{self._folder}/{self._name}.{number}"

    def _is_ours(self) -> bool:
        try:
            return storage.read_bytes(self._at(self.number)) == self._mark
        except FileNotFoundError:  # whoever followed us, or a sweep, has removed it
            return False

    def _create(self, number: int) -> bool:
        if not storage.create_bytes(self._at(number), self._mark):
            return False
        self.number, self._since = number, time.monotonic()
        return True


@contextlib.contextmanager
def _claimed(url: str) -> Iterator[_Claim | None]:
    """Hold the claim on a store; None where it is published already."""
    claim = _Claim(url)
    if not claim.take():
        yield None
        return
    try:
        yield claim
    except LostClaimError:
        raise
    except Exception:
        claim.release()  # an attempt that failed, and knows it, keeps nobody waiting
        raise
    claim.give_up_if_published()
