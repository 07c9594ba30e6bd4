"""Losses pixel by pixel: squared and absolute error, both weighted by rain rate, cross-entropy.

Shapes: B batch, L lead times, C channels, H×W pixels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from models.normalisation import RainNormalisation
from pipelines.units import SCALE_MM_H

RAIN_WEIGHTS = ((2.0, 2.0), (5.0, 5.0), (10.0, 10.0), (30.0, 30.0))
"""Rain rate in mm/h and the weight from there on; below the first it is 1 (HKO-7)."""


def masked_mse(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> Float[Tensor, ""]:
    """Mean squared error."""
    return observed_mean(_error(prediction, target, observed) ** 2, observed)


def masked_mae(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return observed_mean(_error(prediction, target, observed).abs(), observed)


def balanced_mse(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
    *,
    normalisation: RainNormalisation,
) -> Float[Tensor, ""]:
    """B-MSE (Shi et al. 2017, section 3.3): mean of w(x)·(x − x̂)², w by `rain_weights`.

    Divided by the number of pixels and not by the sum of weights, as in the paper.
    """
    weights = rain_weights(target, normalisation)
    return observed_mean(weights * _error(prediction, target, observed) ** 2, observed)


def balanced_mae(
    prediction: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
    *,
    normalisation: RainNormalisation,
) -> Float[Tensor, ""]:
    """B-MAE (Shi et al. 2017, section 3.3): mean of w(x)·|x − x̂|, w by `rain_weights`."""
    weights = rain_weights(target, normalisation)
    return observed_mean(weights * _error(prediction, target, observed).abs(), observed)


def rain_weights(
    target: Float[Tensor, "..."], normalisation: RainNormalisation
) -> Float[Tensor, "..."]:
    """w(R) of HKO-7 (Shi et al. 2017): 1, and from 2, 5, 10, 30 mm/h on 2, 5, 10, 30.

    A rain rate within half a stored step of 0.01 mm/h of a threshold is at it: normalising and back
    is not exact, and a rain rate of just 2 mm/h is common.
    """
    rain_rate_mm_h = normalisation.decode(target)
    weights = torch.ones_like(target)
    for threshold_mm_h, weight in RAIN_WEIGHTS:
        reached = rain_rate_mm_h >= threshold_mm_h - SCALE_MM_H / 2
        weights = weights.masked_fill(reached, weight)
    return weights


def cross_entropy(
    logits: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy per pixel (Shi et al. 2015, section 4.1), P = σ(logits):

    −T·log P − (1 − T)·log(1 − P)

    A target above 1 counts as 1: beyond it there would be no lower bound.
    """
    return observed_mean(_cross_entropies(logits, target, observed), observed)


def sequence_cross_entropy(
    logits: Float[Tensor, "B L C H W"],
    target: Float[Tensor, "B L C H W"],
    observed: Bool[Tensor, "B L C H W"],
) -> Float[Tensor, ""]:
    """The figure of the paper's table 1: cross-entropy summed over a sequence, mean of sequences.

    Sequences count alike and only observed pixels add to a sum, so sequences have to be observed
    alike to be compared.
    """
    return _cross_entropies(logits, target, observed).sum() / logits.shape[0]


def observed_mean(
    errors: Float[Tensor, "*shape"], observed: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Mean of errors that are 0 where not observed; 0 where nothing is."""
    return errors.sum() / observed.sum().clamp(min=1)


def _error(
    prediction: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    observed: Bool[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Prediction minus target, 0 where not observed: masked first, so NaN there has no gradient."""
    return (prediction - target).where(observed, 0.0)


def _cross_entropies(
    logits: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    observed: Bool[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Of every pixel; 0 where not observed."""
    logits, target = logits.where(observed, 0.0), target.where(observed, 0.0).clamp(0, 1)
    errors = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return errors.where(observed, 0.0)
