"""ConvLSTM (Shi et al. 2015, "Convolutional LSTM Network: A Machine Learning Approach for
Precipitation Nowcasting", NeurIPS 28).

Notable features:
- separate kernels for input-to-state (`input_kernel`) and state-to-state (`state_kernel`), both odd
  and padded by k//2, so the size never changes
- peepholes, one weight per channel: old cell to the input and forget gates, new cell to the output;
  without them it is common code's variant: one convolution over cat(x, h), split into i, f, o, g
- patching, encoder–forecaster and readout: `models.networks.encoder_forecaster.Flat`; with strided
  convolutions between the layers, which cost far less memory: `Strided`
- a whole layer as one autograd function (`models.networks.convlstm_function`)

Parameter counts are the paper's to the last one (Table 1): 5×5, 128-64-64, patch 4 has 7,585,296.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.convlstm_function import convlstm_layer
from models.networks.encoder_forecaster import (
    Flat,
    MakeLayer,
    RecurrentLayer,
    State,
    Strided,
    per_layer,
    same_size,
)

Compute = Literal["reference", "exact", "exact-remat", "bf16", "bf16-remat"]
"""How a layer is computed.

reference   timestep by timestep, as the equations stand, float32
exact       the whole layer as one autograd function, float32: faster, equal to rounding
exact-remat …which keeps only H and C for the backward pass and computes the gates again
bf16        …in bfloat16 with a float32 cell state: fastest, within 1e-2
bf16-remat  …and least memory
"""


class ConvLSTMLayer(RecurrentLayer):
    """One ConvLSTM layer (Shi et al. 2015, equation 3); ∗ convolution, ∘ elementwise product:

    i  = σ(W_xi ∗ X + W_hi ∗ H + W_ci ∘ C + b_i)
    f  = σ(W_xf ∗ X + W_hf ∗ H + W_cf ∘ C + b_f)
    C' = f ∘ C + i ∘ tanh(W_xc ∗ X + W_hc ∗ H + b_c)
    o  = σ(W_xo ∗ X + W_ho ∗ H + W_co ∘ C' + b_o)
    H' = o ∘ tanh(C')

    Gates lie in the order i, f, o, g along the channels; g is the new cell's content.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        input_kernel: int = 3,
        state_kernel: int = 3,
        peephole: bool = True,
        compute: Compute = "exact",
    ) -> None:
        super().__init__()
        if compute not in get_args(Compute):
            raise ValueError(f"compute must be one of {get_args(Compute)}, not {compute!r}")
        self.hidden_channels, self.compute = hidden_channels, compute
        gates = 4 * hidden_channels
        self.state_conv = same_size(hidden_channels, gates, state_kernel)
        self.input_conv = (
            same_size(in_channels, gates, input_kernel, bias=False) if in_channels else None
        )
        self.peepholes = nn.Parameter(torch.zeros(3, hidden_channels)) if peephole else None

    def zero_state(self, inputs: Float[Tensor, "T B C h w"]) -> State:
        """H = C = 0."""
        return super().zero_state(inputs) * 2

    def convolve_inputs(self, inputs: Float[Tensor, "T B C h w"]) -> Float[Tensor, "T B G h w"]:
        """W_x ∗ X."""
        assert self.input_conv is not None
        return self.input_conv(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    def step(self, convolved: Float[Tensor, "B G h w"] | None, state: State) -> State:
        """Equation 3."""
        hidden, cell = state
        gates = self.state_conv(hidden)
        if convolved is not None:
            gates = gates + convolved
        i, f, o, g = gates.chunk(4, dim=1)
        if self.peepholes is not None:
            w_ci, w_cf, w_co = self.peepholes[:, :, None, None]
            i, f = i + w_ci * cell, f + w_cf * cell
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        if self.peepholes is not None:
            o = o + w_co * cell
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def forward(
        self, inputs: Float[Tensor, "T B C h w"] | None, state: State | None, timesteps: int
    ) -> tuple[Float[Tensor, "T B c h w"], State]:
        """All timesteps: the hidden states, and the last H and C."""
        if self.compute == "reference":
            return super().forward(inputs, state, timesteps)
        hidden, last_hidden, last_cell = convlstm_layer(
            inputs,
            state,
            self.input_conv.weight if self.input_conv is not None else None,
            self.state_conv.weight,
            self.bias,
            self.peepholes,
            timesteps,
            rematerialise=self.compute.endswith("remat"),
        )
        return hidden, (last_hidden, last_cell)

    @property
    def bias(self) -> Float[Tensor, " G"]:
        """b of all gates."""
        assert self.state_conv.bias is not None
        return self.state_conv.bias

    @torch.no_grad()
    def load_concatenated(
        self, weight: Float[Tensor, "G Cc k k"], bias: Float[Tensor, " G"]
    ) -> None:
        """Take over the weights of one convolution over cat(x, h), split into i, f, o, g."""
        assert self.input_conv is not None
        of_input, of_state = weight.split(
            [self.input_conv.in_channels, self.hidden_channels], dim=1
        )
        self.input_conv.weight.copy_(of_input)
        self.state_conv.weight.copy_(of_state)
        self.bias.copy_(bias)


def layers(
    hidden_channels: Sequence[int],
    input_kernel: int | Sequence[int],
    state_kernel: int | Sequence[int],
    peephole: bool,
    compute: Compute,
) -> MakeLayer:
    """What makes each layer of a stack."""
    input_kernels = per_layer("input_kernel", input_kernel, len(hidden_channels))
    state_kernels = per_layer("state_kernel", state_kernel, len(hidden_channels))

    def layer(below: int, place: int) -> ConvLSTMLayer:
        kernels = input_kernels[place], state_kernels[place]
        return ConvLSTMLayer(below, hidden_channels[place], *kernels, peephole, compute)

    return layer


def precision(compute: Compute) -> torch.dtype | None:
    """What hidden states are kept in; None for that of the frames."""
    return torch.bfloat16 if compute.startswith("bf16") else None


class ConvLSTM(Flat):
    """The encoder–forecaster of Shi et al. (2015): past frames in, future frames out.

    Parameters
    ----------
    in_channels : channels of an input frame
    out_channels : channels of a forecast frame; as many as come in by default
    hidden_channels : channels of each layer's states, first layer first
    input_kernel, state_kernel : odd kernel sizes, one for all layers or one each
    patch_size : side of the square patches, 1 for none
    peephole : whether the gates see the cell
    compute : see `Compute`
    """

    paper = "Shi et al. 2015"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        hidden_channels: Sequence[int] = (64, 64),
        input_kernel: int | Sequence[int] = 3,
        state_kernel: int | Sequence[int] = 3,
        patch_size: int = 4,
        peephole: bool = True,
        compute: Compute = "exact",
    ) -> None:
        layer = layers(hidden_channels, input_kernel, state_kernel, peephole, compute)
        out_channels = in_channels if out_channels is None else out_channels
        dtype = precision(compute)
        super().__init__(layer, in_channels, out_channels, hidden_channels, patch_size, dtype=dtype)


class StridedConvLSTM(Strided):
    """ConvLSTM layers with strided convolutions between them (Shi et al. 2017, figure 1).

    The answer to what full-size states cost: the upper layers' states are small.

    Parameters
    ----------
    hidden_channels, strides, sampled_channels : of each layer, lowest first: see `Strided`
    input_kernel, state_kernel, peephole, compute : see `ConvLSTM`
    """

    paper = "Shi et al. 2015, 2017"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        hidden_channels: Sequence[int] = (64, 64, 64),
        strides: Sequence[int] = (4, 2, 2),
        sampled_channels: Sequence[int] = (8, 64, 64),
        input_kernel: int | Sequence[int] = 3,
        state_kernel: int | Sequence[int] = 3,
        peephole: bool = True,
        compute: Compute = "exact",
    ) -> None:
        layer = layers(hidden_channels, input_kernel, state_kernel, peephole, compute)
        out_channels = in_channels if out_channels is None else out_channels
        super().__init__(
            layer,
            in_channels,
            out_channels,
            hidden_channels,
            strides,
            sampled_channels,
            precision(compute),
        )
