"""ConvGRU and TrajGRU (Shi et al. 2017, "Deep Learning for Precipitation Nowcasting: A Benchmark
and A New Model", NeurIPS 30).

Notable features:
- one state, H; its update is a leaky ReLU, not a tanh
- TrajGRU looks for each pixel's past not around the pixel but where it came from: a small network
  gives L flows, along which H is warped; the L warped states are put together by 1×1 convolutions
- strided convolutions between the layers (`models.networks.encoder_forecaster.Strided`)

Sizes by default are those of the paper's HKO-7 networks: hidden states of 64, 192 and 192 channels
at a 5th, 15th and 30th of the frames' resolution.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.encoder_forecaster import (
    RecurrentLayer,
    State,
    Strided,
    leaky,
    per_layer,
    same_size,
)

FLOW_CHANNELS, FLOW_KERNEL = 32, 5
"""Hidden layer of the network that gives the flows (section 3.3)."""


class ConvGRULayer(RecurrentLayer):
    """One ConvGRU layer (equation 2); f leaky ReLU:

    Z  = σ(W_xz ∗ X + W_hz ∗ H + b_z)
    R  = σ(W_xr ∗ X + W_hr ∗ H + b_r)
    H' = f(W_xh ∗ X + R ∘ (W_hh ∗ H + b_h))
    H  = (1 − Z) ∘ H' + Z ∘ H

    Z, R and H' lie in this order along the channels.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, input_kernel: int, state_kernel: int
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        self.input_conv = _input_conv(in_channels, 3 * hidden_channels, input_kernel)
        self.state_conv = same_size(hidden_channels, 3 * hidden_channels, state_kernel)

    def convolve_inputs(self, inputs: Float[Tensor, "T B C h w"]) -> Float[Tensor, "T B G h w"]:
        """W_x ∗ X."""
        assert self.input_conv is not None
        return self.input_conv(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    def step(self, convolved: Float[Tensor, "B G h w"] | None, state: State) -> State:
        """Equation 2."""
        (hidden,) = state
        return (update(convolved, self.state_conv(hidden), hidden),)


class TrajGRULayer(RecurrentLayer):
    """One TrajGRU layer (equation 3), with L links; γ the network that gives the flows:

    U, V = γ(X, H)
    Z  = σ(W_xz ∗ X + Σ_l W_hz^l ∗ warp(H, U_l, V_l) + b_z), R likewise
    H' = f(W_xh ∗ X + R ∘ (Σ_l W_hh^l ∗ warp(H, U_l, V_l) + b_h))
    H  = (1 − Z) ∘ H' + Z ∘ H

    γ is f(W_xγ ∗ X + W_hγ ∗ H + b) followed by one convolution; W^l are 1×1. Warped channels lie
    one after the other, each in all its links.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, input_kernel: int, links: int
    ) -> None:
        super().__init__()
        self.hidden_channels, self.links = hidden_channels, links
        self.input_conv = _input_conv(in_channels, 3 * hidden_channels, input_kernel)
        self.flow_input_conv = _input_conv(in_channels, FLOW_CHANNELS, FLOW_KERNEL)
        self.flow_state_conv = same_size(hidden_channels, FLOW_CHANNELS, FLOW_KERNEL)
        self.flow_conv = same_size(FLOW_CHANNELS, 2 * links, FLOW_KERNEL)
        self.state_conv = same_size(links * hidden_channels, 3 * hidden_channels, 1)

    def convolve_inputs(self, inputs: Float[Tensor, "T B C h w"]) -> Float[Tensor, "T B G h w"]:
        """W_x ∗ X and W_xγ ∗ X."""
        assert self.input_conv is not None
        assert self.flow_input_conv is not None
        frames = inputs.flatten(0, 1)
        convolved = torch.cat([self.input_conv(frames), self.flow_input_conv(frames)], dim=1)
        return convolved.unflatten(0, inputs.shape[:2])

    def step(self, convolved: Float[Tensor, "B G h w"] | None, state: State) -> State:
        """Equation 3."""
        (hidden,) = state
        of_flow = self.flow_state_conv(hidden)
        of_state = None
        if convolved is not None:
            of_state, of_input = convolved.split([3 * self.hidden_channels, FLOW_CHANNELS], dim=1)
            of_flow = of_flow + of_input
        flows = self.flow_conv(leaky(of_flow)).unflatten(1, (self.links, 2))
        warped = warp(hidden, flows).flatten(1, 2)
        return (update(of_state, self.state_conv(warped), hidden),)


def update(
    of_input: Float[Tensor, "B G h w"] | None,
    of_state: Float[Tensor, "B G h w"],
    hidden: Float[Tensor, "B c h w"],
) -> Float[Tensor, "B c h w"]:
    """The new hidden state from what input and old state give to Z, R and H'."""
    state_z, state_r, state_h = of_state.chunk(3, dim=1)
    input_z, input_r, input_h = (0, 0, 0) if of_input is None else of_input.chunk(3, dim=1)
    z = torch.sigmoid(input_z + state_z)
    r = torch.sigmoid(input_r + state_r)
    new = leaky(input_h + r * state_h)
    return (1 - z) * new + z * hidden


def warp(
    field: Float[Tensor, "B c h w"], flows: Float[Tensor, "B links 2 h w"]
) -> Float[Tensor, "B c links h w"]:
    """The field as seen from (y + V, x + U), bilinearly, zero outside (equation 4), for each link.

    `flows` are U (along x) and V (along y), in pixels.
    """
    height, width = field.shape[-2:]
    y = torch.arange(height, device=flows.device, dtype=flows.dtype)[:, None] + flows[:, :, 1]
    x = torch.arange(width, device=flows.device, dtype=flows.dtype) + flows[:, :, 0]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    below_each_other = grid.flatten(1, 2)  # one call for all links
    warped = F.grid_sample(field, below_each_other, padding_mode="zeros", align_corners=False)
    return warped.unflatten(2, (flows.shape[1], height))


class ConvGRU(Strided):
    """The ConvGRU encoder–forecaster: past frames in, future frames out.

    Parameters
    ----------
    in_channels, out_channels : of a frame; as many come out as go in by default
    hidden_channels, strides, sampled_channels : of each layer, lowest first: see `Strided`
    input_kernel, state_kernel : odd kernel sizes, one for all layers or one each
    """

    paper = "Shi et al. 2017"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        hidden_channels: Sequence[int] = (64, 192, 192),
        strides: Sequence[int] = (5, 3, 2),
        sampled_channels: Sequence[int] = (8, 192, 192),
        input_kernel: int | Sequence[int] = 3,
        state_kernel: int | Sequence[int] = (5, 5, 3),
    ) -> None:
        input_kernels = per_layer("input_kernel", input_kernel, len(hidden_channels))
        state_kernels = per_layer("state_kernel", state_kernel, len(hidden_channels))

        def layer(below: int, place: int) -> ConvGRULayer:
            kernels = input_kernels[place], state_kernels[place]
            return ConvGRULayer(below, hidden_channels[place], *kernels)

        out = in_channels if out_channels is None else out_channels
        super().__init__(layer, in_channels, out, hidden_channels, strides, sampled_channels)


class TrajGRU(Strided):
    """The TrajGRU encoder–forecaster: past frames in, future frames out.

    Parameters
    ----------
    links : flows of each layer, or of all
    other parameters : see `ConvGRU`
    """

    paper = "Shi et al. 2017"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        hidden_channels: Sequence[int] = (64, 192, 192),
        strides: Sequence[int] = (5, 3, 2),
        sampled_channels: Sequence[int] = (8, 192, 192),
        input_kernel: int | Sequence[int] = 3,
        links: int | Sequence[int] = (13, 13, 9),
    ) -> None:
        input_kernels = per_layer("input_kernel", input_kernel, len(hidden_channels))
        of_layers = per_layer("links", links, len(hidden_channels))

        def layer(below: int, place: int) -> TrajGRULayer:
            options = input_kernels[place], of_layers[place]
            return TrajGRULayer(below, hidden_channels[place], *options)

        out = in_channels if out_channels is None else out_channels
        super().__init__(layer, in_channels, out, hidden_channels, strides, sampled_channels)


def _input_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d | None:
    """None for a layer without input; its bias is the state's."""
    return same_size(in_channels, out_channels, kernel, bias=False) if in_channels else None
