"""Training without Ray: batches, a step, an epoch; everything random follows from the seed."""

import datetime as dt

import numpy as np
import pytest
import torch

from models.data import (
    ArchiveData,
    Batch,
    SequenceDataset,
    batches,
    draw,
    network_input,
    steps_per_epoch,
)
from models.losses import LOSSES, get_loss
from models.normalisation import RainNormalisation
from models.train import train_model
from models.training import (
    Learner,
    NetworkSettings,
    TrainSettings,
    evaluate,
    learning_rate,
    train_step,
)
from pipelines.errors import SquallError
from pipelines.samples import SequenceShape, build_index, complete_init_times

LOG = RainNormalisation("log")
SETTINGS = TrainSettings(
    network=NetworkSettings(hidden_channels=(6,), patch_size=4),
    past="15min",
    future="15min",
    crop=24,
    samples_per_epoch=16,
    batch_size=4,
    workers=1,
)


@pytest.fixture(scope="module")
def dataset(archive):
    shape = SETTINGS.sequence_shape(archive)
    init_times = complete_init_times(archive.usable_times(), archive.timestep, shape)
    return SequenceDataset(archive, build_index(archive, init_times, shape))


def learner(settings=SETTINGS):
    torch.manual_seed(settings.seed)
    return Learner.start(settings, settings.build_network())


def data_of(dataset):
    url, index = dataset.archive.url, dataset.index
    return ArchiveData(url, index, None, SETTINGS.samples_per_epoch, SETTINGS.batch_size, 0)


def epoch_of(dataset, number):
    """An epoch's batches for a single worker."""
    return data_of(dataset).training(number, 0, 1)


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


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


def test_training_is_given_no_frame_that_validates_or_is_kept_for_testing(archive, monkeypatch):
    class Given(Exception):
        pass

    def fit(data, settings, **rest):
        raise Given(data.training_index, data.validation_index)

    monkeypatch.setattr("models.train.fit", fit)
    split = {"validation_fraction": 0.2, "test_fraction": 0.3}
    with pytest.raises(Given) as given:
        train_model("unused", "net", archive.url, SETTINGS.model_copy(update=split))
    training, validation = given.value.args
    assert training.slots().stop <= validation.slots().start
    assert validation.slots().stop < archive.slot(archive.usable_times()[-1])


def test_settings_come_back_from_json():
    settings = SETTINGS.model_copy(update={"end": dt.datetime(2024, 6, 1)})
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_network_sees_rain_and_what_was_observed():
    rain = torch.tensor([[0.0, 0.1], [float("nan"), 128.0]])
    inputs = network_input(rain, LOG)
    assert inputs.shape == (2, 2, 2)
    torch.testing.assert_close(inputs[0], LOG.encode(rain.nan_to_num(0.0)))
    assert inputs[1].tolist() == [[1, 1], [0, 1]]
    assert inputs.isfinite().all()


def test_dry_and_missing_are_not_the_same_to_a_network():
    dry, missing = torch.zeros(4, 4), torch.full((4, 4), float("nan"))
    assert not torch.equal(network_input(dry, LOG), network_input(missing, LOG))


def test_batches_hold_their_samples_in_order(dataset):
    samples = [3, 0, 5, 1, 2]
    got = list(batches(dataset, samples, batch_size=2, normalisation=LOG))
    assert [len(batch.past) for batch in got] == [2, 2, 1]
    sequences = [dataset[sample] for sample in samples]
    past = torch.cat([batch.past for batch in got])
    future = torch.cat([batch.future for batch in got])
    observed = torch.cat([batch.observed for batch in got])
    assert past.shape == (5, 3, 2, 24, 24)
    assert future.shape == observed.shape == (5, 3, 1, 24, 24)
    for k, sequence in enumerate(sequences):
        torch.testing.assert_close(past[k], network_input(sequence[:3], LOG))
        torch.testing.assert_close(observed[k, :, 0], sequence[3:].isfinite())
        seen = observed[k, :, 0]
        torch.testing.assert_close(future[k, :, 0][seen], LOG.encode(sequence[3:][seen]))
    assert future.isfinite().all()


def test_samples_are_the_same_from_memory_and_from_the_store(dataset):
    stored = SequenceDataset(dataset.archive, dataset.index, memory_bytes=0)
    for sample in (0, 5, len(dataset) - 1):
        torch.testing.assert_close(dataset[sample], stored[sample], equal_nan=True, rtol=0, atol=0)
        expected = torch.from_numpy(dataset.index.read(dataset.reader, sample))
        torch.testing.assert_close(dataset[sample], expected, equal_nan=True, rtol=0, atol=0)


def test_one_cycle_is_torchs(tmp_path):
    settings = TrainSettings(epochs=4, learning_rate=0.1, schedule="onecycle")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, 401, cycle_momentum=False)
    expected = []
    for _ in range(400):
        expected.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    rates = [learning_rate(settings, step / 100) for step in range(400)]
    np.testing.assert_allclose(rates, expected, rtol=0.02, atol=2e-5)


def test_the_learning_rate_falls_along_half_a_cosine():
    settings = TrainSettings(epochs=4, learning_rate=0.1)
    rates = [learning_rate(settings, epoch) for epoch in range(4)]
    assert rates == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2])


def test_an_epoch_is_trained_at_its_own_learning_rate(dataset):
    one = learner()
    list(one.epoch(5, epoch_of(dataset, 5), 4))
    (group,) = one.optimiser.param_groups
    assert group["lr"] == learning_rate(SETTINGS, 5) < SETTINGS.learning_rate


def test_a_draw_follows_from_its_seed(dataset):
    index = dataset.index
    assert draw(index, 50, (0, 1)) == draw(index, 50, (0, 1))
    assert draw(index, 50, (0, 1)) != draw(index, 50, (0, 2))
    assert draw(index, 50, (0, 1)) != draw(index, 50, (1, 1))


def test_samples_are_drawn_in_proportion_to_their_acceptance(dataset):
    index = dataset.index
    counts = np.bincount(draw(index, 20_000, (0,)), minlength=len(index))
    expected = 20_000 * index.acceptance / index.acceptance.sum()
    # Five standard deviations of a Poisson count, and one for the rarest.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()


def test_workers_share_an_epoch_without_overlap(dataset, monkeypatch):
    asked = []

    def no_batches(dataset, samples, batch_size, normalisation):
        asked.append(samples)
        return iter(())

    monkeypatch.setattr("models.data.batches", no_batches)
    for rank in range(3):
        assert list(data_of(dataset).training(4, rank, 3)) == []
    assert steps_per_epoch(data_of(dataset), 3) == -(-5 // SETTINGS.batch_size)
    assert [len(samples) for samples in asked] == [5, 5, 5]
    drawn = draw(dataset.index, 16, (SETTINGS.seed, 4))
    assert [sample for samples in asked for sample in samples] == drawn[:15]


def test_a_step_changes_every_weight_and_tells_the_loss_before_it(dataset):
    one = learner()
    batch = next(batches(dataset, [0, 1, 2, 3], 4, LOG))
    before = weights(one.network)
    loss = get_loss("mse")
    with torch.no_grad():
        expected = loss(one.network(batch.past, 3), batch.future, batch.observed)
    told = train_step(one.network, one.optimiser, batch, loss, gradient_clip=1.0)
    assert float(told) == pytest.approx(float(expected))
    for name, tensor in one.network.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


def test_an_unobserved_batch_changes_no_weight(dataset):
    one = learner()
    batch = next(batches(dataset, [0, 1], 2, LOG))
    unseen = Batch(batch.past, batch.future, torch.zeros_like(batch.observed))
    before = weights(one.network)
    assert train_step(one.network, one.optimiser, unseen, get_loss("mse"), 1.0) == 0.0
    assert all(torch.equal(before[k], v) for k, v in one.network.state_dict().items())


def test_a_gradient_is_never_longer_than_its_clip(dataset):
    one = learner()
    batch = next(batches(dataset, [0, 1], 2, LOG))
    huge = Batch(batch.past, batch.future + 1e4, batch.observed)
    train_step(one.network, one.optimiser, huge, get_loss("mse"), gradient_clip=0.5)
    norm = torch.stack([w.grad.norm() for w in one.network.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_a_short_training_lowers_the_loss(dataset):
    one = learner(SETTINGS.model_copy(update={"learning_rate": 5e-3}))
    fixed = list(batches(dataset, draw(dataset.index, 16, (99,)), 8, LOG))
    before = evaluate(one.network, fixed, get_loss("mse"))["validation_loss"]
    for number in range(6):
        for loss in one.epoch(number, epoch_of(dataset, number), 4):
            assert loss.isfinite()
    after = evaluate(one.network, fixed, get_loss("mse"))["validation_loss"]
    assert after < before / 2


@pytest.mark.parametrize("name", [*LOSSES, "mse+gdl", "cross-entropy+0.5*ssim"])
def test_every_loss_can_be_trained_with(dataset, name):
    settings = {"loss": name, "members": 3, "learning_rate": 1e-2}
    one = learner(TrainSettings(**SETTINGS.model_dump() | settings))
    loss = one.settings.build_loss()
    (batch,) = batches(dataset, [0, 3, 6, 9], 4, LOG)
    before = evaluate(one.network, [batch], loss)["validation_loss"]
    for _ in range(12):
        train_step(one.network, one.optimiser, batch, loss, gradient_clip=1.0)
    after = evaluate(one.network, [batch], loss)["validation_loss"]
    assert after < 0.9 * before


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


def test_the_same_seed_gives_the_same_weights(dataset):
    one, other = learner(), learner()
    losses = [
        list(one.epoch(0, epoch_of(dataset, 0), 4)),
        list(other.epoch(0, epoch_of(dataset, 0), 4)),
    ]
    assert losses[0] == losses[1]
    assert all(
        torch.equal(v, other.network.state_dict()[k]) for k, v in weights(one.network).items()
    )


def test_a_learner_that_stopped_between_epochs_goes_on_as_if_it_had_not(dataset):
    through = learner()
    for number in range(2):
        list(through.epoch(number, epoch_of(dataset, number), 4))
    stopped = learner()
    list(stopped.epoch(0, epoch_of(dataset, 0), 4))
    resumed = learner(SETTINGS.model_copy(update={"seed": 0}))
    resumed.network.load_state_dict(weights(stopped.network))
    resumed.optimiser.load_state_dict(stopped.optimiser.state_dict())
    list(resumed.epoch(1, epoch_of(dataset, 1), 4))
    for name, tensor in through.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_evaluation_compares_with_persistence_on_the_same_samples(dataset):
    one = learner()
    validation = list(batches(dataset, [0, 1, 2, 3], 2, LOG))
    metrics = evaluate(one.network, validation, get_loss("mae"))
    expected = [
        (batch.future - batch.past[:, -1:, :1]).abs()[batch.observed].mean() for batch in validation
    ]
    assert metrics["validation_persistence"] == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert set(metrics) == {"validation_loss", "validation_persistence"}
    assert evaluate(one.network, [], get_loss("mae")) == {}


def test_persistence_is_compared_as_if_a_network_had_put_it_out(dataset):
    one = learner()
    validation = list(batches(dataset, [0, 1, 2, 3], 4, LOG))
    newest, future = validation[0].past[:, -1:, :1], validation[0].future
    got = evaluate(one.network, validation, get_loss("cross-entropy"))["validation_persistence"]
    newest = newest.double().clamp(1e-3, 1 - 1e-3)
    expected = -future * newest.log() - (1 - future) * (1 - newest).log()
    assert got == pytest.approx(float(expected[validation[0].observed].mean()), rel=1e-4)
    # Of an ensemble it is the one member.
    settings = SETTINGS.model_copy(update={"loss": "crps"})
    crps = evaluate(settings.build_network(), validation, settings.build_loss())
    mae = evaluate(one.network, validation, get_loss("mae"))
    assert crps["validation_persistence"] == pytest.approx(mae["validation_persistence"])
