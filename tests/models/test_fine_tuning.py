"""Fine-tuning: what the parent decides, and what cannot be otherwise."""

import pandas as pd
import pytest
import torch

from models.fine_tuning import fine_tuned
from models.registry import Model
from models.training import NetworkSettings, TrainSettings
from pipelines.errors import SquallError

PARENT = TrainSettings(
    network=NetworkSettings(hidden_channels=(4, 3)), normalisation="dbz", past="20min", loss="mse"
)


@pytest.fixture
def spaced(archive, monkeypatch):
    """An archive of a timestep."""

    def of(timestep="5min"):
        monkeypatch.setattr(archive, "timestep", pd.Timedelta(timestep))
        return archive

    return of


def parent(settings=PARENT):
    return Model("knmi", "1", torch.nn.Identity(), settings, "", 4, pd.Timedelta("5min"), {})


def test_network_past_and_scale_are_the_parents_and_the_rest_is_as_given(spaced):
    settings = TrainSettings(fine_tune="knmi", learning_rate=1e-4, epochs=2, crop=48)
    result = fine_tuned(settings, parent(), spaced())
    assert result.network == PARENT.network
    assert (result.normalisation, result.past) == ("dbz", PARENT.past)
    assert (result.learning_rate, result.epochs, result.crop) == (1e-4, 2, 48)
    assert result.fine_tune == "knmi"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"network": {"hidden_channels": (8,)}}, "network"),
        ({"normalisation": "log"}, "normalisation"),
        ({"past": "30min"}, "past"),
        ({"loss": "cross-entropy"}, "loss"),
        ({"loss": "crps"}, "members"),
    ],
)
def test_what_would_be_another_network_or_scale_is_an_error(given, name, spaced):
    with pytest.raises(SquallError, match=f"another train.{name}"):
        fine_tuned(TrainSettings(fine_tune="knmi", **given), parent(), spaced())


def test_what_is_the_parents_anyway_may_be_given(spaced):
    settings = TrainSettings(fine_tune="knmi", network=PARENT.network, past="20min")
    assert fine_tuned(settings, parent(), spaced()).network == PARENT.network


def test_another_timestep_is_an_error(spaced):
    with pytest.raises(SquallError, match="another timestep: found 2min; expected 5min"):
        fine_tuned(TrainSettings(fine_tune="knmi"), parent(), spaced("2min"))
