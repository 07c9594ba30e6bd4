"""Ray Train around `models.learner`: workers, checkpoints, resume, metrics, progress.

`fit` starts the workers and returns the trained weights; `train_loop` is what each of them runs.
The same code trains on one laptop and on a cluster; only `ray_address`, `workers` and `gpu` differ.
"""

import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import checkpoints
from models.data import TrainingData, steps_per_epoch
from models.learner import Learner, learning_rate
from models.training import TrainSettings
from models.validation import metrics, validate
from pipelines import storage
from pipelines.errors import NotFoundError, SquallError
from pipelines.scores import THRESHOLDS_MM_H
from pipelines.workers import keeping_memory

SHOWN_EVERY = 10
"""Steps from one loss shown to the next: to show one, the device is waited for."""
FREE = {
    "checkpoint",
    "early_stopping",
    "epochs",
    "gpu",
    "least_workers",
    "loaders",
    "max_failures",
    "model",
    "ray_address",
    "run",
    "workers",
}
"""Settings with which a run may go on that was begun with others."""

log = logging.getLogger(__name__)

Metrics = dict[str, float]
Hook = Callable[[int], None]


@dataclass(frozen=True)
class Trained:
    """What a run gives: weights by parameter name, their epoch's metrics, and every epoch's."""

    weights: dict[str, Tensor]
    metrics: Metrics
    history: list[Metrics]


@dataclass(frozen=True)
class Message:
    """What the first worker tells the process that started the run.

    `metrics` are of a step, or, where `epoch_ends`, of the whole epoch.
    """

    step: int
    metrics: Metrics
    epoch_ends: bool = False


def _prepare_environment(address: str | None) -> None:
    """What Ray reads once, when it is first imported.

    Ray listens on every interface, so a local cluster gets a token made for it alone. A cluster
    that is named brings its own; an environment that says something else is left as it is.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def ray_cluster(address: str | None, workers: int) -> Iterator[None]:
    """A Ray cluster to train on: the one named, the one of RAY_ADDRESS, or a local one.

    A local one lives as long as this block; one that this process is connected to already stays.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    _prepare_environment(address)
    import ray

    if ray.is_initialized():
        yield
        return
    local = {
        "num_cpus": max(workers, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": 200 * 2**20,
    }
    with keeping_memory():
        ray.init(
            address=address or "local",
            logging_level="ERROR",
            log_to_driver=False,
            **({} if address else local),
        )
    try:
        yield
    finally:
        ray.shutdown()


def fit(
    data: TrainingData,
    settings: TrainSettings,
    *,
    storage_url: str,
    run_name: str,
    weights: dict[str, Tensor] | None = None,
    on_message: Callable[[Message], None] | None = None,
    after_step: Hook | None = None,
) -> Trained:
    """Train with Ray Train and return the weights of the best epoch, the last one if none is known.

    Checkpoints go to `storage_url`/`run_name`/checkpoints; a run of that name that is there already
    is continued from its newest one. A worker that dies is replaced, `max_failures` times.

    Parameters
    ----------
    weights : what to begin with
    on_message : is called in this process with what the first worker tells, from a thread
    after_step : is called in every worker with the number of steps made

    Raises `SquallError` where the run was begun with other settings, or diverged.
    """
    place = checkpoints.folder(storage_url, run_name)
    _check_resumes(place, data, settings)
    with ray_cluster(settings.ray_address, settings.workers):
        from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

        workers = (settings.least_workers or settings.workers, settings.workers)
        with _messages(on_message) as queue:
            try:
                TorchTrainer(
                    train_loop,
                    train_loop_config={
                        "settings": settings.model_dump(mode="json"),
                        "data": data,
                        "place": place,
                        "weights": weights,
                        "messages": queue,
                        "after_step": after_step,
                    },
                    scaling_config=ScalingConfig(
                        num_workers=workers if workers[0] < workers[1] else workers[1],
                        use_gpu=settings.gpu,
                    ),
                    torch_config=TorchConfig(backend="nccl" if settings.gpu else "gloo"),
                    run_config=RunConfig(
                        name="ray",
                        failure_config=FailureConfig(max_failures=settings.max_failures),
                        **_ray_storage(storage.join(storage_url, run_name)),
                    ),
                ).fit()
            except WorkerGroupError as error:
                raise _cause(error) from error
    return _outcome(place)


def _cause(error: Any) -> Exception:
    """The `SquallError` of a worker, if there is one, without what Ray wraps it in."""
    for failure in error.worker_failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, SquallError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return error


def _ray_storage(url: str) -> dict[str, Any]:
    """An fsspec URL as Ray Train takes it: a path without a scheme, and its file system."""
    path = storage.local_path(url)
    if path is not None:
        return {"storage_path": str(path)}
    import pyarrow.fs

    fs, remote = storage.filesystem(url)
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return {"storage_path": remote, "storage_filesystem": filesystem}


def _identity(data: TrainingData, settings: TrainSettings) -> dict[str, Any]:
    """What a run has to be continued with."""
    return settings.model_dump(mode="json", exclude=FREE) | {"in_channels": data.in_channels}


def _check_resumes(place: str, data: TrainingData, settings: TrainSettings) -> None:
    """Whether a run of that name, if there is one, is this run."""
    resumed = checkpoints.newest(place)
    if resumed is None:
        return
    state = resumed[1]
    wanted, begun = _identity(data, settings), state["identity"]
    other = [name for name in wanted if wanted[name] != begun.get(name)]
    if other:
        name = other[0]
        raise SquallError(
            "a run of that name was begun with other settings",
            found=f"train.{name} {wanted[name]}",
            expected=str(begun.get(name)),
            remedy="name another run (train.run), or go on with the settings that it began with",
        )
    if state["data_version"] != data.version:
        log.warning("the archive has changed since the run began: it goes on with what is there")


def _outcome(place: str) -> Trained:
    """The best epoch of a run that has ended, of those whose checkpoints were kept."""
    last = checkpoints.newest(place)
    if last is None:
        raise NotFoundError(
            "the run left no checkpoint",
            found=f"none in {storage.display(place)}",
            expected="one of its last step",
            remedy="see whether the storage can be written, and run it again",
        )
    state = last[1]
    history: list[Metrics] = state["history"]
    kept = {checkpoint.step: checkpoint for checkpoint in checkpoints.found(place)}
    best = _best(history, kept)
    if best is not None and best["step"] != last[0].step:
        state = checkpoints.read(place, kept[int(best["step"])])
    return Trained(Learner.weights_of(state), best or history[-1], history)


def _best(history: list[Metrics], kept: Any = None) -> Metrics | None:
    """The epoch with the lowest validation loss; None where nothing was validated."""
    known = [
        epoch
        for epoch in history
        if "validation_loss" in epoch and (kept is None or int(epoch["step"]) in kept)
    ]
    return min(known, key=lambda epoch: epoch["validation_loss"], default=None)


def _stops(history: list[Metrics], patience: int | None) -> bool:
    """Whether so many epochs have gone by without a better one."""
    best = _best(history)
    if patience is None or best is None:
        return False
    return history[-1]["epoch"] - best["epoch"] >= patience


def train_loop(config: dict[str, Any]) -> None:
    """One worker: go on from the newest checkpoint, train the steps that are left."""
    import ray.train
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # sizes never change
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32; bf16 is the fast way
    context = ray.train.get_context()
    WorkerLoop(config, context.get_world_rank(), context.get_world_size(), device).run()


class WorkerLoop:
    """What one worker does, from a checkpoint to the end. All workers do the same at once."""

    def __init__(
        self, config: dict[str, Any], rank: int, world_size: int, device: torch.device
    ) -> None:
        self.settings = settings = TrainSettings.model_validate(config["settings"])
        self.data: TrainingData = config["data"]
        self.rank, self.world_size, self.device = rank, world_size, device
        self.after_step: Hook | None = config["after_step"]
        self.messages = config["messages"] if rank == 0 else None
        self.steps_per_epoch = steps_per_epoch(self.data)
        torch.manual_seed(settings.seed)
        network = settings.build_network(self.data.in_channels)
        if config["weights"] is not None:
            network.load_state_dict(config["weights"])
        self.learner = Learner(settings, network.to(device), world_size)
        self.history: list[Metrics] = []
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Of the epoch so far: this worker's part of the losses, and of gradients' norms."""
        self.writer = checkpoints.Writer(
            config["place"], settings.checkpoint.keep, settings.checkpoint.patience.total_seconds()
        )
        self.begin = self._resume()

    def _resume(self) -> int:
        """Take over the newest checkpoint, if there is one; the number of steps made."""
        from ray.train.collective import broadcast_from_rank_zero

        resumed = checkpoints.newest(self.writer.place) if self.rank == 0 else None
        chosen = broadcast_from_rank_zero(resumed[0] if resumed else None)
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
        if len(steps) == 0 or _stops(self.history, self.settings.early_stopping):
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
            if done % SHOWN_EVERY == 0 and self.messages is not None:
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
            if _stops(self.history, self.settings.early_stopping):
                break
        batches.close()  # type: ignore[attr-defined]  # and with it its loaders
        self.writer.finish()

    def _end_epoch(self, step: int, rate: float, clock: "Clock") -> None:
        """Validate, keep, report."""
        import ray.train

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
            self.settings.build_loss(),
            THRESHOLDS_MM_H,
            autocast=self.settings.autocast,
        )
        if self.world_size > 1:
            sums = self._sums_together(sums)
        of_epoch |= metrics(sums, THRESHOLDS_MM_H)
        self.history = [*self.history, of_epoch]
        self.sums.zero_()
        self._keep(step)
        self._tell(Message(step, of_epoch, epoch_ends=True))
        ray.train.report(of_epoch)

    def _keep(self, step: int) -> None:
        """A checkpoint, by the first worker."""
        sums = self._together(self.sums)
        self._check_finite(float(sums[0]))
        if self.rank != 0:
            return
        best = _best(self.history)
        state = {
            "step": step,
            "history": self.history,
            "sums": sums.cpu(),
            "identity": _identity(self.data, self.settings),
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
        if self.messages is not None:
            try:
                self.messages.put_nowait(message)
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


@contextlib.contextmanager
def _messages(on_message: Callable[[Message], None] | None) -> Iterator[Any]:
    """A queue whose messages are handed on by a thread of this process."""
    if on_message is None:
        yield None
        return
    import threading

    from ray.util.queue import Queue

    queue = Queue()

    def follow() -> None:
        while (message := queue.get()) is not None:
            on_message(message)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield queue
    finally:
        queue.put(None)
        follower.join(timeout=30)
        queue.shutdown()
