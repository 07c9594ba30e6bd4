"""What a worker of a training run does, whoever started it: alone, or one of many.

From the newest checkpoint on: steps, validation after every epoch, checkpoints. Ray Train starts
workers in `models.ray_training`.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models import checkpoints
from models.data import CPU, TrainingData, steps_per_epoch
from models.learner import Learner, learning_rate
from models.runs import Metrics, best_epoch, identity, stops
from models.training import TrainSettings
from models.validation import forecast_mm_h, metrics, metrics_by_lead, validate
from pipelines.errors import SquallError
from pipelines.pictures import sequence_picture
from pipelines.scores import THRESHOLDS_MM_H

SHOWN_EVERY = 10
"""Steps from one loss shown to the next: to show one, the device is waited for."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """What the first worker tells the process that started the run.

    `metrics` are of a step, or, where `epoch_ends`, of the whole epoch; then there are `details`,
    and may be `pictures` (PNG), by name.
    """

    step: int
    metrics: Metrics
    epoch_ends: bool = False
    details: Metrics = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


class Worker:
    """What one worker does, from the newest checkpoint to the end. All do the same at once.

    Parameters
    ----------
    place : where the run's checkpoints are
    rank, world_size : of this worker; with more than one, `torch.distributed` is set up
    weights : what to begin with
    tell : is given what there is to show; the first worker's is enough
    report : is given every epoch's metrics
    after_step : is called with the number of steps made
    """

    def __init__(
        self,
        settings: TrainSettings,
        data: TrainingData,
        place: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = CPU,
        weights: dict[str, Tensor] | None = None,
        tell: Callable[[Message], None] | None = None,
        report: Callable[[Metrics], None] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.settings, self.data = settings, data
        self.rank, self.world_size, self.device = rank, world_size, device
        self.tell, self.report, self.after_step = tell, report, after_step
        self.steps_per_epoch = steps_per_epoch(data)
        self.learner = Learner.start(
            settings, data, device=device, world_size=world_size, weights=weights
        )
        self.history: list[Metrics] = []
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Of the epoch so far: this worker's part of the losses, and of gradients' norms."""
        self.writer = checkpoints.Writer(
            place, settings.checkpoint.keep, settings.checkpoint.patience.total_seconds()
        )
        self.begin = self._resume()

    def _resume(self) -> int:
        """Take over the newest checkpoint, if there is one; the number of steps made."""
        resumed = checkpoints.newest(self.writer.place) if self.rank == 0 else None
        told = [resumed[0] if resumed else None]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(told, device=self.device)
        (chosen,) = told
        if chosen is None:
            return 0
        state = resumed[1] if resumed else checkpoints.read(self.writer.place, chosen)
        self.learner.load_state_dict(state)
        self.history = state["history"]
        if self.rank == 0:
            self.sums += state["sums"].to(self.device)
        log.info("going on from step %d", state["step"])
        return int(state["step"])

    def run(self) -> None:
        """Train until all epochs are done or nothing gets better."""
        steps = range(self.begin, self.settings.epochs * self.steps_per_epoch)
        if len(steps) == 0 or stops(self.history, self.settings.early_stopping):
            return
        batches = self.data.training(steps, self.rank, self.world_size, self.device)
        clock = Clock()
        for step in steps:
            with clock.waiting():
                batch = next(batches)
            rate = learning_rate(self.settings, step / steps.stop)
            made = self.learner.step(batch, rate)
            self.sums += torch.stack([made.loss, made.gradient_norm / self.world_size])
            clock.samples += self.data.batch_size
            done = step + 1
            if done % SHOWN_EVERY == 0 and self.tell is not None:
                loss, norm = float(made.loss) * self.world_size, float(made.gradient_norm)
                self._tell(
                    Message(done, {"loss": loss, "learning_rate": rate, "gradient_norm": norm})
                )
            if done % self.steps_per_epoch == 0:
                self._end_epoch(done, rate, clock)
                clock = Clock()
            elif done % (self.settings.checkpoint.every_steps or self.steps_per_epoch) == 0:
                self._keep(done)
            if self.after_step is not None:
                self.after_step(done)
            if stops(self.history, self.settings.early_stopping):
                break
        batches.close()  # type: ignore[attr-defined]  # and with it its loaders
        self.writer.finish()

    def _end_epoch(self, step: int, rate: float, clock: "Clock") -> None:
        """Validate, keep, report."""
        loss, norm = self._together(self.sums).tolist()
        of_epoch: Metrics = {
            "epoch": float(len(self.history)),
            "step": float(step),
            "loss": loss / self.steps_per_epoch,
            "gradient_norm": norm / self.steps_per_epoch,
            "learning_rate": rate,
            **clock.metrics(),
        }
        if self.device.type == "cuda":
            of_epoch["gpu_memory_mb"] = torch.cuda.max_memory_allocated(self.device) / 1e6
        self._check_finite(loss)
        sums = validate(
            self.learner.best_network,
            self.data.validation(self.rank, self.world_size, self.device),
            self.learner.loss,
            THRESHOLDS_MM_H,
            autocast=self.settings.autocast,
        )
        if self.world_size > 1:
            sums = self._sums_together(sums)
        of_epoch |= metrics(sums, THRESHOLDS_MM_H)
        self.history = [*self.history, of_epoch]
        self.sums.zero_()
        self._keep(step)
        if self.tell is not None:
            details = metrics_by_lead(sums, THRESHOLDS_MM_H, self.data.leads)
            self._tell(Message(step, of_epoch, True, details, self._pictures()))
        if self.report is not None:
            self.report(of_epoch)

    def _pictures(self) -> dict[str, bytes]:
        """The first validation samples with their forecasts, every few epochs."""
        settings = self.settings.tracking
        due = len(self.history) % settings.picture_epochs == 0
        if settings.pictures == 0 or not (due or len(self.history) in (1, self.settings.epochs)):
            return {}
        pictures: dict[str, bytes] = {}
        for batch in self.data.validation(0, 1, self.device):
            for sample in batch.split(len(batch.past)):
                if len(pictures) == settings.pictures:
                    return pictures
                forecast = forecast_mm_h(self.learner.best_network, sample, self.learner.loss)
                observed = self.learner.loss.normalisation.decode(sample.future)
                observed = observed.where(sample.observed, torch.nan)
                pictures[f"forecast_{len(pictures) + 1}"] = sequence_picture(
                    forecast[0, :, 0].cpu().numpy(),
                    observed[0, :, 0].cpu().numpy(),
                    self.data.leads,
                    f"validation sample {len(pictures) + 1}, epoch {len(self.history)}",
                )
        return pictures

    def _keep(self, step: int) -> None:
        """A checkpoint, by the first worker."""
        sums = self._together(self.sums)
        self._check_finite(float(sums[0]))
        if self.rank != 0:
            return
        best = best_epoch(self.history)
        state = {
            "step": step,
            "history": self.history,
            "sums": sums.cpu(),
            "identity": identity(self.data, self.settings),
            "settings": self.settings.model_dump(mode="json"),
            "data_version": self.data.version,
            **self.learner.state_dict(),
        }
        self.writer.add(step, state, int(best["step"]) if best else None)

    def _together(self, sums: Tensor) -> Tensor:
        """The sum over workers."""
        total = sums.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total

    def _sums_together(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of all workers; one without samples adds nothing."""
        everyones: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everyones, {k: v.cpu() for k, v in sums.items()})
        some = [of_one for of_one in everyones if of_one]
        return {name: sum(of_one[name] for of_one in some) for name in some[0]} if some else {}

    def _check_finite(self, loss: float) -> None:
        if loss - loss != 0:
            raise SquallError(
                "training diverged",
                found=f"a loss of {loss} in epoch {len(self.history)}",
                expected="a number",
                remedy="lower train.learning_rate or train.gradient_clip, or let it warm up; the "
                "checkpoints from before are kept",
            )

    def _tell(self, message: Message) -> None:
        """Nobody has to listen: what cannot be told is no reason to stop."""
        if self.tell is not None:
            try:
                self.tell(message)
            except Exception as error:
                log.warning("not told: %s", error)


class Clock:
    """How long an epoch takes, and how much of it is waiting for batches."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.waited, self.samples = 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done in this block is waiting."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def metrics(self) -> Metrics:
        """Samples of all workers a second, and the share of the time that was waited."""
        taken = time.perf_counter() - self.begun
        return {"samples_per_second": self.samples / taken, "data_wait": self.waited / taken}
