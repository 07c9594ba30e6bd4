"""From an archive to what is trained on and validated with: times, parts, samples."""

import logging
from dataclasses import dataclass

import pandas as pd

from models.data import ArchiveData
from models.training import TrainSettings
from pipelines.archive import Archive
from pipelines.info import provenance
from pipelines.samples import build_index, complete_init_times, describe
from pipelines.split import Parts, split
from pipelines.times import format_duration, utc

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What a training has to do with.

    Attributes
    ----------
    times : the frames that it may use
    parts : the init_times of training, validation and test
    """

    archive: Archive
    times: pd.DatetimeIndex
    parts: Parts
    data: ArchiveData


def prepare(archive_url: str, settings: TrainSettings) -> Prepared:
    """Split what the archive has and find its samples.

    Raises `SquallError` where it has no sequence to learn from.
    """
    archive = Archive(archive_url)
    shape = settings.sequence_shape(archive)
    times = archive.usable_times(
        utc(settings.start) if settings.start else None,
        utc(settings.end) if settings.end else None,
    )
    parts = split(
        complete_init_times(times, archive.timestep, shape),
        archive.timestep,
        shape,
        settings.validation_fraction,
        settings.test_fraction,
        settings.split_seed,
    )
    training = build_index(archive, parts.training, shape)
    log.info("training: %s", describe(training, archive))
    data = ArchiveData(
        archive_url,
        training,
        build_index(archive, parts.validation, shape) if len(parts.validation) else None,
        settings.samples_per_epoch,
        settings.batch_size,
        settings.seed,
        normalisation=settings.normalisation,
        augmentation=settings.augment,
        validation_samples=settings.validation_samples,
        loaders=settings.loaders,
        version=provenance(archive, times)["sha256"],
        leads=tuple(format_duration(archive.timestep * k) for k in range(1, shape.future + 1)),
    )
    return Prepared(archive, times, parts, data)
