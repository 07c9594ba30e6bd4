"""Losses by name. A pixel that was not observed has no say, whatever is predicted there.

All take what a network put out, the target in normalised units and the observed mask, and give one
number: a mean over observed pixels. Where none is observed it is 0, with a gradient of 0. No loss
reads a value back from the device or makes a shape of one, so a CUDA graph can hold it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.losses.ensemble import crps
from models.losses.pixels import (
    balanced_mae,
    balanced_mse,
    cross_entropy,
    masked_mae,
    masked_mse,
)
from models.losses.structure import (
    gradient_difference,
    observed_pairs,
    ssim_loss,
    whole_windows,
)
from models.normalisation import RainNormalisation
from pipelines.errors import SquallError, UnknownNameError

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": masked_mse,
    "mae": masked_mae,
    "b-mse": balanced_mse,
    "b-mae": balanced_mae,
    "cross-entropy": cross_entropy,
    "gdl": gradient_difference,
    "ssim": ssim_loss,
    "crps": crps,
    "crps-standard": partial(crps, fair=False),
}


class Part(NamedTuple):
    """A mean that a loss is made of, and what it is the mean over, from the observed mask."""

    mean: Callable[..., Tensor]
    over: Callable[[Tensor], Tensor]


def _pixels(observed: Tensor) -> Tensor:
    return observed


PARTS: dict[str, tuple[Part, ...]] = {
    **{name: (Part(loss, _pixels),) for name, loss in LOSSES.items()},
    "gdl": tuple(
        Part(partial(gradient_difference, axes=(axis,)), partial(observed_pairs, axis=axis))
        for axis in (-2, -1)
    ),
    "ssim": (Part(ssim_loss, whole_windows),),
}
"""What each loss is the sum of."""
BALANCED = {"b-mse", "b-mae"}
"""Those that weight by rain rate in mm/h."""
OF_LOGITS = {"cross-entropy"}
"""Those that take logits; the others take normalised rain."""
OF_ENSEMBLES = {"crps", "crps-standard"}
"""Those that take members as channels; the others take one channel."""

LOG = RainNormalisation("log")
LOGIT_MARGIN = 1e-3
"""How far from 0 and 1 normalised rain is kept where its logit is taken."""


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses, and what it takes a network's output for.

    Attributes
    ----------
    terms : weight and name of each loss
    normalisation : the scale of the target
    """

    terms: tuple[tuple[float, str], ...]
    normalisation: RainNormalisation = LOG

    def __call__(
        self,
        output: Float[Tensor, "B L M H W"],
        target: Float[Tensor, "B L C H W"],
        observed: Bool[Tensor, "B L C H W"],
        shares: Float[Tensor, " part"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a network's output, in the target's precision.

        `shares` weight the means that it is the sum of: where a batch is dealt to several workers,
        each with its share of `counts`, the sum of their losses is that of the whole batch.
        """
        assert self.of_ensemble or output.shape == target.shape, (output.shape, target.shape)
        # Before the link as well: a sigmoid's gradient at NaN is NaN, whatever comes after.
        output = output.to(target.dtype).where(observed, 0.0)
        rain = self.to_rain(output)
        means = []
        for weight, name in self.terms:
            options = {"normalisation": self.normalisation} if name in BALANCED else {}
            taken = output if name in OF_LOGITS else rain
            means += [
                weight * part.mean(taken, target, observed, **options) for part in PARTS[name]
            ]
        parts = torch.stack(means)
        return (parts if shares is None else parts * shares.to(parts.dtype)).sum()

    def counts(self, observed: Bool[Tensor, "B L C H W"]) -> Float[Tensor, " part"]:
        """How many pixels, pairs or windows each mean that it is the sum of is over."""
        over = [part.over(observed) for _, name in self.terms for part in PARTS[name]]
        return torch.stack([counted.sum() for counted in over]).double()

    @property
    def of_logits(self) -> bool:
        """Whether a network trained with it puts out logits, not normalised rain."""
        return any(name in OF_LOGITS for _, name in self.terms)

    @property
    def of_ensemble(self) -> bool:
        """Whether a network trained with it puts out members."""
        return any(name in OF_ENSEMBLES for _, name in self.terms)

    def to_rain(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Normalised rain from the output of a network trained with this loss."""
        return torch.sigmoid(output) if self.of_logits else output

    def from_rain(self, rain: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What a network would have to put out for normalised rain, so as to be compared."""
        return torch.logit(rain, eps=LOGIT_MARGIN) if self.of_logits else rain


def get_loss(name: str, normalisation: RainNormalisation = LOG) -> Loss:
    """The loss called `name`, or a sum such as ``mse+0.5*gdl``.

    Raises `SquallError` for an unknown name, naming the nearest, and for a sum that makes no sense.

    >>> get_loss("mse + 0.5*gdl").terms
    ((1.0, 'mse'), (0.5, 'gdl'))
    """
    loss = Loss(tuple(_term(text) for text in name.split("+")), normalisation)
    if loss.of_ensemble and not all(term in OF_ENSEMBLES for _, term in loss.terms):
        raise SquallError(
            "losses of ensembles and of single forecasts do not go together",
            found=repr(name),
            expected=f"only {' and '.join(sorted(OF_ENSEMBLES))}, or none of them",
            remedy="leave one kind out",
        )
    return loss


def _term(text: str) -> tuple[float, str]:
    """`0.5*gdl` as weight and name."""
    weight, star, name = (part.strip() for part in text.rpartition("*"))
    if name not in LOSSES:
        raise UnknownNameError.of("loss", name, LOSSES)
    try:
        number = float(weight) if star else 1.0
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise SquallError(
            f"a weight that {name} cannot have",
            found=repr(weight),
            expected="a positive number, such as 0.5",
            remedy=f"write it as in 0.5*{name}",
        )
    return number, name
