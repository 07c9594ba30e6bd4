"""Losses of neighbourhoods: gradient difference, and structural similarity.

Shapes: B batch, L lead times, C channels, H×W pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from models.losses.pixels import observed_mean
from pipelines.errors import SquallError

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
"""SSIM's window in pixels, its standard deviation, and constants (Wang et al. 2004, section 3)."""


def gradient_difference(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
    *,
    alpha: float = 1.0,
    axes: tuple[int, ...] = (-2, -1),
) -> Float[Tensor, ""]:
    """Gradient difference loss (Mathieu et al. 2016, equation 6), Y target, Ŷ prediction:

    Σ_ij | |Y_ij − Y_i−1,j| − |Ŷ_ij − Ŷ_i−1,j| |^α + | |Y_i,j−1 − Y_ij| − |Ŷ_i,j−1 − Ŷ_ij| |^α

    as the mean over vertical pairs of neighbours plus that over horizontal ones, both observed.

    Parameters
    ----------
    alpha : exponent, at least 1
    axes : -2 for vertical pairs, -1 for horizontal ones
    """
    assert alpha >= 1, "below 1 equal gradients have an infinite derivative"
    prediction, target = prediction.where(observed, 0.0), target.where(observed, 0.0)
    loss = target.new_zeros(())
    for axis in axes:
        both = observed_pairs(observed, axis)
        difference = target.diff(dim=axis).abs() - prediction.diff(dim=axis).abs()
        loss = loss + observed_mean((difference.abs() ** alpha).where(both, 0.0), both)
    return loss


def observed_pairs(
    observed: Bool[Tensor, "B L C H W"], axis: int
) -> Bool[Tensor, "B L C pairs_y pairs_x"]:
    """Of which neighbours along an axis both are observed."""
    pairs = observed.shape[axis] - 1
    return observed.narrow(axis, 1, pairs) & observed.narrow(axis, 0, pairs)


def ssim_loss(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> Float[Tensor, ""]:
    """1 − mean SSIM of all wholly observed windows; see `ssim`. 0 where there is none."""
    similarity, whole = _ssim_of_windows(prediction, target, observed)
    return observed_mean((1 - similarity).where(whole, 0.0), whole)


def ssim(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> Float[Tensor, "B L"]:
    """Mean structural similarity of every frame (Wang et al. 2004, equation 13), at most 1:

    (2μ_x μ_y + C₁)(2σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)), C = (K·1)²

    with moments under an 11×11 Gaussian window of σ 1.5 that lies wholly in the frame, for values
    in [0, 1]. It is scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)``.

    Only windows that are wholly observed count: each is then equation 13 itself, whereas moments of
    what is left of a window would compare frames by different measures. NaN where there is none.

    Raises `SquallError` where a frame is smaller than the window.
    """
    similarity, whole = _ssim_of_windows(prediction, target, observed)
    return similarity.where(whole, 0.0).sum(dim=(2, 3, 4)) / whole.sum(dim=(2, 3, 4))


def _ssim_of_windows(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> tuple[Float[Tensor, "B L C H-10 W-10"], Bool[Tensor, "B L C H-10 W-10"]]:
    """SSIM of every window, and which windows are wholly observed."""
    rows, columns = observed.shape[-2:]
    if min(rows, columns) < WINDOW:
        raise SquallError(
            "a frame is too small for SSIM",
            found=f"{rows}×{columns} pixels",
            expected=f"at least {WINDOW}×{WINDOW}, its window",
            remedy="take larger crops (train.crop), or another loss",
        )
    x, y = prediction.where(observed, 0.0), target.where(observed, 0.0)
    mu_x, mu_y, mu_xx, mu_yy, mu_xy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    variances = (mu_xx - mu_x**2) + (mu_yy - mu_y**2)
    covariance = mu_xy - mu_x * mu_y
    similarity = ((2 * mu_x * mu_y + K1**2) * (2 * covariance + K2**2)) / (
        (mu_x**2 + mu_y**2 + K1**2) * (variances + K2**2)
    )
    return similarity, whole_windows(observed)


def whole_windows(observed: Bool[Tensor, "B L C H W"]) -> Bool[Tensor, "B L C H-10 W-10"]:
    """Which windows are wholly observed."""
    missing = F.max_pool2d((~observed).flatten(0, 1).float(), WINDOW, stride=1)
    return missing.unflatten(0, observed.shape[:2]) == 0


def _window_means(fields: Float[Tensor, "*fields H W"]) -> Float[Tensor, "*fields H-10 W-10"]:
    """Gaussian means of all windows: sums of shifted fields, down and then across.

    Not a convolution, which a GPU may round to ten bits: variances are small differences.
    """
    offsets = [k - WINDOW // 2 for k in range(WINDOW)]
    gaussian = [math.exp(-(offset**2) / (2 * SIGMA**2)) for offset in offsets]
    for axis in (-2, -1):
        size = fields.shape[axis] - WINDOW + 1
        means = torch.zeros_like(fields.narrow(axis, 0, size))
        for k in range(WINDOW):
            weight = gaussian[k] / sum(gaussian)
            means = torch.add(means, fields.narrow(axis, k, size), alpha=weight)
        fields = means
    return fields
