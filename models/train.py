"""From archive to registered model: sequences, samples, Ray Train, registry."""

import logging

from models import registry
from models.data import ArchiveData
from models.ray_training import fit
from models.training import TrainSettings
from pipelines import storage
from pipelines.archive import Archive
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
