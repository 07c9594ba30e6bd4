"""Forecasters by name, and what a trained network makes of past frames."""

import numpy as np
import pandas as pd
import pytest
import torch

from models.baselines import BASELINES
from models.data import network_input
from models.normalisation import RainNormalisation
from models.past import read_past
from models.prediction import NetworkForecaster, get_forecaster
from models.registry import save_model
from models.training import NetworkSettings, TrainSettings
from pipelines.errors import NotFoundError, SquallError

TIMESTEP = pd.Timedelta("5min")
LEADS = pd.timedelta_range(TIMESTEP, periods=4, freq=TIMESTEP)


@pytest.fixture(scope="module")
def network(registry):
    return get_forecaster(registry, "net")


@pytest.fixture(scope="module")
def rainy(grid):
    """A field per slot number, rain everywhere."""
    return {slot: np.full(grid.shape, 1.0 + slot) for slot in range(12)}


def trained_with(root, **settings):
    """An untrained network of 3 past frames, as if trained with these settings."""
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(4,)), **settings)
    torch.manual_seed(0)
    weights = settings.build_network().state_dict()
    known = {"past_frames": 3, "timestep": TIMESTEP, "archive": {}, "metrics": {}}
    return get_forecaster(root, f"net/{save_model(root, 'net', weights, settings, **known)}")


@pytest.fixture
def past_of(build_archive, tmp_path):
    """Past frames to slot 5, of fields by slot number or one field throughout."""

    def read(fields, frames=3, **options):
        if not isinstance(fields, dict):
            fields = dict.fromkeys(range(6), fields)
        archive = build_archive(tmp_path / "a.zarr", fields, **options)
        return read_past(archive, archive.times[5], frames).frames

    return read


def test_a_forecaster_is_a_baseline_or_a_model(registry):
    for name in BASELINES:
        assert get_forecaster(registry, name).name == name
    by_name = get_forecaster(registry, "net")
    assert isinstance(by_name, NetworkForecaster)
    assert get_forecaster(registry, by_name.name).name == by_name.name
    with pytest.raises(NotFoundError):
        get_forecaster(registry, "nothing")


def test_a_network_refuses_frames_of_another_timestep(past_of, rainy, network):
    with pytest.raises(SquallError, match="found 15min; expected 5min"):
        network.predict(past_of(rainy, timestep=pd.Timedelta("15min")), LEADS)


def test_a_network_forecasts_rain_wherever_it_was_observed(past_of, edge, network):
    forecast = network.predict(past_of(edge + 20.0), LEADS)
    assert forecast[:, :, 2:].notnull().all()
    assert (forecast[:, :, 2:] >= 0).all()
    assert forecast[:, :, :2].isnull().all()


def test_a_network_forecasts_dry_from_dry_frames(past_of, edge, network):
    forecast = network.predict(past_of(edge), LEADS)
    assert (forecast[:, :, 2:] == 0).all()
    assert forecast[:, :, :2].isnull().all()


def test_a_network_takes_lead_times_as_durations_and_not_as_counts(archive, network):
    past = read_past(archive, archive.usable_times()[5], 3)
    leads = pd.timedelta_range(TIMESTEP, periods=4, freq=TIMESTEP)
    all_of_them = network.predict(past.frames, leads)
    some = network.predict(past.frames, leads[[1, 3]])
    np.testing.assert_allclose(some, all_of_them[[1, 3]], atol=1e-5)
    assert list(some["lead_time"].values) == list(leads[[1, 3]])


def test_what_a_network_puts_out_is_read_as_its_loss_reads_it(tmp_path, archive):
    """Logits at 0 are 1/2 on the scale of rain, which is 3.5 mm/h; rain at 0 is none."""
    past = read_past(archive, archive.usable_times()[5], 3).frames
    half = RainNormalisation("log").decode(torch.tensor(0.5)).item()
    for loss, expected in (("cross-entropy", half), ("mse", 0.0)):
        forecaster = trained_with(str(tmp_path), loss=loss)
        for weights in forecaster.model.network.parameters():
            torch.nn.init.zeros_(weights)
        forecast = forecaster.predict(past, LEADS).values
        np.testing.assert_allclose(forecast[np.isfinite(forecast)], expected, rtol=1e-5)


def test_a_network_trained_on_crps_forecasts_members(tmp_path, archive):
    past = read_past(archive, archive.usable_times()[5], 3).frames
    forecaster = trained_with(str(tmp_path), loss="crps", members=3)
    forecast = forecaster.predict(past, LEADS[[0, 2]])
    assert forecast.dims == ("member", "lead_time", "y", "x")
    assert forecast["member"].values.tolist() == [0, 1, 2]
    assert forecast["member"].attrs["standard_name"] == "realization"
    inputs = network_input(torch.from_numpy(past.values), RainNormalisation("log"))[None]
    with torch.no_grad():
        output = forecaster.model.network(inputs, 3)[0]
    for member in range(3):
        expected = RainNormalisation("log").decode(output[[0, 2], member]).numpy()
        expected[expected < 0.1] = 0
        expected = np.where(np.isnan(past.values).all(axis=0), np.nan, expected)
        np.testing.assert_allclose(forecast.sel(member=member), expected)


def test_members_of_a_dry_forecast_are_dry(tmp_path, past_of, edge):
    forecast = trained_with(str(tmp_path), loss="crps", members=3).predict(past_of(edge), LEADS)
    assert forecast.shape == (3, 4, 8, 8)
    assert (forecast[..., 2:] == 0).all()
    assert forecast[..., :2].isnull().all()
