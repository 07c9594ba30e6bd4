"""Settings of training: what does not fit is an error before anything is trained."""

import datetime as dt

import pytest
import torch

from models.normalisation import RainNormalisation
from models.train import train_model
from models.training import NetworkSettings, TrainSettings
from pipelines.errors import SquallError
from pipelines.samples import SequenceShape

SETTINGS = TrainSettings(
    network=NetworkSettings(hidden_channels=(6,), patch_size=4),
    past="15min",
    future="15min",
    crop=24,
    samples_per_epoch=16,
    batch_size=4,
    workers=1,
    tracking={"kind": "none"},
)


def test_durations_become_frames_of_the_archive(archive):
    settings = TrainSettings(past="30min", future="1h", crop=32)
    assert settings.sequence_shape(archive) == SequenceShape(past=6, future=12, crop=32)


def test_a_past_that_the_timestep_does_not_divide_is_an_error(archive):
    with pytest.raises(SquallError, match="past does not fit the timestep"):
        TrainSettings(past="7min").sequence_shape(archive)


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        TrainSettings(epoch=3)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        TrainSettings(network={"hidden": 3})


def test_a_split_that_leaves_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="must leave something to train on"):
        TrainSettings(validation_fraction=0.5, test_fraction=0.5)


def test_training_is_given_no_frame_that_validates_or_is_kept_for_testing(
    archive, monkeypatch, tmp_path
):
    class Given(Exception):
        pass

    def fit(data, settings, **rest):
        raise Given(data.training_index, data.validation_index)

    monkeypatch.setattr("models.train.fit", fit)
    split = {"validation_fraction": 0.2, "test_fraction": 0.3}
    with pytest.raises(Given) as given:
        train_model(str(tmp_path), "net", archive.url, SETTINGS.model_copy(update=split))
    training, validation = given.value.args
    assert training.slots().stop <= validation.slots().start
    assert validation.slots().stop < archive.slot(archive.usable_times()[-1])


def test_settings_come_back_from_json():
    settings = SETTINGS.model_copy(update={"end": dt.datetime(2024, 6, 1)})
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(("name", "channels"), [("mse", 1), ("cross-entropy", 1), ("crps", 5)])
def test_a_network_puts_out_members_where_its_loss_is_of_ensembles(name, channels):
    network = TrainSettings(loss=name, members=5, network=SETTINGS.network).build_network()
    assert network(torch.zeros(1, 2, 2, 8, 8), 3).shape == (1, 3, channels, 8, 8)


@pytest.mark.parametrize("kind", ["log", "dbz"])
def test_a_loss_weights_rain_on_the_scale_on_which_it_is_learnt(kind):
    loss = TrainSettings(loss="b-mse", normalisation=kind).build_loss()
    assert loss.normalisation == RainNormalisation(kind)


def test_an_unknown_loss_is_an_error_before_anything_is_trained():
    with pytest.raises(ValueError, match="did you mean 'mse'"):
        TrainSettings(loss="mes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 5}, "batch_size must be at least workers"),
        ({"batch_size": 32}, "samples_per_epoch at least batch_size"),
        ({"workers": 2, "least_workers": 3}, "least_workers must be at most workers"),
    ],
)
def test_every_worker_has_a_sample_in_every_step(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**SETTINGS.model_dump() | wrong)
