"""Many independent tasks: here, on local Dask workers, or on a Dask scheduler."""

import contextlib
import faulthandler
import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

INLINE_TASKS = 3
"""Up to so many tasks run in this process: starting workers would take longer."""
AHEAD = 8
"""Batches handed out per worker: enough to keep it busy, however many there are in all."""
BATCH = 8
"""Most tasks that go together, where there are very many: Dask takes milliseconds for each."""
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": 1,
    "MALLOC_MMAP_THRESHOLD_": 1 << 30,
    "MALLOC_TRIM_THRESHOLD_": 1 << 30,
}
"""What a worker's C library is told (glibc's names): memory that one frame needed stays for the
next. Given back to the system and taken again, page by page, it costs as much as the decoding."""


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """The address of a Dask scheduler with worker processes of one thread each on this machine."""
    import dask
    from distributed import LocalCluster

    environment = "distributed.nanny.pre-spawn-environ"  # malloc looks at it as a process starts
    kept = {f"{environment}.{name}": value for name, value in KEEP_MEMORY.items()}
    with (
        keeping_memory(),
        dask.config.set(kept),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster.scheduler_address


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Processes that are started in this block keep their memory; in the end all is as before.

    What the environment says already stays.
    """
    before = {name: os.environ.get(name) for name in KEEP_MEMORY}
    os.environ |= {name: str(value) for name, value in KEEP_MEMORY.items() if not before[name]}
    try:
        yield
    finally:
        for name, value in before.items():  # Dask, too, sets its workers' in this process
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def run_parallel(
    function: Callable[..., Result],
    tasks: list[tuple[Any, ...]],
    *,
    workers: int,
    scheduler: str | None = None,
    on_death: Callable[..., Result] | None = None,
    deadline_s: float | None = None,
) -> Generator[Result, None, None]:
    """Results of `function(*task)` for every task, as they come, in any order.

    h5py holds one lock per process, so local workers are processes of one thread each. A task is
    tried three times; what it raises then ends the iteration. A task whose worker dies every time
    gives `on_death(*task)` instead, where that is given; those that went with it run again, one
    at a time. So it is with a task that takes longer than `deadline_s`: its worker's log says where
    it was. In this process there is no deadline. Close the iterator to end early.
    """
    if scheduler is None and (len(tasks) <= INLINE_TASKS or workers == 1):
        for task in tasks:
            yield function(*task)
        return
    from distributed import Client, KilledWorker, as_completed

    with contextlib.ExitStack() as stack:
        if scheduler is None:
            scheduler = stack.enter_context(local_cluster(min(workers, len(tasks))))
        client = stack.enter_context(Client(scheduler))
        threads = sum(client.nthreads().values())
        size = max(1, min(BATCH, len(tasks) // (AHEAD * threads)))
        waiting = iter([tasks[k : k + size] for k in range(0, len(tasks), size)])
        handed_out: dict[Any, list[tuple[Any, ...]]] = {}

        def submit(batch: list[tuple[Any, ...]]) -> Any:
            return client.submit(_each, function, batch, deadline_s, pure=False, retries=2)

        def hand_out(batches: Iterable[list[tuple[Any, ...]]]) -> list[Any]:
            made = {submit(b): b for b in batches}
            handed_out.update(made)
            return list(made)

        suspects: list[tuple[Any, ...]] = []
        running = as_completed(hand_out(itertools.islice(waiting, AHEAD * threads)))
        for future in running:
            batch = handed_out.pop(future)
            results: list[Result] = []
            try:
                results = future.result()
            except KilledWorker:
                if on_death is None:
                    raise
                suspects += batch
            future.release()
            running.update(hand_out(itertools.islice(waiting, 1)))
            yield from results
        for task in suspects:  # a worker took the innocent with it: now one task at a time
            (future,) = hand_out([[task]])
            try:
                (result,) = future.result()
            except KilledWorker:
                assert on_death is not None
                result = on_death(*task)
            yield result


def _each(
    function: Callable[..., Result], tasks: list[tuple[Any, ...]], deadline_s: float | None
) -> list[Result]:
    results = []
    for task in tasks:
        if deadline_s is not None:  # by a thread of C's: a library may hang with Python's lock
            faulthandler.dump_traceback_later(deadline_s, exit=True)
        try:
            results.append(function(*task))
        finally:
            faulthandler.cancel_dump_traceback_later()
    return results
