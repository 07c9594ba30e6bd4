"""The continuous ranked probability score of an ensemble.

Shapes: B batch, L lead times, M members, H×W pixels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.losses.pixels import observed_mean


def crps(
    prediction: Float[Tensor, "B L M H W"],
    target: Float[Tensor, "B L 1 H W"],
    observed: Bool[Tensor, "B L 1 H W"],
    *,
    fair: bool = True,
) -> Float[Tensor, ""]:
    """Mean CRPS of members x_1 … x_M against y (Gneiting and Raftery 2007, equations 20–21):

    1/M Σ_i |x_i − y| − 1/(2K) Σ_i Σ_j |x_i − x_j|

    with K = M² for the ensemble as the whole distribution; fair (Ferro 2014), K = M(M − 1), for the
    ensemble as a sample of one, so that the score does not depend on how many members were drawn.
    Of sorted members the double sum is 2 Σ_i (2i − M − 1) x_(i): O(M log M), not O(M²). One member
    has no spread, and its CRPS is its absolute error.

    The fair score leaves one member free where all others are equal; a small part of the other
    keeps it in place: ``0.95*crps+0.05*crps-standard`` (Lang et al. 2024, almost fair CRPS).
    """
    members = prediction.shape[2]
    prediction, target = prediction.where(observed, 0.0), target.where(observed, 0.0)
    error = (prediction - target).abs().mean(dim=2, keepdim=True)
    ranks = torch.arange(1 - members, members, 2, dtype=target.dtype, device=target.device)
    ordered = prediction.sort(dim=2).values * ranks[:, None, None]
    pairs = members * (members - 1) if fair else members**2
    return observed_mean(error - ordered.sum(dim=2, keepdim=True) / max(pairs, 1), observed)
