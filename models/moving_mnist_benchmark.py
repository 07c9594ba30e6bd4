"""Train on Moving MNIST, test on its fixed test set, and say how good it is beside persistence.

Scores have the benchmark's form (OpenSTL, Tan et al. 2023): squared and absolute errors summed over
a frame's pixels, forecasts clipped to [0, 1], SSIM of each frame, all averaged over frames.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from models import registry
from models.data import Batch
from models.following import following
from models.losses.structure import ssim
from models.moving_mnist import PAST, MovingMNISTData
from models.ray_training import fit
from models.training import TrainSettings
from pipelines import storage
from pipelines.progress import bar
from pipelines.times import now

NAME = "moving-mnist"
SCORES = ("MSE", "MAE", "SSIM")

Predict = Callable[[Batch], Float[Tensor, "B L 1 H W"]]
Scores = dict[str, list[float]]
"""Each score at each lead time, one after the other."""


@dataclass(frozen=True)
class BenchmarkResult:
    """A trained network's scores beside persistence's, and one sequence with its forecast.

    Attributes
    ----------
    scores : by forecaster
    example : past, future and forecast frames, (time, y, x) in [0, 1]
    """

    model_id: str
    sequences: int
    scores: dict[str, Scores]
    example: dict[str, Tensor]


def run(
    root: str,
    folder: str,
    settings: TrainSettings,
    test_sequences: int,
    *,
    progress: bool = False,
) -> BenchmarkResult:
    """Train, register the model (it is no radar product's champion), test.

    Raises `NotFoundError` or `SquallError` where `folder` does not hold MNIST.
    """
    folder = storage.normalise(folder)
    size = settings.samples_per_epoch, settings.batch_size, settings.seed
    data = MovingMNISTData(folder, *size)
    next(data.test(1)), next(data.validation(0, 1))  # both files are there, before Ray starts
    run_name = settings.run or f"{NAME}-{now():%Y%m%dT%H%M%SZ}"
    facts = {"archive": {"url": folder}}
    with following(root, run_name, NAME, data, settings, facts, progress=progress) as on_message:
        trained = fit(
            data,
            settings,
            storage_url=storage.join(root, "runs"),
            run_name=run_name,
            on_message=on_message,
        )
    version = registry.save_model(
        root,
        NAME,
        trained.weights,
        settings,
        past_frames=PAST,
        timestep=registry.NO_TIMESTEP,
        archive={"url": folder, "sequences": settings.samples_per_epoch * settings.epochs},
        metrics=trained.metrics,
        in_channels=data.in_channels,
        history=trained.history,
    )
    model, loss = registry.load_model(root, NAME, version), settings.build_loss()

    def network(batch: Batch) -> Tensor:
        return loss.to_rain(model.network(batch.past, batch.future.shape[1]))

    forecasters: dict[str, Predict] = {model.id: network, "persistence": persistence}
    with bar(test_sequences, "test", "sequence", shown=progress) as shown:
        scores = scores_of(forecasters, data.test(test_sequences), shown)
    (example,) = MovingMNISTData(folder, 1, 1, 0).test(1)
    with torch.no_grad():
        forecast = network(example).clamp(0, 1)
    frames = {"past": example.past, "future": example.future, "forecast": forecast}
    return BenchmarkResult(
        model.id, test_sequences, scores, {name: f[0, :, 0] for name, f in frames.items()}
    )


def persistence(batch: Batch) -> Float[Tensor, "B L 1 H W"]:
    """The newest past frame at every lead time."""
    return batch.past[:, -1:].expand_as(batch.future)


@torch.no_grad()
def scores_of(
    forecasters: Mapping[str, Predict], batches: Iterable[Batch], progress: tqdm
) -> dict[str, Scores]:
    """Scores by forecaster, at each lead time; sums first, divided last."""
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        count += len(batch.future)
        for name, predict in forecasters.items():
            forecast = predict(batch).clamp(0, 1)
            error = (forecast - batch.future).double()
            of_batch = torch.stack(
                [
                    error.square().sum((0, 2, 3, 4)),
                    error.abs().sum((0, 2, 3, 4)),
                    ssim(forecast, batch.future, batch.observed).double().sum(0),
                ]
            )
            sums[name] = sums.get(name, torch.zeros_like(of_batch)) + of_batch
        progress.update(len(batch.future))
    return {
        name: dict(zip(SCORES, (total / count).tolist(), strict=True))
        for name, total in sums.items()
    }
