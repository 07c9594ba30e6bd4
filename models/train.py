"""From archive to registered model: sequences, samples, Ray Train, registry."""

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from pydantic import ValidationError

from models import registry
from models.data import ArchiveData, TrainingData, steps_per_epoch
from models.ray_training import fit
from models.run_status import reported
from models.training import TrainSettings
from models.worker import Message
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.compact import best_for_training
from pipelines.errors import SquallError
from pipelines.progress import bar
from pipelines.samples import build_index, complete_init_times, describe
from pipelines.split import split
from pipelines.times import format_duration, now, time_text, utc

log = logging.getLogger(__name__)


def train_model(
    root: str, name: str, archive_url: str, settings: TrainSettings, *, progress: bool = False
) -> str:
    """Train on an archive, register the model, make it the champion; its id, name/version.

    Raises `SquallError` where the archive has no sequence to learn from.
    """
    archive = Archive(archive_url)
    parent = None
    if settings.fine_tune is not None:
        parent = registry.load_model(root, *settings.fine_tune.split("/", 1))
        settings = fine_tuned(settings, parent, archive)
    shape = settings.sequence_shape(archive)
    times = archive.usable_times(
        utc(settings.start) if settings.start else None,
        utc(settings.end) if settings.end else None,
    )
    init_times = complete_init_times(times, archive.timestep, shape)
    parts = split(
        init_times,
        archive.timestep,
        shape,
        settings.validation_fraction,
        settings.test_fraction,
        settings.split_seed,
    )
    training = build_index(archive, parts.training, shape)
    validation = build_index(archive, parts.validation, shape) if len(parts.validation) else None
    log.info("training: %s", describe(training, archive))
    data = ArchiveData(
        archive_url,
        training,
        validation,
        settings.samples_per_epoch,
        settings.batch_size,
        settings.seed,
        settings.normalisation,
        settings.augment,
        settings.validation_samples,
        settings.loaders,
    )
    with progress_bar(data, settings, progress) as on_message:
        trained = fit(
            data,
            settings,
            storage_url=storage.join(root, "runs"),
            run_name=settings.run or f"{name}-{now():%Y%m%dT%H%M%SZ}",
            weights=parent.network.state_dict() if parent else None,
            on_message=on_message,
        )
    version = registry.save_model(
        root,
        name,
        trained.weights,
        settings,
        past_frames=shape.past,
        timestep=archive.timestep,
        archive={
            "url": archive_url,
            "first_frame": time_text(times[0]),
            "last_frame": time_text(times[-1]),
            "frames": len(times),
            "training_samples": len(training),
        },
        metrics=trained.metrics,
        history=trained.history,
    )
    registry.promote(root, name, version)
    return f"{name}/{version}"


def fine_tuned(settings: TrainSettings, parent: registry.Model, archive: Archive) -> TrainSettings:
    """Settings with which the parent's weights can be trained further, on another archive.

    Raises `SquallError` where the frames are not spaced as the parent's, or a setting that was
    given would make another network or another scale.
    """
    if archive.timestep != parent.timestep:
        raise SquallError(
            f"model {parent.id} was trained on another timestep",
            found=format_duration(archive.timestep),
            expected=format_duration(parent.timestep),
            remedy="fine-tune a model of this timestep",
        )
    of_parent = parent.settings
    taken_over = {
        "network": of_parent.network,
        "normalisation": of_parent.normalisation,
        "past": parent.past_frames * parent.timestep.to_pytimedelta(),
    }
    for name, value in taken_over.items():
        given = getattr(settings, name)
        if name in settings.model_fields_set and given != value:
            raise _not_the_parents(parent, name, given, value)
    if settings.build_loss().of_logits != of_parent.build_loss().of_logits:
        raise _not_the_parents(parent, "loss", settings.loss, of_parent.loss)
    result = TrainSettings.model_validate(settings.model_dump(exclude_unset=True) | taken_over)
    if result.out_channels != of_parent.out_channels:
        raise _not_the_parents(parent, "members", result.out_channels, of_parent.out_channels)
    return result


def _not_the_parents(
    parent: registry.Model, name: str, found: object, expected: object
) -> SquallError:
    return SquallError(
        f"model {parent.id} cannot be fine-tuned with another train.{name}",
        found=found,
        expected=expected,
        remedy=f"leave train.{name} out, or train from the start (without train.fine_tune)",
    )


@contextlib.contextmanager
def progress_bar(
    data: TrainingData, settings: TrainSettings, shown: bool
) -> Iterator[Callable[[Message], None]]:
    """What shows a run's messages as a bar."""
    with bar(settings.epochs * steps_per_epoch(data), "train", "step", shown=shown) as shown_bar:

        def show(message: Message) -> None:
            shown_bar.set_postfix(loss=f"{message.metrics['loss']:.4f}", refresh=False)
            shown_bar.update(max(0, message.step - shown_bar.n))

        yield show


def main(arguments: Sequence[str] | None = None) -> None:
    """What a Ray job runs: `python -m models.train --root URL --product NAME`.

    Ray gives a job RAY_ADDRESS, so it trains on the cluster that runs it. Prints the name of the
    run and, at the end, the id of the model. Bad input is one line on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description="Train a network on the archive of a product with Ray Train and make it the "
        "champion. Inside a Ray job it trains on that cluster.",
    )
    parser.add_argument("--root", required=True, help="where archives and models live: a URL")
    parser.add_argument("--product", required=True, help="which archive")
    parser.add_argument(
        "--settings", default="{}", help="JSON of what differs from the defaults of section train"
    )
    parser.add_argument("--run", help="name of the run; the name of an earlier one continues it")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # which the status then says
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = _settings(given.settings)
        name = settings.model or given.product
        run = given.run or settings.run or f"{name}-{now():%Y%m%dT%H%M%SZ}"
        settings = settings.model_copy(update={"run": run})
        url = best_for_training(archive_url(given.root, given.product))
        print(f"run: {run}", flush=True)
        model = reported(given.root, run, lambda: train_model(given.root, name, url, settings))
    except SquallError as error:
        print(f"squall: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"model: {model}")


def _settings(text: str) -> TrainSettings:
    try:
        return TrainSettings.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["train", *map(str, first["loc"])])
        raise SquallError(
            f"setting {key} does not fit",
            found=repr(first["input"]),
            expected=first["msg"].removeprefix("Value error, "),
            remedy="mend --settings; `squall doctor` lists the settings",
        ) from error


if __name__ == "__main__":
    main()
