"""What tests of training share: samples of the small archive, and a run left alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from models.data import ArchiveData
from models.registry import promote, save_model
from models.training import NetworkSettings, TrainSettings
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


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A root with an untrained network of 3 past frames as the champion ``net``. Read only."""
    root = str(tmp_path_factory.mktemp("registry"))
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(4,), patch_size=4))
    torch.manual_seed(0)
    version = save_model(
        root,
        "net",
        settings.build_network().state_dict(),
        settings,
        past_frames=3,
        timestep=pd.Timedelta("5min"),
        archive={},
        metrics={},
    )
    promote(root, "net", version)
    return root


@pytest.fixture(scope="session")
def edge(grid):
    """Observed, and dry, everywhere but in the first two columns."""
    return np.where(np.arange(grid.shape[1]) < 2, np.nan, np.zeros(grid.shape))
