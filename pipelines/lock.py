"""One writer at a time: ingest, compaction and repair of an archive take turns.

Locally the lock is the operating system's and goes with the process that held it, however it ended.
In an object store nothing is locked: there, give the deployments that write one product a
concurrency limit of one, as `prefect.yaml` does.
"""

import contextlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from pipelines import storage
from pipelines.errors import SquallError

WAIT_S = 600.0


class BusyError(SquallError):
    """Another process writes the archive."""


@contextlib.contextmanager
def exclusive(archive_url: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold an archive for writing; wait up to `wait_s` seconds for another writer to finish.

    Raises `BusyError` where it does not. Readers take no part in this.
    """
    store = storage.local_path(archive_url)
    if store is None:
        yield
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_suffix(".lock"))
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise BusyError(
            f"the archive {storage.display(archive_url)} is being written",
            found=f"another ingest, compaction or repair for more than {wait_s:.0f} s",
            expected="one writer at a time",
            remedy="wait for it to end, or end it: what it has committed stays",
        ) from error
    try:
        yield
    finally:
        lock.release()
