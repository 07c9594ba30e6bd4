"""Adversarial training: D's layers, its losses by hand, who learns from what, and the mask."""

import math

import pytest
import torch
from torch import nn

from models.adversary import SMALLEST, Adversary, Discriminator, joined
from pipelines.errors import SquallError

PAST, LEAD_TIMES, CHANNELS = 2, 3, 2
K = PAST * CHANNELS + LEAD_TIMES


def fields(batch=2, size=(12, 15), seed=0, dtype=torch.float32):
    """Past, future, forecast and observed: an edge and one whole sequence are not observed."""
    torch.manual_seed(seed)
    past = torch.rand(batch, PAST, CHANNELS, *size, dtype=dtype)
    future, forecast = torch.rand(2, batch, LEAD_TIMES, 1, *size, dtype=dtype)
    observed = torch.ones(future.shape, dtype=torch.bool)
    observed[..., -4:] = observed[1:2] = False
    return past, future, forecast, observed


def adversary(dtype=torch.float32, logit=None):
    """One whose D always gives `logit`, if that is not None."""
    torch.manual_seed(0)
    made = Adversary(K)
    made.discriminator.to(dtype)
    if logit is not None:
        nn.init.zeros_(made.discriminator.linear.weight)
        nn.init.constant_(made.discriminator.linear.bias, logit)
    return made


def weights(of):
    return {name: w.detach().clone() for name, w in of.discriminator.named_parameters()}


def test_the_layers_are_those_of_the_authors_code_but_for_the_last_normalisation():
    """https://github.com/rubenvillegas/iclr2017mcnet: src/mcnet.py, ops.py."""
    layers = list(Discriminator(K).convolutions)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (K, 64), (64, 128), (128, 256), (256, 512),
    ]  # fmt: skip
    assert all((c.kernel_size, c.stride) == ((5, 5), (2, 2)) for c in convolutions)
    assert [type(layer).__name__ for layer in layers] == [
        "Conv2d", "LeakyReLU",
        *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2,
        "Conv2d", "LeakyReLU",
    ]  # fmt: skip
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize(("size", "places"), [((9, 64), (1, 4)), ((33, 40), (3, 3))])
def test_each_convolution_halves_any_size(size, places):
    features = Discriminator(1).convolutions(torch.rand(1, 1, *size))
    assert features.shape == (1, 512, *places)


def test_losses_by_hand():
    """D = 3/4 for whatever it sees: L_disc = −log 3/4 − log 1/4, L_GAN = −log 3/4."""
    past, future, forecast, observed = fields(dtype=torch.float64)
    sure = adversary(torch.float64, logit=math.log(3))
    term = sure.term(past, forecast, observed)
    assert float(term) == pytest.approx(math.log(4 / 3), abs=1e-12)
    loss = sure.learn(past, future, forecast, observed)
    assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(4), abs=1e-12)


def test_a_loss_is_the_mean_over_sequences_seen():
    """Three sequences, one observed nowhere: the mean of −log σ(logit) over the other two."""
    past, _, forecast, observed = fields(3)
    trained = adversary()
    logits = trained.discriminator(joined(past, forecast, observed))
    expected = -torch.sigmoid(logits[[0, 2]]).log().mean()
    torch.testing.assert_close(trained.term(past, forecast, observed), expected)


def test_the_term_teaches_the_forecast_and_not_the_discriminator():
    past, _, forecast, observed = fields()
    trained = adversary()
    forecast.requires_grad_()
    trained.term(past, forecast, observed).backward()
    assert (forecast.grad[0, ..., :-4] != 0).float().mean() > 0.9
    assert all(w.grad is None for w in trained.discriminator.parameters())


def test_learning_teaches_the_discriminator_and_not_the_forecast():
    past, future, forecast, observed = fields()
    trained = adversary()
    before = weights(trained)
    forecast.requires_grad_()
    loss = trained.learn(past, future, forecast, observed)
    assert forecast.grad is None
    assert not loss.requires_grad
    for name, after in weights(trained).items():
        assert not torch.equal(after, before[name]), name


@pytest.mark.parametrize("value", [1e9, float("nan"), float("-inf")])
def test_what_stands_where_nothing_was_observed_changes_nothing(value):
    past, future, forecast, observed = fields()

    def outcome(future, forecast):
        trained = adversary()
        forecast = forecast.clone().requires_grad_()
        loss = trained.learn(past, future, forecast, observed)
        term = trained.term(past, forecast, observed)
        (gradient,) = torch.autograd.grad(term, forecast)
        assert not gradient[~observed].any()
        return [loss, term.detach(), gradient, *weights(trained).values()]

    expected = outcome(future, forecast)
    got = outcome(future.where(observed, value), forecast.where(observed, value))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_where_nothing_at_all_was_observed_both_losses_are_zero_and_nothing_is_learnt():
    past, future, forecast, observed = fields()
    nowhere = torch.zeros_like(observed)
    trained = adversary()
    before = weights(trained)
    assert trained.term(past, forecast, nowhere) == 0
    assert trained.learn(past, future, forecast, nowhere) == 0
    torch.testing.assert_close(weights(trained), before, rtol=0, atol=0)


def test_it_learns_to_tell_noise_from_moving_blobs():
    """From D = 1/2 of everything, L_disc = 2·log 2, to much less on sequences not seen before."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")

    def sequences(seed):
        generator = torch.Generator().manual_seed(seed)
        centre = 6 + 8 * torch.rand(4, 1, 2, generator=generator)
        way = torch.arange(PAST + LEAD_TIMES)[:, None] * 0.5
        y, x = (centre + way).unsqueeze(-1).unsqueeze(-1).unbind(2)
        blobs = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)[:, :, None]
        past = torch.cat([blobs, torch.ones_like(blobs)], dim=2)[:, :PAST]
        future = blobs[:, PAST:]
        noise = torch.rand(future.shape, generator=generator) * future.mean() * 2
        return past, future, noise, torch.ones_like(future, dtype=torch.bool)

    trained = adversary()
    for step in range(12):
        trained.learn(*sequences(step))
    assert float(trained.learn(*sequences(100))) < 0.25 * 2 * math.log(2)
    past, future, noise, observed = sequences(101)
    assert trained.term(past, future, observed) < trained.term(past, noise, observed)


def test_a_run_that_goes_on_from_a_state_ends_as_one_that_never_stopped():
    without_stop, first, second = adversary(), adversary(), Adversary(K)
    for seed in (0, 1):
        without_stop.learn(*fields(seed=seed))
    first.learn(*fields(seed=0))
    second.load_state_dict(first.state_dict())
    second.learn(*fields(seed=1))
    torch.testing.assert_close(weights(second), weights(without_stop), rtol=0, atol=0)


def test_one_sequence_of_the_smallest_frames_will_do_and_smaller_ones_are_an_error():
    trained = adversary()
    assert trained.learn(*fields(1, (SMALLEST, SMALLEST))).isfinite()
    with pytest.raises(SquallError, match=r"found 9×8 pixels; expected .*train\.crop"):
        trained.learn(*fields(1, (SMALLEST, SMALLEST - 1)))
