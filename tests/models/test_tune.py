"""Search for hyper-parameters: what may be drawn, how a trial goes, who wins, and who failed."""

import json
import shlex

import pytest
import torch

from models.losses import get_loss
from models.training import TrainSettings
from models.trial import Measured, archive_data, trial, trial_settings
from models.tune import Row, Tuned, TuneSettings, tune
from pipelines import storage
from pipelines.errors import SquallError

BASE = TrainSettings(
    network={"hidden_channels": (4,)},
    past="15min",
    future="15min",
    crop=24,
    samples_per_epoch=8,
    batch_size=4,
    epochs=50,
    workers=2,
)
MSE = get_loss("mse")


@pytest.mark.parametrize(
    ("key", "drawn"),
    [
        ("learning_rate", {"loguniform": [0, 1]}),
        ("learning_rate", {"uniform": [1, 0.1]}),
        ("learning_rate", {"uniform": [0.1]}),
        ("learning_rate", {"normal": [0, 1]}),
        ("learning_rate", {"uniform": [0.1, 1], "choice": [1]}),
        ("batch_size", {"integers": [1.5, 4]}),
        ("loss", {"choice": []}),
        ("loss", {"uniform": ["mse", "mae"]}),
    ],
)
def test_what_cannot_be_drawn_is_an_error(key, drawn):
    with pytest.raises(ValueError, match=f"{key} cannot be drawn"):
        TuneSettings(space={key: drawn})


@pytest.mark.parametrize("key", ["learning_rat", "crop", "normalisation", "workers"])
def test_what_no_trial_may_choose_is_an_error(key):
    with pytest.raises(ValueError, match=r"unknown setting to tune.*learning_rate"):
        TuneSettings(space={key: {"choice": [1]}})


def test_trials_are_compared_by_a_loss_of_single_forecasts():
    with pytest.raises(ValueError, match="single forecasts"):
        TuneSettings(measure="crps")
    with pytest.raises(ValueError, match="at most max_epochs"):
        TuneSettings(max_epochs=2, grace_epochs=3)


def test_a_trial_has_its_own_settings_and_the_others_of_training():
    chosen = {
        "learning_rate": 0.5,
        "network.hidden_channels": [3, 3],
        "network.options.strides": [2, 2],
        "network.name": "convlstm-strided",
    }
    settings = trial_settings(BASE, chosen, epochs=2)
    assert (settings.learning_rate, settings.epochs, settings.workers) == (0.5, 2, 1)
    assert settings.network.config() == {"hidden_channels": (3, 3), "strides": [2, 2]}
    assert trial_settings(BASE, {}, 50) == BASE.model_copy(update={"workers": 1})
    with pytest.raises(ValueError, match="strides"):
        trial_settings(BASE, {"network.options.strides": [2]}, 2)


@pytest.mark.parametrize("own", ["mse", "cross-entropy", "crps"])
def test_a_forecast_is_measured_alike_whichever_loss_it_was_trained_with(own):
    rain = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    output = torch.logit(rain) if own == "cross-entropy" else rain
    if own == "crps":  # members around it
        output = torch.cat([rain - 0.05, rain + 0.05], dim=2)

    class Network(torch.nn.Module):
        def forward(self, past, lead_times):
            return output

    for measure in (MSE, get_loss("cross-entropy")):
        forecast = Measured(Network(), get_loss(own), measure)(torch.zeros(2, 1, 2, 4, 4), 3)
        torch.testing.assert_close(measure.to_rain(forecast), rain)


@pytest.fixture(scope="module")
def data(archive):
    return archive_data(archive.url, BASE)


def epochs_of(settings, data, measure=MSE):
    told = []
    trial(settings, data, measure, lambda epoch, metrics: told.append((epoch, metrics)))
    return told


def test_a_trial_is_the_same_every_time_and_learns(data):
    settings = trial_settings(BASE, {"learning_rate": 0.01, "loss": "b-mse"}, epochs=3)
    told = epochs_of(settings, data)
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    assert told[-1][1]["loss"] < told[0][1]["loss"]
    assert told == epochs_of(settings, data)


def test_trials_of_all_batch_sizes_validate_on_the_same_batches(data):
    persistences = {
        epochs_of(trial_settings(BASE, {"batch_size": size}, 1), data)[0][1][
            "validation_persistence"
        ]
        for size in (1, 3, 8)
    }
    assert len(persistences) == 1


def test_a_trial_whose_loss_is_no_number_says_so(data):
    settings = trial_settings(BASE, {"learning_rate": 1e30}, epochs=2)
    with pytest.raises(SquallError, match=r"is no longer a number: found .* in epoch [12]"):
        epochs_of(settings, data)


def test_an_archive_without_validation_compares_no_trials(archive):
    with pytest.raises(SquallError, match=r"raise train.validation_fraction"):
        archive_data(archive.url, BASE.model_copy(update={"validation_fraction": 0.0}))


def test_what_the_best_trial_drew_is_a_command_line():
    chosen = {"learning_rate": 0.003, "network.hidden_channels": [32, 32], "loss": "mse+0.5*gdl"}
    row = Row(0, chosen, "finished", 2, 0.1, 0.2, 3.0)
    words = shlex.split(row.arguments())
    assert words[::2] == ["--set"] * 3
    given = dict(word.removeprefix("train.").split("=", 1) for word in words[1::2])
    assert given.pop("loss") == "mse+0.5*gdl"
    assert {key: json.loads(text) for key, text in given.items()} == {
        "learning_rate": 0.003,
        "network.hidden_channels": [32, 32],
    }
    failed = Row(1, chosen, "failed", 0, None, None, 1.0, "out of memory")
    assert Tuned("run", "mse", None, [row, failed]).best == row
    assert Tuned("run", "mse", None, [failed]).best is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own, many
def test_absurd_learning_rates_lose_and_combinations_that_cannot_be_are_rows(archive, tmp_path):
    tuning = TuneSettings(
        samples=4,
        max_epochs=2,
        grace_epochs=1,
        seed=2,
        measure="mse",
        space={
            "learning_rate": {"choice": [0.01, 1e30]},
            "network.state_kernel": {"choice": [3, 4]},  # an even kernel cannot be
        },
    )
    tuned, url = tune(str(tmp_path), "test", archive.url, BASE, tuning)
    sound = {"learning_rate": 0.01, "network.state_kernel": 3}
    assert len(tuned.rows) == 4
    assert {row.trial for row in tuned.rows} == {0, 1, 2, 3}
    for row in tuned.rows:
        assert (row.state == "failed") == (row.chosen != sound), row
        assert bool(row.reason) == (row.state == "failed")
    assert any("no longer a number" in row.reason for row in tuned.rows)
    assert any("odd" in row.reason for row in tuned.rows)
    assert tuned.best is not None
    assert tuned.best.chosen == sound
    losses = [row.validation_loss for row in tuned.rows if row.state != "failed"]
    assert losses == sorted(losses)
    finished = next(row for row in tuned.rows if row.state == "finished")
    alone = epochs_of(trial_settings(BASE, sound, 2), archive_data(archive.url, BASE))
    assert finished.epochs == 2
    assert finished.validation_loss == alone[1][1]["validation_loss"]
    assert tuned.persistence == alone[1][1]["validation_persistence"]
    stored = storage.read_json(url)
    assert [row["chosen"] for row in stored["rows"]] == [row.chosen for row in tuned.rows]
    for row in tuned.rows:
        params = tmp_path / "runs" / tuned.run / f"trial-{row.trial:05}" / "params.json"
        assert json.loads(params.read_text()) == row.chosen
