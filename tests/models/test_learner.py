"""A learner: a step's batch is one in any number of pieces; all that changes is carried over."""

import numpy as np
import pytest
import torch

from models.data import ArchiveData, Batch, SequenceDataset, batch_of, draw
from models.learner import Learner, learning_rate
from models.losses import LOSSES
from models.networks import NETWORKS
from models.normalisation import RainNormalisation
from models.training import NetworkSettings, TrainSettings
from models.validation import metrics, validate
from pipelines.samples import build_index, complete_init_times
from tests.models.ddp_worker import SMALL

LOG = RainNormalisation("log")
SETTINGS = TrainSettings(
    network=NetworkSettings(hidden_channels=(6,), patch_size=4),
    past="15min",
    future="15min",
    crop=24,
    samples_per_epoch=16,
    batch_size=4,
    workers=1,
    learning_rate=2e-3,
)
RATE = SETTINGS.learning_rate


@pytest.fixture(scope="module")
def data(archive):
    shape = SETTINGS.sequence_shape(archive)
    init_times = complete_init_times(archive.usable_times(), archive.timestep, shape)
    index = build_index(archive, init_times, shape)
    return ArchiveData(archive.url, index, None, SETTINGS.samples_per_epoch, 4, seed=0)


@pytest.fixture(scope="module")
def batch(data):
    """Four samples, of which the last is hardly observed."""
    dataset = SequenceDataset(data.archive_url, data.training_index)
    batch = batch_of(torch.stack([dataset[sample] for sample in (0, 3, 6, 9)]), 3, LOG)
    batch.observed[3, :, :, 2:] = False
    return batch


def learner(**changed):
    settings = TrainSettings(**SETTINGS.model_dump() | changed)
    torch.manual_seed(settings.seed)
    return Learner(settings, settings.build_network())


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(one, other, **tolerance):
    for name, tensor in one.network.state_dict().items():
        expected = other.network.state_dict()[name]
        torch.testing.assert_close(tensor, expected, **(tolerance or {"rtol": 0, "atol": 0}))


def validation_loss(one, batch):
    loss = one.settings.build_loss()
    return metrics(validate(one.network, [batch], loss))["validation_loss"]


def test_one_cycle_is_torchs():
    settings = TrainSettings(learning_rate=0.1, schedule="onecycle")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, 401, cycle_momentum=False)
    expected = []
    for _ in range(400):
        expected.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    rates = [learning_rate(settings, step / 400) for step in range(400)]
    np.testing.assert_allclose(rates, expected, rtol=0.02, atol=2e-5)


def test_the_learning_rate_falls_along_half_a_cosine():
    settings = TrainSettings(learning_rate=0.1)
    rates = [learning_rate(settings, step / 4) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2])


def test_warming_up_it_rises_and_the_schedule_has_the_rest():
    settings = TrainSettings(learning_rate=0.1, schedule="constant", warm_up=0.25)
    rates = [learning_rate(settings, step / 8) for step in range(8)]
    assert rates == pytest.approx([0, 0.05, *[0.1] * 6])
    cosine = TrainSettings(learning_rate=0.1, warm_up=0.2)
    assert learning_rate(cosine, 0.2) == pytest.approx(0.1)
    assert learning_rate(cosine, 0.6) == pytest.approx(0.05)


def test_a_step_changes_every_weight_and_tells_the_loss_before_it(batch):
    one = learner()
    before = weights(one.network)
    with torch.no_grad():
        loss = one.settings.build_loss()
        expected = loss(one.network(batch.past, 3), batch.future, batch.observed)
    made = one.step(batch, RATE)
    assert float(made.loss) == pytest.approx(float(expected))
    assert float(made.gradient_norm) > 0
    for name, tensor in one.network.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("loss", ["mse", "b-mae", "mse+0.5*gdl", "ssim", "crps", "cross-entropy"])
def test_pieces_of_a_batch_count_by_what_is_observed_in_them(batch, loss):
    """However it is cut, loss and gradient are those of the whole batch."""
    whole, pieces = learner(loss=loss), learner(loss=loss, accumulate=3)
    made, in_pieces = whole.step(batch, RATE), pieces.step(batch, RATE)
    torch.testing.assert_close(in_pieces.loss, made.loss, rtol=1e-5, atol=1e-7)
    for one, other in zip(pieces.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_an_unobserved_batch_changes_no_weight(batch):
    one = learner()
    unseen = Batch(batch.past, batch.future, torch.zeros_like(batch.observed))
    before = weights(one.network)
    assert one.step(unseen, RATE).loss == 0.0
    assert all(torch.equal(before[k], v) for k, v in one.network.state_dict().items())


def test_a_gradient_is_never_longer_than_its_clip(batch):
    one = learner(gradient_clip=0.5)
    huge = Batch(batch.past, batch.future + 1e4, batch.observed)
    assert one.step(huge, RATE).gradient_norm > 1
    norm = torch.stack([w.grad.norm() for w in one.network.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_the_average_of_weights_follows_its_decay(batch):
    one = learner(average=0.75)
    expected = None
    for _ in range(4):
        one.step(batch, RATE)
        now = weights(one.network)
        expected = now if expected is None else {k: 0.75 * expected[k] + 0.25 * now[k] for k in now}
    for name, tensor in one.best_network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
    registered = Learner.weights_of(one.state_dict())
    assert registered.keys() == now.keys()
    assert all(torch.equal(registered[k], v) for k, v in one.best_network.state_dict().items())
    plain = learner()
    assert plain.best_network is plain.network
    assert Learner.weights_of(plain.state_dict()).keys() == now.keys()


def test_a_short_training_lowers_the_loss(data, batch):
    one = learner(learning_rate=5e-3)
    before = validation_loss(one, batch)
    for of_step in data.training(range(24), 0, 1):
        assert one.step(of_step, 5e-3).loss.isfinite()
    assert validation_loss(one, batch) < before / 2


@pytest.mark.parametrize("name", [*LOSSES, "mse+gdl", "cross-entropy+0.5*ssim"])
def test_every_loss_can_be_trained_with(batch, name):
    one = learner(loss=name, members=3)
    before = validation_loss(one, batch)
    for _ in range(12):
        one.step(batch, 1e-2)
    assert validation_loss(one, batch) < 0.9 * before


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_in_mixed_precision(name):
    config = dict(SMALL[name])
    named = {key: config.pop(key) for key in list(config) if key in NetworkSettings.model_fields}
    network = NetworkSettings(name=name, options=config, **named)
    one = learner(network=network, autocast=True)
    torch.manual_seed(1)
    frames = torch.rand(2, 6, 16, 16)
    batch = batch_of(frames, 3, LOG)
    full = learner(network=network).step(batch, RATE)
    made = one.step(batch, RATE)
    assert float(made.loss) == pytest.approx(float(full.loss), rel=0.03)
    assert float(made.gradient_norm) == pytest.approx(float(full.gradient_norm), rel=0.1)
    assert all(w.dtype == torch.float32 for w in one.network.parameters())


def test_the_same_seed_gives_the_same_weights(data):
    one, other = learner(), learner()
    for of_step in data.training(range(3), 0, 1):
        assert one.step(of_step, RATE).loss == other.step(of_step, RATE).loss
    assert_same(one, other)


def test_a_learner_that_stopped_goes_on_as_if_it_had_not(data):
    through, stopped, resumed = (learner(average=0.9) for _ in range(3))
    for of_step in data.training(range(5), 0, 1):
        through.step(of_step, RATE)
    for of_step in data.training(range(3), 0, 1):
        stopped.step(of_step, RATE)
    resumed.load_state_dict(stopped.state_dict())
    for of_step in data.training(range(3, 5), 0, 1):
        resumed.step(of_step, RATE)
    assert_same(resumed, through)
    for name, tensor in through.best_network.state_dict().items():
        assert torch.equal(tensor, resumed.best_network.state_dict()[name]), name


def test_random_numbers_go_on_as_well():
    one = learner()
    torch.rand(5)
    state = one.state_dict()
    expected = torch.rand(3)
    learner().load_state_dict(state)
    assert torch.equal(torch.rand(3), expected)


def test_a_draw_of_few_samples_is_all_that_an_epoch_needs(data):
    assert len(draw(data.training_index.acceptance, 3, (0,))) == 3
