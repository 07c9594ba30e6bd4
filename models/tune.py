"""Hyper-parameters: many short trials with Ray Tune, the worse half stopped early, a table.

Trials draw settings from a space at random and are stopped by ASHA (Li et al. 2020, algorithm 2,
η = 2): at `grace_epochs`, and at every doubling of them, a trial goes on that is among the better
half of those that came so far. What is drawn follows from the seed; who is stopped depends also on
who comes first, so only trials one at a time are the same every time.

All are measured by one loss on the same validation samples, whichever they learn by: losses have
different scales and are not to be compared.
"""

import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from tqdm import tqdm

from models.data import ArchiveData
from models.losses import get_loss
from models.normalisation import RainNormalisation
from models.ray_training import ray_cluster, ray_storage
from models.tracking import flat
from models.training import CheckpointSettings, TrackingSettings, TrainSettings
from models.trial import archive_data, trial, trial_settings
from pipelines import storage
from pipelines.errors import SquallError, UnknownNameError
from pipelines.progress import bar
from pipelines.section import Section
from pipelines.times import now

MEASURE = "validation_loss"
REDUCTION = 2
"""One in so many goes on at a rung: η."""
GIVEN = {
    *("start", "end", "past", "future", "crop", "normalisation", "samples_per_epoch"),
    *("validation_fraction", "validation_samples", "test_fraction", "split_seed"),
    *("model", "run", "epochs", "early_stopping", "fine_tune", "baselines", "score_events"),
    *("workers", "least_workers", "loaders", "gpu", "max_failures", "ray_address"),
    *(f"checkpoint.{name}" for name in CheckpointSettings.model_fields),
    *(f"tracking.{name}" for name in TrackingSettings.model_fields),
}
"""What a space cannot vary: the task is one for all, and trials have a way of their own to run."""

Space = dict[str, dict[str, list[Any]]]
DEFAULT_SPACE: Space = {
    "learning_rate": {"loguniform": [3e-4, 1e-2]},
    "network.hidden_channels": {"choice": [[32, 32], [64, 64], [64, 64, 64]]},
    "loss": {"choice": ["mse", "b-mse", "b-mse+b-mae"]},
}


class TuneSettings(Section):
    """Which settings of training are tried, and for how long."""

    samples: int = Field(16, ge=1, description="Trials: settings drawn from the space.")
    max_epochs: int = Field(8, ge=1, description="Epochs of a trial that is not stopped.")
    grace_epochs: int = Field(2, ge=1, description="Epochs that every trial gets.")
    seed: int = Field(0, ge=0, description="What is drawn follows from it.")
    measure: str = Field(
        "b-mse+b-mae", description="Loss by which trials are compared, as in Shi et al. 2017."
    )
    space: Space = Field(
        DEFAULT_SPACE,
        description="Settings of section train, each with one of choice (a list), uniform, "
        "loguniform or integers (lowest and highest).",
    )

    @field_validator("measure")
    @classmethod
    def _measures_single_forecasts(cls, measure: str) -> str:
        if get_loss(measure).of_ensemble:
            raise ValueError("a loss of single forecasts, such as mse")
        return measure

    @field_validator("space")
    @classmethod
    def _can_be_drawn(cls, space: Space) -> Space:
        known = {*flat(TrainSettings().model_dump())} - GIVEN
        for key, drawn in space.items():
            if key not in known and not key.startswith("network.options."):
                raise UnknownNameError.of("setting to tune", key, known)
            if not _is_distribution(drawn):
                raise SquallError(
                    f"{key} cannot be drawn",
                    found=json.dumps(drawn),
                    expected="one of choice (a list), uniform, loguniform, integers (two numbers)",
                    remedy='write it as in {"learning_rate": {"loguniform": [0.0003, 0.01]}}',
                )
        return space

    @model_validator(mode="after")
    def _grace_comes_first(self) -> "TuneSettings":
        if self.grace_epochs > self.max_epochs:
            raise ValueError("grace_epochs must be at most max_epochs")
        return self


def _is_distribution(drawn: Mapping[str, list[Any]]) -> bool:
    if len(drawn) != 1:
        return False
    ((kind, values),) = drawn.items()
    if kind == "choice":
        return bool(values)
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        return False
    low, high = values
    fits = {
        "uniform": True,
        "loguniform": low > 0,
        "integers": isinstance(low, int) and isinstance(high, int),
    }
    return low < high and fits.get(kind, False)


@dataclass(frozen=True)
class Row:
    """A trial.

    Attributes
    ----------
    chosen : what it drew, by setting of section train
    loss, validation_loss : of its last epoch, by its own loss and by the measure
    state : finished, stopped early, or failed for a `reason`
    """

    trial: int
    chosen: dict[str, Any]
    state: Literal["finished", "stopped", "failed"]
    epochs: int
    loss: float | None
    validation_loss: float | None
    seconds: float
    reason: str = ""

    def arguments(self) -> str:
        """What it drew, for the command line of `squall train`."""
        texts = (f"train.{key}={plain(value)}" for key, value in self.chosen.items())
        return " ".join(f"--set {shlex.quote(text)}" for text in texts)


def plain(value: Any) -> str:
    """A setting as --set takes it: JSON, and texts as they are."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True)
class Tuned:
    """All trials, the best first and the failed last.

    Attributes
    ----------
    measure : the loss by which they are compared
    persistence : persistence's, on the same samples; None where no trial came that far
    """

    run: str
    measure: str
    persistence: float | None
    rows: list[Row]

    @property
    def best(self) -> Row | None:
        """The trial of the lowest validation loss; None where all failed."""
        return next((row for row in self.rows if row.validation_loss is not None), None)


def tune(
    root: str,
    name: str,
    archive_url: str,
    settings: TrainSettings,
    tuning: TuneSettings,
    *,
    progress: bool = False,
) -> tuple[Tuned, str]:
    """Try the space around `settings`; the trials, and where they lie as JSON.

    Each trial is a process with one CPU, and one GPU with `train.gpu`; as many run at once as the
    cluster has. One that fails is a row with its reason. Ray's own logs, with every epoch of every
    trial for TensorBoard, lie under `root`/runs.

    Raises `SquallError` where the archive has nothing to learn from or to validate with.
    """
    data = archive_data(archive_url, settings)
    run = f"{name}-tune-{now():%Y%m%dT%H%M%SZ}"
    with (
        ray_cluster(settings.ray_address, 1),
        bar(tuning.samples, "tune", "trial", shown=progress) as shown,
    ):
        results = _tuner(root, run, data, settings, tuning, shown).fit()
        rows = [_row(number, result, tuning) for number, result in enumerate(results)]
        persistences = [_metrics(result).get("validation_persistence") for result in results]
    rows.sort(key=lambda row: math.inf if row.validation_loss is None else row.validation_loss)
    tuned = Tuned(run, tuning.measure, next(filter(None, persistences), None), rows)
    url = storage.join(root, "tune", f"{run}.json")
    storage.write_json(url, asdict(tuned))
    return tuned, url


def _tuner(
    root: str,
    run: str,
    data: ArchiveData,
    settings: TrainSettings,
    tuning: TuneSettings,
    shown: tqdm,
) -> Any:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints, whatever `verbose` says
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    class Progress(ray_tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            shown.update()

        on_trial_error = on_trial_complete

        def __reduce__(self) -> tuple[Any, ...]:  # Ray keeps a copy, which needs no bar
            return ray_tune.Callback, ()

    def domain(kind: str, values: list[Any]) -> Any:
        if kind == "choice":
            return ray_tune.choice(values)
        if kind == "integers":
            return ray_tune.randint(values[0], values[1] + 1)
        return getattr(ray_tune, kind)(*values)

    given = {"settings": settings.model_dump(mode="json"), "tuning": tuning.model_dump()}
    return ray_tune.Tuner(
        ray_tune.with_resources(
            ray_tune.with_parameters(_run_trial, data=data, **given),
            {"cpu": 1, "gpu": int(settings.gpu)},
        ),
        param_space={
            key: domain(*next(iter(drawn.items()))) for key, drawn in tuning.space.items()
        },
        tune_config=ray_tune.TuneConfig(
            metric=MEASURE,
            mode="min",
            num_samples=tuning.samples,
            search_alg=BasicVariantGenerator(random_state=tuning.seed),
            scheduler=ASHAScheduler(
                time_attr="epochs",
                max_t=tuning.max_epochs,
                grace_period=tuning.grace_epochs,
                reduction_factor=REDUCTION,
            ),
            trial_dirname_creator=_folder,
        ),
        run_config=ray_tune.RunConfig(
            name=run,
            verbose=0,
            callbacks=[Progress()],
            **ray_storage(storage.join(root, "runs")),
        ),
    )


def _folder(ray_trial: Any) -> str:
    """Of Ray's logs of a trial: trial-00003."""
    return f"trial-{ray_trial.trial_id.rpartition('_')[2]}"


def _run_trial(
    chosen: dict[str, Any], *, settings: dict[str, Any], tuning: dict[str, Any], data: ArchiveData
) -> None:
    """A trial in its process. What fails is told, not raised, and after no new epoch, so
    that ASHA takes no notice of it.
    """
    from ray import tune as ray_tune

    base, tried = TrainSettings.model_validate(settings), TuneSettings.model_validate(tuning)
    measure = get_loss(tried.measure, RainNormalisation(base.normalisation))
    epochs = 0

    def report(epoch: int, metrics: dict[str, float]) -> None:
        nonlocal epochs
        epochs = epoch + 1
        ray_tune.report({**metrics, "epochs": epochs})

    try:
        trial(trial_settings(base, chosen, tried.max_epochs), data, measure, report)
    except Exception as error:
        ray_tune.report({MEASURE: math.nan, "epochs": epochs, "reason": _reason(error)})


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return str(error) if isinstance(error, SquallError) else f"{type(error).__name__}: {error}"


def _metrics(result: Any) -> dict[str, Any]:
    return result.metrics or {}


def _row(number: int, result: Any, tuning: TuneSettings) -> Row:
    metrics = _metrics(result)
    epochs = metrics.get("epochs", 0)
    reason = metrics.get("reason", "")
    if result.error and not reason:  # the process died
        reason = str(result.error).strip().splitlines()[-1]
    done = epochs == tuning.max_epochs
    return Row(
        number,
        result.config or {},
        "failed" if reason else "finished" if done else "stopped",
        epochs,
        None if reason else metrics.get("loss"),
        None if reason else metrics.get(MEASURE),
        metrics.get("time_total_s", 0.0),
        reason,
    )
