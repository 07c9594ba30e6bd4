"""One writer at a time: ingest, compaction and repair of an archive take turns, and promotions.

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
    """Another process writes the same store."""


@contextlib.contextmanager
def exclusive(
    url: str, wait_s: float = WAIT_S, by: str = "ingest, compaction or repair"
) -> Iterator[None]:
    """Hold a store for writing; wait up to `wait_s` seconds for another writer to finish.

    Raises `BusyError` where it does not; `by` says what the other may be doing. Readers take no
    part in this.
    """
    store = storage.local_path(url)
    if store is None:
        yield
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_suffix(".lock"))
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise BusyError(
            f"{storage.display(url)} is being written",
            found=f"another {by} for more than {wait_s:.0f} s",
            expected="one writer at a time",
            remedy="wait for it to end, or end it: what it has committed stays",
        ) from error
    try:
        yield
    finally:
        lock.release()
