"""A forecaster in a child process of its own, with a deadline.

A network may hang, crash or be killed for its memory. Behind `Isolated` it takes nothing with it:
by the deadline at the latest the caller has an error, and can forecast another way.

    isolated = Isolated(partial(get_forecaster, root, "knmi"), timeout_s=60)
    ...                                        # it loads while new frames are taken in
    isolated.predict(past, lead_times)         # a forecast, or what the child's forecaster raised,
                                               # or ForecasterTimeoutError, ForecasterDiedError

Why not a pool: `concurrent.futures` cannot end a task that runs, and a worker's death breaks it for
good; here there is one child, and its end is an ordinary thing.

The child ends when its parent does, however that ends: a thread of the child waits for it, and
should a computation let no other thread run, a timer ends the child.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from models.forecaster import Forecaster
from models.parcel import Parcel
from pipelines.errors import Failure, SquallError
from pipelines.workers import keeping_memory

SPAWN = multiprocessing.get_context("spawn")
GRACE_S = 10.0
"""A child that its parent did not end in time ends itself so much later."""


class ForecasterLostError(SquallError):
    """A forecaster in a child process that gave no answer. Its next use starts it anew."""


class ForecasterTimeoutError(ForecasterLostError):
    """No answer in time."""


class ForecasterDiedError(ForecasterLostError):
    """No answer because the child process ended: it crashed, or something killed it."""


@dataclass(frozen=True)
class About:
    """What a child says of its forecaster once it has loaded.

    Attributes
    ----------
    name, paper, past_frames : see `models.forecaster.Forecaster`
    weights_sha256 : of its model; "" for a baseline
    device : where it computes, such as ``cpu`` or ``cuda:0``
    pid : of the child process
    """

    name: str
    paper: str
    past_frames: int
    weights_sha256: str
    device: str
    pid: int

    @classmethod
    def of(cls, forecaster: Forecaster) -> "About":
        """Of a forecaster in this process."""
        model = getattr(forecaster, "model", None)
        return cls(
            forecaster.name,
            forecaster.paper,
            forecaster.past_frames,
            model.weights_sha256 if model else "",
            str(next(model.network.parameters()).device) if model else "cpu",
            os.getpid(),
        )


@dataclass(frozen=True)
class _Question:
    """Past frames and lead times, and after how many seconds the child is to end itself."""

    parcel: Parcel
    limit_s: float


@dataclass(frozen=True)
class _Answer:
    """A forecast, and the most memory that the child has needed so far."""

    parcel: Parcel
    peak_bytes: int


@dataclass
class _Child:
    """A child process, seen from its parent. It has to have loaded by `load_by` (monotonic)."""

    process: BaseProcess
    pipe: Connection
    folder: "tempfile.TemporaryDirectory[str]"
    load_by: float
    about: About | None = None


class Isolated:
    """A forecaster (`models.forecaster.Forecaster`) that runs in a child process.

    The child starts and loads at once. Name, paper and past_frames are known once it has loaded;
    asking for them waits. Threads take turns.

    Parameters
    ----------
    recipe : makes the forecaster, in the child: anything that can be pickled, such as
        ``functools.partial(get_forecaster, root, name)``
    timeout_s : how long `predict` takes at most, unless it is told otherwise
    load_timeout_s : how long loading takes at most, imports included. `predict` may give up before;
        loading then goes on, for the next forecast
    threads : PyTorch's, in the child

    Attributes
    ----------
    peak_bytes : the most memory that the child has needed, as of its last forecast
    """

    def __init__(
        self,
        recipe: Callable[[], Forecaster],
        *,
        timeout_s: float = 120.0,
        load_timeout_s: float = 300.0,
        threads: int = 2,
    ) -> None:
        self.timeout_s, self.load_timeout_s = timeout_s, load_timeout_s
        self.peak_bytes = 0
        self._recipe, self._threads = recipe, threads
        self._lock = threading.RLock()
        self._child: _Child | None = None
        self.start()

    @property
    def about(self) -> About:
        """What the child says of its forecaster; waits until it has loaded.

        Raises what loading raised, or `ForecasterLostError`.
        """
        with self._lock:
            if self._child is not None and self._child.about is not None:
                return self._child.about  # even if it has died since
            self.start()
            return self._loaded(time.monotonic() + self.load_timeout_s)

    @property
    def has_child(self) -> bool:
        """Whether its next use need not start a child: not where loading failed or it was lost."""
        return self._child is not None

    @property
    def name(self) -> str:
        """See `models.forecaster.Forecaster`."""
        return self.about.name

    @property
    def paper(self) -> str:
        """See `models.forecaster.Forecaster`."""
        return self.about.paper

    @property
    def past_frames(self) -> int:
        """See `models.forecaster.Forecaster`."""
        return self.about.past_frames

    def start(self) -> None:
        """Start a child, where none is alive. Does not wait until it has loaded."""
        with self._lock:
            if self._child is not None and self._child.process.is_alive():
                return
            self.close()
            folder = tempfile.TemporaryDirectory(prefix="squall-", ignore_cleanup_errors=True)
            pipe, childs_end = SPAWN.Pipe()
            arguments = (childs_end, self._recipe, self._threads, folder.name, self.load_timeout_s)
            process = SPAWN.Process(target=_serve, args=arguments, daemon=True)
            with keeping_memory():  # a network's large arrays come and go: half its time, without
                process.start()
            childs_end.close()
            load_by = time.monotonic() + self.load_timeout_s
            self._child = _Child(process, pipe, folder, load_by)

    def predict(
        self, past: xr.DataArray, lead_times: pd.TimedeltaIndex, timeout_s: float | None = None
    ) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`; what is left of loading counts.

        Raises what the forecaster raised, `ForecasterTimeoutError` after `timeout_s` seconds,
        `ForecasterDiedError` as soon as the child is dead.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        with self._lock:
            self.start()
            self._loaded(deadline)
            child = self._child
            assert child is not None
            parcel = Parcel.pack((past, lead_times), child.folder.name)
            left_s = max(0.0, deadline - time.monotonic())
            with contextlib.suppress(OSError):  # if it is dead, `_receive` says how it died
                child.pipe.send(_Question(parcel, left_s + GRACE_S))
            answer = self._receive(deadline, "forecast")
            self.peak_bytes = answer.peak_bytes
            forecast: xr.DataArray = answer.parcel.open()
            return forecast

    def close(self) -> None:
        """End the child. The next use starts another one."""
        with self._lock:
            child, self._child = self._child, None
            if child is not None:
                child.process.kill()
                child.process.join(GRACE_S)
                if child.process.exitcode is not None:  # else the kernel is not done with it
                    child.process.close()
                child.pipe.close()
                child.folder.cleanup()

    def _loaded(self, deadline: float) -> About:
        """What the child says of its forecaster, by then."""
        child = self._child
        assert child is not None
        if child.about is None:
            patient = deadline < child.load_by
            try:
                child.about = self._receive(min(deadline, child.load_by), "load", end=not patient)
            except ForecasterTimeoutError:
                raise
            except Exception:  # what loading raised; it has nothing more to say
                self.close()
                raise
        return child.about

    def _receive(self, deadline: float, doing: str, *, end: bool = True) -> Any:
        """The child's next message. Without one the child is ended, unless it is only late and
        `end` says not to."""
        child = self._child
        assert child is not None
        began = time.monotonic()
        try:
            ready = wait([child.pipe, child.process.sentinel], max(0.0, deadline - began))
            if ready and child.pipe.poll():
                message = child.pipe.recv()
            elif ready:
                raise EOFError
            else:
                message = None
        except (EOFError, OSError):
            raise self._died(child, doing) from None
        except BaseException:  # interrupted: a later answer would be taken for that to the next
            self.close()
            raise
        if message is None:
            if end:
                self.close()
            raise ForecasterTimeoutError(
                f"the forecaster did not {doing} in time",
                found=f"no answer after {time.monotonic() - began:.1f} s",
                expected="an answer before its deadline",
                remedy="give it more time (timeout_s), more threads or a smaller network; "
                + ("it starts anew at its next use" if end else "it goes on loading"),
            )
        if isinstance(message, Failure):
            message.again("the forecaster's process")
        return message

    def _died(self, child: _Child, doing: str) -> ForecasterDiedError:
        child.process.join(GRACE_S)
        code = child.process.exitcode
        self.close()
        return ForecasterDiedError(
            f"the forecaster's process ended before it could {doing}",
            found=signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}",
            expected="a process that lives on",
            remedy="look at its last words in the log above; SIGKILL is often a lack of memory. "
            "It starts anew at its next use",
        )


# The child ---------------------------------------------------------------------------------------


def _serve(
    pipe: Connection,
    recipe: Callable[[], Forecaster],
    threads: int,
    folder: str,
    load_timeout_s: float,
) -> None:
    """The child: load, say so, then answer until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    faulthandler.enable()
    import torch

    torch.set_num_threads(threads)
    forecaster: Forecaster | None = None

    def load() -> About:
        nonlocal forecaster
        forecaster = recipe()
        return About.of(forecaster)

    def answer(question: _Question) -> _Answer:
        assert forecaster is not None
        forecast = forecaster.predict(*question.parcel.open())
        return _Answer(Parcel.pack(forecast, folder), peak_bytes())

    try:
        pipe.send(_try(load, load_timeout_s + GRACE_S))
        while True:
            question: _Question = pipe.recv()
            pipe.send(_try(partial(answer, question), question.limit_s))
    except (EOFError, OSError):  # nobody is there any more; `_end_with_parent` may be slower
        shutil.rmtree(folder, ignore_errors=True)


def _try(work: Callable[[], Any], limit_s: float) -> Any:
    """What it returns, or a `Failure`. After `limit_s` seconds this process is over."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        return work()
    except Exception as error:
        return Failure.of(error)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _end_with_parent(folder: str) -> None:
    """Wait for the parent's end, then end this process too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def peak_bytes() -> int:
    """The most memory that this process has had (VmHWM), 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else 0
