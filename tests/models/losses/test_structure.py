"""Gradient difference and SSIM, by hand."""

import pytest
import torch

from models.losses import get_loss
from models.losses.structure import gradient_difference, ssim
from pipelines.errors import SquallError


def frames(rows):
    """One frame of one sequence."""
    return torch.tensor([[[rows]]], dtype=torch.float32)


def everywhere(field):
    return torch.ones_like(field, dtype=torch.bool)


def random_frames(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


TARGET = frames([[0.0, 1.0, 1.0], [0.0, 0.0, 4.0]])
PREDICTION = frames([[0.0, 0.5, 0.0], [0.0, 1.0, 2.0]])
# Vertical: |0−0|, |1−0|, |1−4| against 0, 0.5, 2. Horizontal: 1, 0, 0, 4 against 0.5, 0.5, 1, 1.


@pytest.mark.parametrize(
    ("alpha", "vertical", "horizontal"),
    [(1.0, 0 + 0.5 + 1, 0.5 + 0.5 + 1 + 3), (2.0, 0.25 + 1, 0.25 + 0.25 + 1 + 9)],
)
def test_gradient_difference_by_hand(alpha, vertical, horizontal):
    loss = gradient_difference(PREDICTION, TARGET, everywhere(TARGET), alpha=alpha)
    assert float(loss) == pytest.approx(vertical / 3 + horizontal / 4)


@pytest.mark.parametrize(
    ("missing", "vertical", "horizontal"),
    [((1, 2), (0 + 0.5) / 2, (0.5 + 0.5 + 1) / 3), ((0, 1), (0 + 1) / 2, (1 + 3) / 2)],
)
def test_gradient_differences_are_of_pairs_that_are_both_observed(missing, vertical, horizontal):
    observed = everywhere(TARGET)
    observed[0, 0, 0][missing] = False
    loss = gradient_difference(PREDICTION, TARGET, observed)
    assert float(loss) == pytest.approx(vertical + horizontal)


def test_gradient_difference_does_not_see_an_offset_nor_the_sign_of_a_gradient():
    observed = everywhere(TARGET)
    assert float(gradient_difference(TARGET + 0.25, TARGET, observed)) == 0.0
    assert float(gradient_difference(1 - TARGET, TARGET, observed)) == 0.0


def test_a_single_pixel_has_no_gradient_to_differ():
    pixel = torch.ones(1, 1, 1, 1, 1)
    assert float(gradient_difference(pixel, 2 * pixel, everywhere(pixel))) == 0.0


def test_ssim_of_even_frames_is_that_of_their_luminance():
    x, y = torch.full((1, 2, 1, 12, 12), 0.5), torch.full((1, 2, 1, 12, 12), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    got = ssim(x, y, everywhere(x))
    assert got.shape == (1, 2)
    torch.testing.assert_close(got, torch.full((1, 2), expected), rtol=1e-4, atol=0)
    assert float(get_loss("ssim")(x, y, everywhere(x))) == pytest.approx(1 - expected, rel=1e-3)


def test_ssim_of_a_frame_with_itself_is_1_and_with_its_negative_below_0():
    x = random_frames(1, 1, 1, 16, 16)
    assert float(ssim(x, x, everywhere(x))) == pytest.approx(1.0)
    assert float(ssim(1 - x, x, everywhere(x))) < 0


def test_ssim_goes_both_ways():
    x, y = random_frames(2, 3, 1, 13, 14), random_frames(2, 3, 1, 13, 14, seed=1)
    torch.testing.assert_close(ssim(x, y, everywhere(x)), ssim(y, x, everywhere(x)))


def test_ssim_of_what_was_observed_is_that_of_a_frame_which_is_only_that():
    x, y = random_frames(2, 2, 1, 20, 22), random_frames(2, 2, 1, 20, 22, seed=1)
    observed = torch.zeros_like(x, dtype=torch.bool)
    observed[..., 3:17, 2:20] = True
    part = [field[..., 3:17, 2:20] for field in (x, y, observed)]
    torch.testing.assert_close(ssim(x, y, observed), ssim(*part))
    loss = get_loss("ssim")
    torch.testing.assert_close(loss(x, y, observed), loss(*part))


def test_a_frame_without_a_wholly_observed_window_has_no_ssim():
    x = random_frames(1, 2, 1, 14, 14)
    observed = everywhere(x)
    observed[0, 1, 0, 7, 7] = False  # every window of 11 pixels holds it
    got = ssim(x, x, observed)
    assert got.isnan().tolist() == [[False, True]]
    assert float(get_loss("ssim")(1 - x, x, observed)) == pytest.approx(
        1 - float(ssim(1 - x, x, observed)[0, 0])
    )


@pytest.mark.parametrize("shape", [(10, 20), (20, 10)])
def test_a_frame_smaller_than_ssims_window_is_an_error(shape):
    x = torch.zeros(1, 1, 1, *shape)
    with pytest.raises(SquallError, match=f"found {shape[0]}×{shape[1]} pixels; expected at least"):
        ssim(x, x, everywhere(x))
