"""How far a training run is: `{root}/runs/{run}/status.json`, replaced whole by who drives the run.

Anybody may read it, on any machine that sees the root. A run that is killed outright cannot say so:
its status stays as it was, and `updated` grows old.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from pipelines import storage
from pipelines.errors import SquallError
from pipelines.times import now, time_text

State = Literal["starting", "training", "scoring", "done", "failed"]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes
    ----------
    step, steps : optimiser steps done, and of the whole run; 0 of 0 until that is known
    epoch, epochs : epochs done, and of the whole run
    metrics : the newest, by name
    model : what was registered, name/version, once the run is done
    error : why it failed, in one line
    updated : when this was written, UTC
    """

    run: str
    state: State
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    error: str | None = None
    updated: str = ""

    @property
    def percent(self) -> float:
        """How much of the training is done, 0 to 100."""
        return 100.0 if self.state == "done" else 100 * self.step / max(self.steps, 1)


def status_url(root: str, run: str) -> str:
    """Where the status of a run is."""
    return storage.join(root, "runs", run, "status.json")


def write_status(root: str, run: str, status: RunStatus) -> None:
    """Replace the status of a run, dated now. Readers see the old one or the new one."""
    storage.write_json(status_url(root, run), asdict(replace(status, updated=time_text(now()))))


def read_status(root: str, run: str) -> RunStatus | None:
    """The status of a run; None where none was written."""
    url = status_url(root, run)
    try:
        return RunStatus(**storage.read_json(url))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise SquallError(
            "the status of a run does not read",
            found=f"{storage.display(url)}: {error}",
            expected="JSON as this version of Squall writes it",
            remedy="read it with the version that runs the training",
        ) from error


def reported(root: str, run: str, train: Callable[[], str]) -> str:
    """Train, with a status that says when the run starts and how it ends; the model's id.

    What `train` writes in between (training, scoring, and how far) is kept in the last one.
    """
    write_status(root, run, RunStatus(run, "starting"))
    try:
        model = train()
    except BaseException as error:
        reason = str(error) if isinstance(error, SquallError) else repr(error)
        reason = reason if isinstance(error, Exception) else "stopped"
        _change(root, run, state="failed", error=reason)
        raise
    _change(root, run, state="done", model=model)
    return model


def mark(root: str, run: str, state: State) -> None:
    """Only the state is another one."""
    _change(root, run, state=state)


def mark_stopped(root: str, run: str) -> None:
    """Say that a run was stopped, where it ended without saying so itself."""
    status = read_status(root, run)
    if status is not None and status.state not in ("done", "failed"):
        _change(root, run, state="failed", error="stopped")


def _change(root: str, run: str, **changes: object) -> None:
    last = read_status(root, run) or RunStatus(run, "starting")
    write_status(root, run, replace(last, **changes))  # type: ignore[arg-type]
