"""Many independent tasks: here, in a process beside, on local Dask workers, or on a scheduler."""

import atexit
import contextlib
import faulthandler
import itertools
import logging
import multiprocessing
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from pipelines.errors import Failure

Result = TypeVar("Result")

FEW_TASKS = 3
"""Up to so many tasks run one after another: starting Dask workers would take longer."""
ATTEMPTS = 3
"""So often a task is tried that ends its process before its time."""
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

    Few tasks, or one worker: one after another, in this process; or, with `deadline_s`, in one
    beside this, since a task that takes longer is to be ended and a process with it. Else on Dask
    workers. h5py holds one lock per process, so local ones are processes of one thread each.

    What a task raises ends the iteration; Dask tries three times before. One that ends its process
    three times, or takes too long, gives `on_death(*task)` instead, where that is given (with a
    deadline it has to be); on Dask, those that went with it run again, one at a time. The log of
    what was ended for its time says where it was. Close the iterator to end early.
    """
    if scheduler is None and (len(tasks) <= FEW_TASKS or workers == 1):
        if deadline_s is None:
            yield from (function(*task) for task in tasks)
        else:
            assert on_death is not None
            yield from (_do_beside(function, task, on_death, deadline_s) for task in tasks)
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


# Processes beside --------------------------------------------------------------------------------


class _Process:
    """A process that does one task after another, until this one ends or has no more for it.

    It is none of `multiprocessing`'s, which import a script's main module anew in every process.
    """

    def __init__(self, module: str) -> None:
        self._pipe, its_end = multiprocessing.Pipe()
        with keeping_memory(), its_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(module, its_end.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[its_end.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is its parent's to answer
            )
        self._ready = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def do(self, function: Callable[..., Any], task: tuple[Any, ...], deadline_s: float) -> Any:
        """The result, or a `Failure`; `EOFError` where the process ends over it."""
        if not self._ready:
            try:
                self._ready = self._pipe.recv()
            except EOFError:
                raise RuntimeError(
                    f"a process beside this one did not start (exit {self._process.wait()}); "
                    "its last words are in the log above"
                ) from None
        try:
            self._pipe.send((function, task, deadline_s, dict(os.environ)))
            return self._pipe.recv()
        except OSError as error:
            raise EOFError from error

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()


START = "import {}; from pipelines.workers import work; work({})"
_idle: list[_Process] = []
os.register_at_fork(after_in_child=_idle.clear)  # they are its parent's


def get_ready(function: Callable[..., Any]) -> None:
    """Have a process beside this one import what `function` needs, while other things are done."""
    if not _idle:
        _idle.append(_Process(function.__module__))


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _do_beside(
    function: Callable[..., Result],
    task: tuple[Any, ...],
    on_death: Callable[..., Result],
    deadline_s: float,
) -> Result:
    """The result of a task, from a process beside this one that is used again if it lives on."""
    began = time.monotonic()
    for _ in range(ATTEMPTS):
        process = _idle.pop() if _idle else _Process(function.__module__)
        if not process.alive:
            process.end()
            process = _Process(function.__module__)
        try:
            result = process.do(function, task, deadline_s)
        except EOFError:
            process.end()
            if time.monotonic() - began >= deadline_s:
                break
            continue
        except BaseException:  # interrupted: a later answer would be taken for that to the next
            process.end()
            raise
        _idle.append(process)
        if isinstance(result, Failure):
            result.again("a process beside this one")
        return cast(Result, result)
    return on_death(*task)


def work(pipe_fd: int) -> None:
    """What such a process does, until its parent closes the pipe or is no more."""
    pipe = Connection(pipe_fd)
    threading.Thread(target=_end_with_parent, args=(pipe_fd,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        pipe.send(True)
        while True:
            function, task, deadline_s, environment = pipe.recv()
            os.environ.clear()
            os.environ.update(environment)
            try:
                (result,) = _each(function, [task], deadline_s)
            except Exception as error:
                result = Failure.of(error)
            pipe.send(result)


def _end_with_parent(pipe_fd: int) -> None:
    """Nothing is written for a run that is no more: the next may already be writing."""
    gone = select.poll()
    gone.register(pipe_fd, 0)
    gone.poll()
    os._exit(1)
