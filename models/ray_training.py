"""Ray Train around `models.training`: workers, checkpoints, resume, metrics, progress.

`fit` starts the workers and returns the trained weights; `train_loop` is what each of them runs.
The same code trains on one laptop and on a cluster; only `ray_address`, `workers` and `gpu` differ.
"""

import contextlib
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data import TrainingData, steps_per_epoch
from models.training import Learner, TrainSettings, evaluate
from pipelines import storage
from pipelines.progress import bar
from pipelines.workers import keeping_memory

CHECKPOINT = "learner.pt"
SHOWN_EVERY = 10
"""Steps from one loss shown to the next: to show one, the device is waited for."""

Metrics = dict[str, float]
EpochHook = Callable[[int], None]


@dataclass(frozen=True)
class Trained:
    """What a run gives: weights by parameter name, the last epoch's metrics, and every epoch's."""

    weights: dict[str, Tensor]
    metrics: Metrics
    history: list[Metrics]


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
    on_epoch_end: EpochHook | None = None,
    progress: bool = False,
) -> Trained:
    """Train with Ray Train and return the weights of the last epoch.

    Checkpoints go to `storage_url`/`run_name` after every epoch; a run of that name that is there
    already is continued from its newest one. A worker that dies is replaced, `max_failures` times.

    `on_epoch_end(epoch)` runs in every worker after an epoch is reported.
    """
    with ray_cluster(settings.ray_address, settings.workers):
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        with _progress_bar(data, settings, progress) as queue:
            result = TorchTrainer(
                train_loop,
                train_loop_config={
                    "settings": settings.model_dump(mode="json"),
                    "data": data,
                    "on_epoch_end": on_epoch_end,
                    "progress": queue,
                },
                scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=settings.gpu),
                torch_config=TorchConfig(backend="nccl" if settings.gpu else "gloo"),
                run_config=RunConfig(
                    name=run_name,
                    failure_config=FailureConfig(max_failures=settings.max_failures),
                    checkpoint_config=CheckpointConfig(num_to_keep=2),
                    **_ray_storage(storage_url),
                ),
            ).fit()
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / CHECKPOINT, weights_only=True, map_location="cpu")
    return Trained(state["network"], state["history"][-1], state["history"])


def _ray_storage(url: str) -> dict[str, Any]:
    """An fsspec URL as Ray Train takes it: a path without a scheme, and its file system."""
    path = storage.local_path(url)
    if path is not None:
        return {"storage_path": str(path)}
    import pyarrow.fs

    fs, remote = storage.filesystem(url)
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return {"storage_path": remote, "storage_filesystem": filesystem}


def train_loop(config: dict[str, Any]) -> None:
    """One worker: resume where a checkpoint says, train the epochs that are left, report each."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    settings = TrainSettings.model_validate(config["settings"])
    data: TrainingData = config["data"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # sizes never change
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32; bf16 is the fast way

    torch.manual_seed(settings.seed)
    network = settings.build_network(data.in_channels)
    steps = steps_per_epoch(data, world_size)
    history: list[Metrics] = []
    resumed = _newest_checkpoint()
    if resumed:
        network.load_state_dict(resumed["network"])
        history = resumed["history"]
    learner = Learner.start(settings, prepare_model(network))
    if resumed:
        learner.optimiser.load_state_dict(resumed["optimiser"])

    for epoch in range(len(history), settings.epochs):
        losses = []
        shown = {*range(0, steps, SHOWN_EVERY), steps}
        of_epoch = data.training(epoch, rank, world_size)
        for loss in learner.epoch(epoch, of_epoch, steps, device):
            losses.append(loss)
            if rank == 0 and config["progress"] is not None and len(losses) in shown:
                config["progress"].put_nowait((epoch * steps + len(losses), float(loss)))
        metrics = {"epoch": float(epoch), "loss": float(torch.stack(losses).mean())}
        validation = (batch.to(device) for batch in data.validation(rank, world_size))
        metrics |= evaluate(learner.network, validation, settings.build_loss())
        metrics = _mean_over_workers(metrics, world_size, device)
        history = [*history, metrics]
        state = {
            "network": network.state_dict(),
            "optimiser": learner.optimiser.state_dict(),
            "history": history,
        }
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                torch.save(state, Path(folder) / CHECKPOINT)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)
        if config["on_epoch_end"] is not None:
            config["on_epoch_end"](epoch)


def _newest_checkpoint() -> dict[str, Any] | None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder) / CHECKPOINT, weights_only=True, map_location="cpu"
        )
    return state


def _mean_over_workers(metrics: Metrics, world_size: int, device: torch.device) -> Metrics:
    if world_size == 1:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    return dict(zip(metrics, (values / world_size).tolist(), strict=True))


@contextlib.contextmanager
def _progress_bar(data: TrainingData, settings: TrainSettings, shown: bool) -> Iterator[Any]:
    """A queue for the first worker to put each step's loss into; a bar in this process shows it."""
    if not shown:
        yield None
        return
    from ray.util.queue import Queue

    queue = Queue()
    steps = settings.epochs * steps_per_epoch(data, settings.workers)

    def follow() -> None:
        with bar(steps, "train", "step", shown=True) as shown_bar:
            while (message := queue.get()) is not None:
                step, loss = message
                shown_bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                shown_bar.update(step - shown_bar.n)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield queue
    finally:
        queue.put(None)
        follower.join(timeout=10)
        queue.shutdown()
