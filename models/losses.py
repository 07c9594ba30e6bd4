"""Losses over observed pixels. One that was not observed has no say, whatever is predicted there.

All take prediction and target in normalised units and the observed mask, and give one number: the
mean over observed pixels. Where none is observed the loss is 0, with a gradient of 0.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from pipelines.errors import UnknownNameError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_mse(
    prediction: Float[Tensor, "..."], target: Float[Tensor, "..."], observed: Bool[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Mean squared error."""
    return _observed_mean(_error(prediction, target, observed) ** 2, observed)


def masked_mae(
    prediction: Float[Tensor, "..."], target: Float[Tensor, "..."], observed: Bool[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return _observed_mean(_error(prediction, target, observed).abs(), observed)


def _error(
    prediction: Float[Tensor, "..."], target: Float[Tensor, "..."], observed: Bool[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Prediction minus target, 0 where not observed: masked first, so NaN there has no gradient."""
    return (prediction - target).where(observed, 0.0)


def _observed_mean(error: Float[Tensor, "..."], observed: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    return error.sum() / observed.sum().clamp(min=1)


LOSSES: dict[str, Loss] = {"mse": masked_mse, "mae": masked_mae}


def get_loss(name: str) -> Loss:
    """The loss called `name`; an unknown one is an error that names the nearest."""
    if name not in LOSSES:
        raise UnknownNameError.of("loss", name, LOSSES)
    return LOSSES[name]
