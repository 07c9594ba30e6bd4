"""Processes that go on after the command that started them, and are ended by another.

    {folder}/run/{name}.json    pid and when that process began: together they name one process
    {folder}/logs/{name}.log

A pid alone may have become another's. So nothing is ever ended but what was started here.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines.errors import SquallError

POLL_S = 0.3
GRACE_S = 20.0
"""How long a process may take to end by itself, before SIGKILL."""


@dataclass(frozen=True)
class Part:
    """A server or worker.

    Parameters
    ----------
    command, environment : how it is started; the environment comes on top of a bare one
    address : what users connect to
    ready : raises for as long as it does not answer as it should
    user : who it runs as, where that must not be root
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    address: str
    ready: Callable[[], object]
    user: str | None = None
    within_s: float = 180.0


def log_of(folder: Path, name: str) -> Path:
    """Where a part's output goes."""
    return folder / "logs" / f"{name}.log"


def _record(folder: Path, name: str) -> Path:
    return folder / "run" / f"{name}.json"


def process_of(folder: Path, name: str) -> psutil.Process | None:
    """The running process of a part; None where there is none, or its pid is another's now."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        known = json.loads(_record(folder, name).read_text())
        process = psutil.Process(known["pid"])
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        if alive and abs(process.create_time() - known["began"]) < 0.05:
            return process
    return None


def start(folder: Path, part: Part, bare: Mapping[str, str]) -> bool:
    """Start a part unless it runs, and wait until it answers; whether it was started.

    Raises `SquallError` where it ends or does not answer in time; its processes are ended then.
    """
    begun = process_of(folder, part.name) is None
    if begun:
        _begin(folder, part, bare)
    error = _wait(folder, part)
    if error is not None and not begun and process_of(folder, part.name) is None:
        begun = True  # it was ending as we came, such as a worker whose scheduler had gone
        _begin(folder, part, bare)
        error = _wait(folder, part)
    if error is not None:
        if begun:
            end(folder, part.name)
        raise SquallError(
            f"{part.name} does not answer at {part.address}",
            found=error,
            expected=f"an answer within {part.within_s:.0f} s",
            remedy=f"read {log_of(folder, part.name)}; if the port is taken: --base-port",
        )
    return begun


def _begin(folder: Path, part: Part, bare: Mapping[str, str]) -> None:
    for place in (folder / "run", folder / "logs"):
        place.mkdir(parents=True, exist_ok=True)
    with log_of(folder, part.name).open("ab") as log:
        child = subprocess.Popen(
            part.command,
            env={**bare, **part.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            user=part.user,
            umask=0o077,
        )
    began = psutil.Process(child.pid).create_time()
    _record(folder, part.name).write_text(json.dumps({"pid": child.pid, "began": began}))


def _wait(folder: Path, part: Part) -> str | None:
    """Until it answers: None; or why not."""
    limit = time.monotonic() + part.within_s
    while True:
        try:
            part.ready()
            return None
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        if process_of(folder, part.name) is None:
            return f"it has ended ({told})"
        if time.monotonic() > limit:
            return told
        time.sleep(POLL_S)


def end(folder: Path, name: str, stop: signal.Signals = signal.SIGTERM) -> bool:
    """End a part with all that it started; whether it ran."""
    process = process_of(folder, name)
    if process is not None:
        family = _family(process)
        process.send_signal(stop)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(GRACE_S)
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(family, timeout=GRACE_S)
    _record(folder, name).unlink(missing_ok=True)
    return process is not None


def _family(process: psutil.Process) -> list[psutil.Process]:
    """A process, its descendants, and those of its session whose parents are gone."""
    found = {process.pid: process}
    for other in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error, PermissionError):
            if os.getsid(other.pid) == process.pid:
                found[other.pid] = other
    for one in list(found.values()):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in one.children(recursive=True)}
    return list(found.values())
