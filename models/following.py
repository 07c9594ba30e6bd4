"""What follows a run in the process that started it: a bar, its status, its tracker."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.code_version import code_version
from models.data import TrainingData, steps_per_epoch
from models.run_status import RunStatus, write_status
from models.tracking import open_tracker
from models.training import TrainSettings
from models.worker import Message
from pipelines.progress import bar

STATUS_EVERY_S = 2.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def following(
    root: str,
    run: str,
    experiment: str,
    data: TrainingData,
    settings: TrainSettings,
    facts: Mapping[str, Any],
    *,
    progress: bool = False,
) -> Iterator[Callable[[Message], None]]:
    """What a run's messages are to be given to.

    Parameters
    ----------
    experiment : what runs of the same kind are gathered under
    facts : what the tracker is told beside settings and code, such as the archive
    """
    steps = settings.epochs * steps_per_epoch(data)
    tracking = settings.tracking
    tracker = open_tracker(tracking.kind, tracking.url, root, experiment, run)
    tracker.settings({"train": settings.model_dump(mode="json"), "code": code_version(), **facts})
    status = RunStatus(run, "training", steps=steps, epochs=settings.epochs)
    told = 0.0
    with bar(steps, "train", "step", shown=progress) as shown:

        def follow(message: Message) -> None:
            nonlocal told
            shown.set_postfix(loss=f"{message.metrics['loss']:.4f}", refresh=False)
            shown.update(max(0, message.step - shown.n))
            tracker.metrics(message.step, message.metrics | message.details)
            for name, png in message.pictures.items():
                tracker.picture(message.step, name, png)
            if message.epoch_ends or time.monotonic() - told > STATUS_EVERY_S:
                told = time.monotonic()
                epoch = message.step // steps_per_epoch(data)
                write_status(root, run, _at(status, message, epoch))

        failed = True
        try:
            yield follow
            failed = False
        finally:
            tracker.end(failed=failed)


def _at(status: RunStatus, message: Message, epoch: int) -> RunStatus:
    return RunStatus(
        status.run,
        "training",
        message.step,
        status.steps,
        epoch,
        status.epochs,
        {name: value for name, value in message.metrics.items() if name not in ("epoch", "step")},
    )
