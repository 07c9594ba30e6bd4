"""Losses pixel by pixel, by hand."""

import math

import pytest
import torch

from models.losses import get_loss
from models.losses.pixels import rain_weights, sequence_cross_entropy
from models.normalisation import RainNormalisation
from pipelines.units import SCALE_MM_H

LOG = RainNormalisation("log")


def frames(rows, dtype=torch.float32):
    """One frame of one sequence."""
    return torch.tensor([[[rows]]], dtype=dtype)


OBSERVED = frames([[True, True, False], [True, False, False]], torch.bool)
TARGET = frames([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize(("name", "expected"), [("mse", (1 + 4 + 9) / 3), ("mae", 2.0)])
def test_errors_by_hand(name, expected):
    error = frames([[1.0, -2.0, 100.0], [3.0, 100.0, -100.0]])
    assert float(get_loss(name)(TARGET + error, TARGET, OBSERVED)) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "power"), [("b-mse", 2), ("b-mae", 1)])
def test_balanced_errors_by_hand(name, power):
    rain_rate = frames([[0.0, 1.99, 2.0, 4.99], [5.0, 10.0, 30.0, 99.0]])
    observed = frames([[True] * 4, [True, True, True, False]], torch.bool)
    error = frames([[0.1, -0.1, 0.2, 0.1], [-0.1, 0.3, 0.1, 9.0]])
    target = LOG.encode(rain_rate)
    weighted = [(1, 0.1), (1, 0.1), (2, 0.2), (2, 0.1), (5, 0.1), (10, 0.3), (30, 0.1)]
    expected = sum(weight * error**power for weight, error in weighted) / 7
    loss = get_loss(name, LOG)(target + error, target, observed)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["log", "dbz"])
def test_every_rain_rate_that_can_be_stored_has_its_weight_exactly(kind):
    steps = torch.arange(13_000)
    expected = torch.ones(steps.shape)
    for step, weight in ((200, 2.0), (500, 5.0), (1000, 10.0), (3000, 30.0)):
        expected[steps >= step] = weight
    normalisation = RainNormalisation(kind)
    target = normalisation.encode((steps * SCALE_MM_H).float())
    assert torch.equal(rain_weights(target, normalisation), expected)


def test_cross_entropy_by_hand():
    logits = frames([[0.0, math.log(3.0), math.log(3.0), 5.0]])  # P = 1/2, 3/4, 3/4
    target = frames([[0.3, 1.0, 0.25, 0.0]])
    observed = frames([[True, True, True, False]], torch.bool)
    third = -0.25 * math.log(0.75) - 0.75 * math.log(0.25)
    summed = math.log(2.0) - math.log(0.75) + third
    assert float(get_loss("cross-entropy")(logits, target, observed)) == pytest.approx(summed / 3)
    assert float(sequence_cross_entropy(logits, target, observed)) == pytest.approx(summed)


def test_the_tables_figure_is_summed_over_frames_and_pixels_and_averaged_over_sequences():
    logits = torch.zeros(3, 10, 1, 8, 8)
    target = torch.rand(3, 10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    observed = torch.ones_like(target, dtype=torch.bool)
    summed = sequence_cross_entropy(logits, target, observed)
    assert float(summed) == pytest.approx(10 * 64 * math.log(2.0), rel=1e-5)
    observed[1:] = False  # what one sequence adds is its own sum, and sequences count alike
    summed = sequence_cross_entropy(logits, target, observed)
    assert float(summed) == pytest.approx(10 * 64 * math.log(2.0) / 3, rel=1e-5)


def test_cross_entropy_stands_logits_of_any_size():
    logits = frames([[1e4, -1e4, 1e4, -1e4]]).requires_grad_()
    target = frames([[1.0, 0.0, 0.0, 1.0]])
    loss = get_loss("cross-entropy")(logits, target, target >= 0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4 / 4)
    assert logits.grad.flatten().tolist() == [0.0, 0.0, 0.25, -0.25]


def test_cross_entropy_has_a_lower_bound_where_the_target_is_above_1():
    """640 mm/h is 1.2 on the logarithmic scale."""
    heavy = LOG.encode(torch.full((1, 1, 1, 2, 2), 640.0))
    assert (heavy > 1).all()
    loss = get_loss("cross-entropy")(torch.full_like(heavy, 1e3), heavy, heavy > 0)
    assert float(loss) == 0.0
