"""Ray Train around `models.learner`: workers, checkpoints, resume, metrics, progress.

`fit` starts the workers and returns the trained weights; `train_loop` is what each of them runs.
The same code trains on one laptop and on a cluster; only `ray_address`, `workers` and `gpu` differ.
"""

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from models import checkpoints, runs
from models.data import TrainingData
from models.training import TrainSettings
from models.worker import Message, Worker
from pipelines import storage
from pipelines.errors import SquallError
from pipelines.workers import keeping_memory

log = logging.getLogger(__name__)


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
    after_step: Callable[[int], None] | None = None,
) -> runs.Trained:
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
    runs.check_resumes(place, data, settings)
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
                        **ray_storage(storage.join(storage_url, run_name)),
                    ),
                ).fit()
            except WorkerGroupError as error:
                raise _cause(error) from error
    return runs.outcome(place)


def _cause(error: Any) -> Exception:
    """The `SquallError` of a worker, if there is one, without what Ray wraps it in."""
    for failure in error.worker_failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, SquallError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return error


def ray_storage(url: str) -> dict[str, Any]:
    """An fsspec URL as Ray Train takes it: a path without a scheme, and its file system."""
    path = storage.local_path(url)
    if path is not None:
        return {"storage_path": str(path)}
    import pyarrow.fs

    fs, remote = storage.filesystem(url)
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return {"storage_path": remote, "storage_filesystem": filesystem}


def train_loop(config: dict[str, Any]) -> None:
    """One worker of Ray Train's."""
    import ray.train
    from ray.train.torch import get_device

    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # sizes never change
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32; bf16 is the fast way
    context = ray.train.get_context()
    rank, queue = context.get_world_rank(), config["messages"]
    Worker(
        TrainSettings.model_validate(config["settings"]),
        config["data"],
        config["place"],
        rank=rank,
        world_size=context.get_world_size(),
        device=device,
        weights=config["weights"],
        tell=queue.put_nowait if queue is not None and rank == 0 else None,
        report=ray.train.report,
        after_step=config["after_step"],
    ).run()


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
            try:
                on_message(message)
            except Exception as error:  # a storage that refuses a status, say: the next one may do
                log.warning("not shown: %s", error)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield queue
    finally:
        queue.put(None)
        follower.join(timeout=30)
        queue.shutdown()
