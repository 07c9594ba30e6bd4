"""All losses: only what was observed has a say, and a loss says what it takes an output for."""

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from models.losses import LOSSES, OF_ENSEMBLES, get_loss
from models.normalisation import RainNormalisation
from pipelines.errors import SquallError, UnknownNameError

ALL = [*LOSSES, "mse+0.5*gdl", "cross-entropy+0.1*ssim", "0.95*crps+0.05*crps-standard"]
NO_PERFECT_ZERO = {"cross-entropy", "cross-entropy+0.1*ssim"}
MEMBERS = 3


def fields(name, dtype=torch.float32):
    """Output, target and observed: an edge, a corner and a whole frame are not observed."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, 1, 14, 15)
    target = torch.rand(shape, generator=generator, dtype=dtype)
    members = MEMBERS if get_loss(name).of_ensemble else 1
    output = torch.rand((2, 2, members, 14, 15), generator=generator, dtype=dtype)
    observed = torch.ones(shape, dtype=torch.bool)
    observed[..., 13, :] = observed[..., 14] = observed[0, 0, 0, 0, 0] = observed[1, 1] = False
    return output, target, observed


def cancels(name):
    return name in {"gdl", "ssim", "crps"}


def loss_and_gradient(name, output, target, observed):
    output = output.clone().requires_grad_()
    loss = get_loss(name)(output, target, observed)
    (gradient,) = torch.autograd.grad(loss, output)
    return loss.detach(), gradient


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 1e9, float("nan"), float("-inf")])
@pytest.mark.parametrize("where", ["output", "target"])
def test_what_stands_at_an_unobserved_pixel_changes_neither_loss_nor_gradient(name, value, where):
    output, target, observed = fields(name)
    expected = loss_and_gradient(name, output, target, observed)
    if where == "output":
        output = output.where(observed, value)
    else:
        target = target.where(observed, value)
    changed = loss_and_gradient(name, output, target, observed)
    torch.testing.assert_close(changed, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_a_gradient_is_where_something_was_observed_and_only_there(name):
    output, target, observed = fields(name)
    loss, gradient = loss_and_gradient(name, output, target, observed)
    assert loss > 0
    seen = observed.expand_as(gradient)
    assert (gradient[~seen] == 0).all()
    # Signs can cancel (gradient difference, fair CRPS), and SSIM leaves windows out.
    assert (gradient[seen] != 0).float().mean() > (0.3 if cancels(name) else 0.999)


@pytest.mark.parametrize("name", ALL)
def test_where_nothing_was_observed_loss_and_gradient_are_zero(name):
    output, target, observed = fields(name)
    nothing = torch.zeros_like(observed)
    loss, gradient = loss_and_gradient(name, output, target * float("nan"), nothing)
    assert float(loss) == 0.0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_PERFECT_ZERO])
def test_a_perfect_prediction_has_no_loss(name):
    output, target, observed = fields(name)
    loss = get_loss(name)(target.expand_as(output), target, observed)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_better_than_a_perfect_prediction(name):
    output, target, observed = fields(name, torch.float64)
    loss = get_loss(name)
    target = target.clamp(0.1, 0.9)
    perfect = loss.from_rain(target.expand_as(output))
    for other in (output, perfect + 1e-3, perfect - 1e-3, 1 - perfect):
        assert loss(perfect, target, observed) <= loss(other, target, observed)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_is_a_mean_so_the_size_of_a_batch_does_not_matter(name):
    once = fields(name)
    twice = [torch.cat([field, field]) for field in once]
    loss = get_loss(name)
    torch.testing.assert_close(loss(*once), loss(*twice))


@pytest.mark.parametrize("name", ALL)
def test_a_gradient_is_the_derivative_of_its_loss(name):
    output, target, observed = fields(name, torch.float64)
    one = [field[:1, 1:, :, :, 1:] for field in (output, target, observed)]
    loss, (output, target, observed) = get_loss(name), one
    assert not observed.all()
    assert torch.autograd.gradcheck(
        lambda output: loss(output, target, observed), output.clone().requires_grad_()
    )


@pytest.mark.parametrize("name", ALL)
def test_a_loss_asks_the_device_for_no_value(name):
    """Nor does its gradient: a CUDA graph could not hold it. Fake tensors have none to give."""
    with FakeTensorMode():
        output, target, observed = (torch.empty_like(field) for field in fields(name))
        loss, gradient = loss_and_gradient(name, output, target, observed)
    assert loss.shape == ()
    assert gradient.shape == output.shape


@pytest.mark.parametrize(
    ("dependent", "error"),
    [
        (lambda error, observed: error[observed].mean(), DynamicOutputShapeException),
        (lambda error, observed: error.sum() / observed.sum().item(), DataDependentOutputException),
    ],
)
def test_fake_tensors_give_away_what_depends_on_values(dependent, error):
    with FakeTensorMode(), pytest.raises(error):
        dependent(torch.ones(3), torch.ones(3) > 0)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_has_the_precision_of_its_target(name):
    output, target, observed = fields(name)
    low = output.to(torch.bfloat16)
    loss = get_loss(name)(low, target, observed)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, get_loss(name)(low.float(), target, observed))


# Names and sums ----------------------------------------------------------------------------------


def test_an_unknown_loss_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'mse'"):
        get_loss("mes")
    with pytest.raises(UnknownNameError, match="did you mean 'gdl'"):
        get_loss("mse+2*gld")


@pytest.mark.parametrize("weight", ["", "x", "0", "-1", "nan", "inf"])
def test_a_weight_that_is_no_positive_number_is_an_error(weight):
    with pytest.raises(SquallError, match=r"write it as in 0\.5\*gdl"):
        get_loss(f"mse+{weight}*gdl")


def test_a_sum_of_losses_is_their_weighted_sum():
    given = fields("mse")
    parts = [get_loss(name)(*given) for name in ("mse", "gdl", "b-mae")]
    total = get_loss(" mse + 0.5*gdl+2 * b-mae ")(*given)
    torch.testing.assert_close(total, parts[0] + 0.5 * parts[1] + 2 * parts[2])


def test_in_a_sum_with_cross_entropy_the_others_take_the_rain_that_the_logits_stand_for():
    output, target, observed = fields("mse")
    expected = get_loss("cross-entropy")(output, target, observed) + get_loss("mse")(
        torch.sigmoid(output), target, observed
    )
    torch.testing.assert_close(get_loss("mse+cross-entropy")(output, target, observed), expected)


def test_losses_of_ensembles_and_of_single_forecasts_do_not_go_together():
    with pytest.raises(SquallError, match="leave one kind out"):
        get_loss("crps+gdl")


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in OF_ENSEMBLES])
def test_a_single_forecast_is_not_compared_with_members(name):
    _, target, observed = fields(name)
    with pytest.raises(AssertionError):
        get_loss(name)(target.expand(2, 2, 3, 14, 15), target, observed)


@pytest.mark.parametrize("kind", ["log", "dbz"])
def test_balanced_losses_weight_by_the_scale_that_the_target_is_on(kind):
    normalisation = RainNormalisation(kind)
    target = normalisation.encode(torch.tensor([1.0, 4.0, 29.0, 31.0])).view(1, 1, 1, 2, 2)
    output, observed = target + 0.1, torch.ones_like(target, dtype=torch.bool)
    loss = get_loss("b-mae", normalisation)(output, target, observed)
    assert float(loss) == pytest.approx(0.1 * (1 + 2 + 10 + 30) / 4)


@pytest.mark.parametrize("name", ALL)
def test_what_an_output_stands_for_goes_both_ways(name):
    loss = get_loss(name)
    rain = torch.tensor([0.01, 0.3, 0.99])
    torch.testing.assert_close(loss.to_rain(loss.from_rain(rain)), rain)


def test_only_a_loss_of_logits_makes_rain_of_the_output():
    output = torch.tensor([-1.0, 0.0, 2.0])
    assert torch.equal(get_loss("mse").to_rain(output), output)
    assert torch.equal(get_loss("cross-entropy").to_rain(output), torch.sigmoid(output))
    dry = get_loss("cross-entropy").from_rain(torch.tensor([0.0, 1.0]))
    assert dry.isfinite().all()
