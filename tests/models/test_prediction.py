"""Prediction: past frames, a forecaster, and a forecast that says how it was made."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from models.baselines import BASELINES, Persistence
from models.data import network_input
from models.normalisation import RainNormalisation
from models.prediction import (
    NetworkForecaster,
    NowcastSettings,
    get_forecaster,
    make_nowcast,
    read_past,
)
from models.registry import promote, save_model
from models.training import NetworkSettings, TrainSettings
from pipelines.archive import Archive
from pipelines.errors import NotFoundError, SquallError, TooFewFramesError
from pipelines.forecasts import open_forecast
from pipelines.publishing import publish

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
SETTINGS = NowcastSettings(lead_time="15min")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A root with an untrained network of 3 past frames as the champion ``net``."""
    root = str(tmp_path_factory.mktemp("registry"))
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(4,), patch_size=4))
    torch.manual_seed(0)
    version = save_model(
        root,
        "net",
        settings.build_network().state_dict(),
        settings,
        past_frames=3,
        timestep=TIMESTEP,
        archive={},
        metrics={},
    )
    promote(root, "net", version)
    return root


@pytest.fixture(scope="module")
def network(registry):
    return get_forecaster(registry, "net")


@pytest.fixture(params=["persistence", "advection", "net"])
def forecaster(request, registry):
    return get_forecaster(registry, request.param)


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


def without(fields, *slots):
    return {slot: field for slot, field in fields.items() if slot not in slots}


# Past frames -------------------------------------------------------------------------------------


def test_past_frames_end_at_the_init_time(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", rainy)
    past = read_past(archive, archive.times[5], 3)
    assert list(past.frames["time"].values) == list(archive.times[3:6])
    assert past.frames[:, 0, 0].values.tolist() == [4, 5, 6]
    assert past.complete
    assert list(past.input_times) == list(archive.times[3:6])


def test_too_few_past_frames_are_an_error_that_names_the_missing(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 3, 4))
    with pytest.raises(TooFewFramesError, match="found 2 of 4, missing 2024-06-01T00:15:00Z"):
        read_past(archive, archive.times[5], 4, most_missing=1)


def test_the_newest_frame_is_never_stood_in_for(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 5))
    with pytest.raises(TooFewFramesError, match="never the newest"):
        read_past(archive, archive.times[5], 3, most_missing=3)


def test_frames_before_the_axis_are_missing(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", rainy)
    with pytest.raises(TooFewFramesError, match="found 2 of 3"):
        read_past(archive, archive.times[1], 3)
    assert not read_past(archive, archive.times[1], 3, most_missing=1).complete


@pytest.mark.parametrize(("missing", "stand_in"), [(4, (4, 6)), (3, (5,)), (2, (4,))])
def test_the_nearest_frame_stands_in_for_a_missing_one(
    tmp_path, build_archive, rainy, missing, stand_in
):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, missing))
    past = read_past(archive, archive.times[5], 4, most_missing=1)
    values = dict(zip(range(2, 6), past.frames[:, 0, 0].values.tolist(), strict=True))
    assert values.pop(missing) in stand_in
    assert values == {slot: slot + 1 for slot in values}
    assert list(past.input_times) == [archive.times[s] for s in range(2, 6) if s != missing]
    assert not past.complete


# Nowcasts ----------------------------------------------------------------------------------------


def test_a_nowcast_says_how_it_was_made(tmp_path, build_archive, rainy, network):
    archive = build_archive(tmp_path / "a.zarr", rainy)
    nowcast = make_nowcast(archive, network, archive.times[5], SETTINGS)
    assert list(nowcast["lead_time"].values) == [TIMESTEP, 2 * TIMESTEP, 3 * TIMESTEP]
    assert nowcast["init_time"].values == archive.times[5]
    assert nowcast.attrs["model"] == network.model.id
    assert nowcast.attrs["model_sha256"] == network.model.weights_sha256
    assert nowcast.attrs["input_times"] == [
        "2024-06-01T00:15:00Z",
        "2024-06-01T00:20:00Z",
        "2024-06-01T00:25:00Z",
    ]
    assert nowcast.attrs["quality"] == "good"
    age = (pd.Timestamp.now("UTC").tz_localize(None) - archive.times[5]).total_seconds()
    assert nowcast.attrs["radar_age_seconds"] == pytest.approx(age, abs=60)


def test_a_nowcast_with_a_frame_missing_is_degraded_and_says_so(
    tmp_path, build_archive, rainy, forecaster
):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 4))
    nowcast = make_nowcast(archive, forecaster, archive.times[5], SETTINGS)
    assert nowcast.attrs["quality"] == "degraded"
    frames = max(forecaster.past_frames, 2)
    assert nowcast.attrs["quality_note"] == (f"1 of {frames} past frames missing, nearest one used")
    assert "2024-06-01T00:20:00Z" not in nowcast.attrs["input_times"]


def test_a_nowcast_with_too_many_frames_missing_is_not_made(
    tmp_path, build_archive, rainy, network
):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 3, 4))
    with pytest.raises(TooFewFramesError):
        make_nowcast(archive, network, archive.times[5], SETTINGS)


def test_a_nowcast_is_made_from_nothing_newer_than_its_init_time(
    tmp_path, build_archive, rainy, forecaster
):
    later = {slot: field + (90 if slot > 5 else 0) for slot, field in rainy.items()}
    nowcasts = [
        make_nowcast(
            build_archive(tmp_path / name, fields), forecaster, START + 5 * TIMESTEP, SETTINGS
        )["rain_rate"]
        for name, fields in (("a.zarr", rainy), ("b.zarr", later))
    ]
    xr.testing.assert_identical(*nowcasts)


def test_a_lead_time_that_the_timestep_does_not_divide_is_an_error(
    tmp_path, build_archive, rainy, forecaster
):
    archive = build_archive(tmp_path / "a.zarr", rainy)
    with pytest.raises(SquallError, match="lead time does not fit the timestep"):
        make_nowcast(archive, forecaster, archive.times[5], NowcastSettings(lead_time="7min"))


@pytest.fixture(scope="module")
def edge(grid):
    """Observed everywhere but in the first two columns."""
    return np.where(np.arange(grid.shape[1]) < 2, np.nan, np.zeros(grid.shape))


def test_dry_frames_give_a_dry_forecast_wherever_it_was_observed(
    tmp_path, build_archive, edge, forecaster
):
    archive = build_archive(tmp_path / "a.zarr", dict.fromkeys(range(6), edge))
    rain_rate = make_nowcast(archive, forecaster, archive.times[5], SETTINGS)["rain_rate"]
    assert (rain_rate[:, :, 2:] == 0).all()
    assert rain_rate[:, :, :2].isnull().all()


def test_rain_gives_rain_rates_wherever_it_was_observed(tmp_path, build_archive, edge, network):
    archive = build_archive(tmp_path / "a.zarr", dict.fromkeys(range(6), edge + 20.0))
    rain_rate = make_nowcast(archive, network, archive.times[5], SETTINGS)["rain_rate"]
    assert rain_rate[:, :, 2:].notnull().all()
    assert (rain_rate[:, :, 2:] >= 0).all()
    assert rain_rate[:, :, :2].isnull().all()


def test_frames_without_an_observed_pixel_give_an_unknown_forecast(
    tmp_path, build_archive, edge, forecaster
):
    archive = build_archive(tmp_path / "a.zarr", dict.fromkeys(range(6), edge * np.nan))
    nowcast = make_nowcast(archive, forecaster, archive.times[5], SETTINGS)
    assert nowcast["rain_rate"].isnull().all()
    publish(str(tmp_path), "test", nowcast)
    assert open_forecast(str(tmp_path), "test", archive.times[5])["rain_rate"].isnull().all()


def test_every_nowcast_can_be_published_and_read(tmp_path, archive, forecaster):
    init_time = archive.usable_times()[10]
    nowcast = make_nowcast(archive, forecaster, init_time, SETTINGS)
    publish(str(tmp_path), "test", nowcast)
    opened = open_forecast(str(tmp_path), "test", init_time)
    np.testing.assert_allclose(opened["rain_rate"], nowcast["rain_rate"], atol=0.00501)
    assert opened.attrs.items() >= nowcast.attrs.items()
    told_at_the_end = {"publish_time", "revision", "seconds_publish"}
    assert set(opened.attrs) - set(nowcast.attrs) == told_at_the_end


# Forecasters -------------------------------------------------------------------------------------


def test_a_forecaster_is_a_baseline_or_a_model(registry):
    for name in BASELINES:
        assert get_forecaster(registry, name).name == name
    by_name = get_forecaster(registry, "net")
    assert isinstance(by_name, NetworkForecaster)
    assert get_forecaster(registry, by_name.name).name == by_name.name
    with pytest.raises(NotFoundError):
        get_forecaster(registry, "nothing")


def test_a_network_refuses_frames_of_another_timestep(tmp_path, build_archive, rainy, network):
    archive = build_archive(tmp_path / "a.zarr", rainy, timestep=pd.Timedelta("15min"))
    with pytest.raises(SquallError, match="found 15min; expected 5min"):
        make_nowcast(archive, network, archive.times[5], NowcastSettings(lead_time="30min"))


def test_a_network_takes_lead_times_as_durations_and_not_as_counts(archive, network):
    past = read_past(archive, archive.usable_times()[5], 3)
    leads = pd.timedelta_range(TIMESTEP, periods=4, freq=TIMESTEP)
    all_of_them = network.predict(past.frames, leads)
    some = network.predict(past.frames, leads[[1, 3]])
    np.testing.assert_allclose(some, all_of_them[[1, 3]], atol=1e-5)
    assert list(some["lead_time"].values) == list(leads[[1, 3]])


LEADS = pd.timedelta_range(TIMESTEP, periods=4, freq=TIMESTEP)


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


def test_members_of_a_dry_forecast_are_dry(tmp_path, build_archive, edge):
    past = build_archive(tmp_path / "a.zarr", dict.fromkeys(range(6), edge))
    past = read_past(past, past.times[5], 3).frames
    forecast = trained_with(str(tmp_path), loss="crps", members=3).predict(past, LEADS)
    assert forecast.shape == (3, 4, 8, 8)
    assert (forecast[..., 2:] == 0).all()
    assert forecast[..., :2].isnull().all()


def test_a_forecaster_of_one_frame_gets_what_it_needs(tmp_path, build_archive, rainy):
    archive: Archive = build_archive(tmp_path / "a.zarr", {5: rainy[5]})
    settings = NowcastSettings(lead_time="5min", most_missing=1)
    nowcast = make_nowcast(archive, Persistence(), archive.times[5], settings)
    assert (nowcast["rain_rate"] == 6).all()


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        NowcastSettings(leadtime="1h")
