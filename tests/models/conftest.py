"""What tests of training share: samples of the small archive, and a run left alone."""

import pytest

from models.data import ArchiveData
from pipelines import storage
from pipelines.samples import build_index, complete_init_times

from .small_run import SETTINGS, run


@pytest.fixture(scope="session")
def run_data(archive):
    shape = SETTINGS.sequence_shape(archive)
    times = complete_init_times(archive.usable_times(), archive.timestep, shape)
    size = SETTINGS.samples_per_epoch, SETTINGS.batch_size, SETTINGS.seed
    training, validation = (build_index(archive, part, shape) for part in (times[:9], times[12:]))
    return ArchiveData(
        archive.url,
        training,
        validation,
        *size,
        validation_samples=6,
        leads=("5min", "10min", "15min"),
    )


@pytest.fixture(scope="session")
def undisturbed(run_data, tmp_path_factory):
    return run(run_data, storage.normalise(tmp_path_factory.mktemp("run")))
