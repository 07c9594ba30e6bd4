"""Checkpoints of a run: `{root}/runs/{run}/checkpoints/{step}-{sha256}.pt`, on any fsspec URL.

A checkpoint is one object, written whole or not at all, and its name holds the hash of what it
holds: one that is damaged is passed over for the one before. Nothing but numbers and text is read
from one: no code is run.
"""

import contextlib
import hashlib
import io
import logging
import time
from typing import Any, NamedTuple

import torch

from pipelines import storage

ENDING = ".pt"
HASH_DIGITS = 16
LONGEST_PAUSE_S = 30.0

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """What the name of one says."""

    step: int
    sha256: str

    @property
    def name(self) -> str:
        """Of the object."""
        return f"{self.step:09d}-{self.sha256}{ENDING}"


def folder(runs_url: str, run: str) -> str:
    """Where a run's checkpoints lie."""
    return storage.join(runs_url, run, "checkpoints")


def found(place: str) -> list[Checkpoint]:
    """The checkpoints in a folder, newest last."""
    names = [name for name in storage.names(place) if name.endswith(ENDING) and name[0] != "."]
    parts = [name.removesuffix(ENDING).partition("-") for name in names]
    return sorted(Checkpoint(int(step), digest) for step, _, digest in parts)


def read(place: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds; `ValueError` where it is not what was written."""
    content = storage.read_bytes(f"{place}/{checkpoint.name}")
    if _digest(content) != checkpoint.sha256:
        raise ValueError(f"{checkpoint.name} is not what was written")
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    return state


def newest(place: str) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest checkpoint that is whole; None where there is none."""
    for checkpoint in reversed(found(place)):
        try:
            return checkpoint, read(place, checkpoint)
        except (OSError, ValueError) as error:
            log.warning("a checkpoint is passed over: %s", error)
    return None


class Writer:
    """Adds checkpoints, and removes old ones.

    Where the storage refuses one, training goes on: it is kept in memory and tried again with the
    next one, and `finish` does not give up before `patience_s` seconds.

    Parameters
    ----------
    keep : how many of the newest are kept, and the best one beside them
    """

    def __init__(self, place: str, keep: int, patience_s: float) -> None:
        self.place, self.keep, self.patience_s = place, keep, patience_s
        self._waiting: dict[int, bytes] = {}

    def add(self, step: int, state: dict[str, Any], best: int | None) -> None:
        """Add the checkpoint of a step; `best` is the step of the best one so far."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._waiting[step] = buffer.getvalue()
        try:
            self._write()
        except Exception as error:  # whatever the storage raises
            log.warning("the checkpoint of step %d waits for the storage: %s", step, error)
            self._waiting = {k: v for k, v in self._waiting.items() if k in (step, best)}
            return
        for checkpoint in found(self.place)[: -self.keep]:
            if checkpoint.step != best:
                with contextlib.suppress(OSError):
                    storage.remove(f"{self.place}/{checkpoint.name}")

    def finish(self) -> None:
        """Write what still waits. Raises what the storage raises once it has refused too long."""
        end, pause = time.monotonic() + self.patience_s, 0.5
        while self._waiting:
            try:
                self._write()
            except Exception as error:
                if time.monotonic() + pause > end:
                    raise
                log.warning("the last checkpoint waits for the storage: %s", error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _write(self) -> None:
        for step, content in sorted(self._waiting.items()):
            name = Checkpoint(step, _digest(content)).name
            storage.write_bytes(f"{self.place}/{name}", content)
            del self._waiting[step]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
