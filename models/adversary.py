"""Adversarial training of a forecasting network (Goodfellow et al. 2014; Mathieu et al. 2016).

A discriminator D learns to tell an observed future from a forecast, both seen together with the
past; the network learns to forecast what D takes for observed. x past, y future, ŷ forecast
(Villegas et al. 2017, equations of L_disc and L_GAN):

L_disc = −log D([x, y]) − log(1 − D([x, ŷ]))
L_GAN  = −log D([x, ŷ])

MCNet adds 0.02·L_GAN to mean squared error and gradient difference; any network may.

Shapes: B batch, T past frames, L lead times, C channels, H×W pixels; K = T·C + L.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call

from models.losses.pixels import observed_mean
from pipelines.errors import SquallError

WIDTHS = (64, 128, 256, 512)
"""Channels of D's convolutions, first one first."""

NORMALISED = (1, 2)
"""Places of those that are followed by batch normalisation."""

SMALLEST = 9
"""Pixels a side. Each convolution halves it; were one place left where features are normalised, one
sequence would have no statistics."""

LEARNING_RATE, BETAS = 1e-4, (0.5, 0.999)
"""Adam's (Villegas et al. 2017, section 4)."""


class Discriminator(nn.Module):
    """D's logit: past and future frames, one above the other as channels, to one number.

    Four convolutions 5×5 with stride 2, each with a leaky ReLU, and one linear layer. The paper
    gives D's inputs and losses but no layers: these are those of the code its authors published,
    but for two, so that any size of frame will do. There the linear layer has a weight for each
    channel and place; here one for each channel, and logits are averaged over places. There the
    last convolution is normalised too, as are the middle ones; here not, as what is normalised over
    a batch has one average whether it was observed or forecast, and D would hardly learn.

    Batch statistics are the batch's own, always: nothing is kept from one batch to the next.

    Parameters
    ----------
    in_channels : K, of all frames together
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, width in enumerate(WIDTHS):
            normalised = place in NORMALISED  # its own shift stands for the convolution's bias
            layers.append(nn.Conv2d(in_channels, width, 5, 2, padding=2, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm2d(width, track_running_stats=False))
            layers.append(nn.LeakyReLU(0.2))
            in_channels = width
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(in_channels, 1)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, frames: Float[Tensor, "B K H W"]) -> Float[Tensor, " B"]:
        """The logit of each sequence: D = σ(logit).

        Raises `SquallError` where frames are too small.
        """
        rows, columns = frames.shape[-2:]
        if min(rows, columns) < SMALLEST:
            raise SquallError(
                "a frame is too small for adversarial training",
                found=f"{rows}×{columns} pixels",
                expected=f"at least {SMALLEST}×{SMALLEST}",
                remedy="take larger crops (train.crop), or train without (train.adversarial=0)",
            )
        logits: Tensor = self.linear(self.convolutions(frames).mean((-2, -1)))
        return logits.squeeze(1)


class Adversary:
    """A discriminator and its optimiser, beside a network that is trained.

    In a step, as the paper's authors do, D learns first, then the network; one forecast serves
    both. `learn` changes the weights that `term` goes through, so it cannot come between `term` and
    its backward pass:

        adversary.learn(past, future, forecast, observed)
        (loss + 0.02 * adversary.term(past, forecast, observed)).backward()

    Futures are 0 where not observed, observed ones and forecasts alike, so that such pixels have no
    say; a sequence whose future is observed nowhere does not count. Left out: the authors' code
    skips a step of the stronger of the two, which needs values back from the device.

    Parameters
    ----------
    in_channels : T·C + L
    wrap : makes of a discriminator one that learns with other workers' (DistributedDataParallel, or
        Ray Train's `prepare_model`); it may move it to a device

    Attributes
    ----------
    discriminator : the one that is not wrapped
    optimiser : Adam, over its weights
    """

    def __init__(
        self, in_channels: int, wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    ) -> None:
        self.discriminator = Discriminator(in_channels)
        self._wrapped = wrap(self.discriminator)
        self.optimiser = torch.optim.Adam(
            self.discriminator.parameters(), LEARNING_RATE, betas=BETAS
        )

    def term(
        self,
        past: Float[Tensor, "B T C H W"],
        forecast: Float[Tensor, "B L 1 H W"],
        observed: Bool[Tensor, "B L 1 H W"],
    ) -> Float[Tensor, ""]:
        """L_GAN, for the network to add to its loss with a weight: −log D([x, ŷ]), mean.

        `forecast` is normalised rain, as the future is. Its gradient goes to the forecast, not to
        D's weights; 0 where nothing is observed.
        """
        weights = {name: w.detach() for name, w in self.discriminator.named_parameters()}
        frames = joined(past, forecast, observed)
        return _mean(F.softplus(-functional_call(self.discriminator, weights, frames)), observed)

    def learn(
        self,
        past: Float[Tensor, "B T C H W"],
        future: Float[Tensor, "B L 1 H W"],
        forecast: Float[Tensor, "B L 1 H W"],
        observed: Bool[Tensor, "B L 1 H W"],
    ) -> Float[Tensor, ""]:
        """One step of D's; L_disc before it, mean. The forecast gets no gradient."""
        of_observed = self._wrapped(joined(past, future, observed))
        of_forecast = self._wrapped(joined(past, forecast.detach(), observed))
        loss = _mean(F.softplus(-of_observed) + F.softplus(of_forecast), observed)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["optimiser"])


def joined(
    past: Float[Tensor, "B T C H W"],
    future: Float[Tensor, "B L 1 H W"],
    observed: Bool[Tensor, "B L 1 H W"],
) -> Float[Tensor, "B K H W"]:
    """[x, y]: all frames as channels, the future's 0 where not observed."""
    future = future.to(past.dtype).where(observed, 0.0)
    return torch.cat([past.flatten(1, 2), future.flatten(1, 2)], dim=1)


def _mean(losses: Float[Tensor, " B"], observed: Bool[Tensor, "B L 1 H W"]) -> Float[Tensor, ""]:
    """Over sequences of which something is observed; 0 where there are none."""
    seen = observed.flatten(1).any(1)
    return observed_mean(losses.where(seen, 0.0), seen)
