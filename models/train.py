"""From archive to registered model: sequences, samples, Ray Train, registry."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from models import registry
from models.data import ArchiveData
from models.ray_training import fit
from models.run_status import reported
from models.training import TrainSettings
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.compact import best_for_training
from pipelines.errors import SquallError
from pipelines.samples import build_index, complete_init_times, describe
from pipelines.split import split
from pipelines.times import now, time_text, utc

log = logging.getLogger(__name__)


def train_model(
    root: str, name: str, archive_url: str, settings: TrainSettings, *, progress: bool = False
) -> str:
    """Train on an archive, register the model, make it the champion; its id, name/version.

    Raises `SquallError` where the archive has no sequence to learn from.
    """
    archive = Archive(archive_url)
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
    run = settings.run or f"{name}-{now():%Y%m%dT%H%M%SZ}"
    trained = fit(
        ArchiveData(
            archive_url,
            training,
            validation,
            settings.samples_per_epoch,
            settings.batch_size,
            settings.seed,
            settings.normalisation,
        ),
        settings,
        storage_url=storage.join(root, "runs"),
        run_name=run,
        progress=progress,
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
