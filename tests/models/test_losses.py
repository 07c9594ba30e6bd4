"""Losses: only what was observed has a say."""

import pytest
import torch

from models.losses import LOSSES, get_loss
from pipelines.errors import UnknownNameError

OBSERVED = torch.tensor([[True, True, False], [True, False, False]])
TARGET = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize(("name", "expected"), [("mse", (1 + 4 + 9) / 3), ("mae", 2.0)])
def test_losses_by_hand(name, expected):
    error = torch.tensor([[1.0, -2.0, 100.0], [3.0, 100.0, -100.0]])
    assert float(get_loss(name)(TARGET + error, TARGET, OBSERVED)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0.0, 1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["prediction", "target"])
def test_what_stands_at_an_unobserved_pixel_changes_neither_loss_nor_gradient(name, value, where):
    loss = get_loss(name)

    def loss_and_gradient(prediction, target):
        prediction = prediction.clone().requires_grad_()
        result = loss(prediction, target, OBSERVED)
        (gradient,) = torch.autograd.grad(result, prediction)
        return result.detach(), gradient

    fields = {"prediction": TARGET + 0.5, "target": TARGET}
    expected = loss_and_gradient(**fields)
    fields[where] = torch.where(OBSERVED, fields[where], value)
    torch.testing.assert_close(loss_and_gradient(**fields), expected, rtol=0, atol=0)
    assert (expected[1][~OBSERVED] == 0).all()
    assert (expected[1][OBSERVED] != 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_where_nothing_was_observed_loss_and_gradient_are_zero(name):
    prediction = TARGET.clone().requires_grad_()
    result = get_loss(name)(prediction, TARGET * float("nan"), torch.zeros_like(OBSERVED))
    result.backward()
    assert float(result.detach()) == 0.0
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_has_no_loss(name):
    assert float(get_loss(name)(TARGET, TARGET, OBSERVED)) == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_mean_so_the_size_of_a_crop_does_not_matter(name):
    loss = get_loss(name)
    once = loss(TARGET + 1.5, TARGET, OBSERVED)
    twice = loss(*(torch.cat([field, field]) for field in (TARGET + 1.5, TARGET, OBSERVED)))
    torch.testing.assert_close(once, twice)


def test_an_unknown_loss_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'mse'"):
        get_loss("mes")
