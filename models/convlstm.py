"""ConvLSTM encoder–forecaster (Shi et al. 2015, "Convolutional LSTM Network: A Machine Learning
Approach for Precipitation Nowcasting", NeurIPS 28).

Notable features:
- frames become 3-D tensors by patching: p×p pixels become p² channels (space to depth), so states
  are p² times smaller in area; sizes that p does not divide are padded, and the forecast cropped
- separate kernels for input-to-state (`input_kernel`) and state-to-state (`state_kernel`), both odd
  and padded by k//2, so the size never changes
- peepholes, one weight per channel: old cell to the input and forget gates, new cell to the output
- the encoder's states initialise the forecaster; the forecaster's first layer has no input
- the hidden states of all forecaster layers are concatenated and read out by one 1×1 convolution
- the input-to-state convolution of all timesteps runs at once, outside the loop

Parameter counts are the paper's to the last one (Table 1): 5×5, 128-64-64, patch 4 has 7,585,296.

Shapes: B batch, T past frames, L lead times, C channels, H×W pixels; c hidden
channels, h×w patches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

State = tuple[Float[Tensor, "B c h w"], Float[Tensor, "B c h w"]]
"""Hidden state H and cell state C of one layer."""


class ConvLSTMCell(nn.Module):
    """One ConvLSTM layer (Shi et al. 2015, equation 3); ∗ convolution, ∘ elementwise product:

    i  = σ(W_xi ∗ X + W_hi ∗ H + W_ci ∘ C + b_i)
    f  = σ(W_xf ∗ X + W_hf ∗ H + W_cf ∘ C + b_f)
    C' = f ∘ C + i ∘ tanh(W_xc ∗ X + W_hc ∗ H + b_c)
    o  = σ(W_xo ∗ X + W_ho ∗ H + W_co ∘ C' + b_o)
    H' = o ∘ tanh(C')

    Gates lie in the order i, f, g, o along the channels; g is the new cell's content.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, input_kernel: int, state_kernel: int
    ) -> None:
        super().__init__()
        for name, kernel in (("input_kernel", input_kernel), ("state_kernel", state_kernel)):
            if kernel % 2 == 0:
                raise ValueError(f"{name} must be odd so that the size never changes, not {kernel}")
        self.hidden_channels = hidden_channels
        gates = 4 * hidden_channels
        self.state_conv = nn.Conv2d(
            hidden_channels, gates, state_kernel, padding=state_kernel // 2, bias=True
        )
        self.input_conv = (
            nn.Conv2d(in_channels, gates, input_kernel, padding=input_kernel // 2, bias=False)
            if in_channels
            else None
        )
        self.peephole = nn.Parameter(torch.zeros(3, hidden_channels))

    def convolve_inputs(self, inputs: Float[Tensor, "B T C h w"]) -> Float[Tensor, "B T gates h w"]:
        """W_x ∗ X of all timesteps in one convolution."""
        assert self.input_conv is not None
        return self.input_conv(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    def forward(self, convolved: Float[Tensor, "B gates h w"] | None, state: State) -> State:
        """One timestep; `convolved` is W_x ∗ X, None for a layer without input."""
        hidden, cell = state
        gates = self.state_conv(hidden)
        if convolved is not None:
            gates = gates + convolved
        input_gate, forget_gate, content, output_gate = gates.chunk(4, dim=1)
        w_ci, w_cf, w_co = self.peephole[:, :, None, None]
        input_gate = torch.sigmoid(input_gate + w_ci * cell)
        forget_gate = torch.sigmoid(forget_gate + w_cf * cell)
        cell = forget_gate * cell + input_gate * torch.tanh(content)
        output_gate = torch.sigmoid(output_gate + w_co * cell)
        return output_gate * torch.tanh(cell), cell


class ConvLSTM(nn.Module):
    """Past frames in, future frames out.

    Parameters
    ----------
    in_channels : channels of an input frame
    out_channels : channels of a forecast frame; as many as come in by default
    hidden_channels : channels of each layer's states, first layer first
    input_kernel, state_kernel : odd kernel sizes, one for all layers or one each
    patch_size : side of the square patches, 1 for none
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: Sequence[int] = (64, 64),
        input_kernel: int | Sequence[int] = 3,
        state_kernel: int | Sequence[int] = 3,
        patch_size: int = 4,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        layers = len(hidden_channels)
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        input_kernels = _per_layer("input_kernel", input_kernel, layers)
        state_kernels = _per_layer("state_kernel", state_kernel, layers)

        def stack(first: int) -> nn.ModuleList:
            """Layers on top of each other, the lowest one taking `first` channels."""
            inputs = [first, *hidden_channels[:-1]]
            return nn.ModuleList(
                map(ConvLSTMCell, inputs, hidden_channels, input_kernels, state_kernels)
            )

        self.encoder = stack(first=in_channels * patch_size**2)
        self.forecaster = stack(first=0)
        self.readout = nn.Conv2d(sum(hidden_channels), self.out_channels * patch_size**2, 1)

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames."""
        height, width = past.shape[-2:]
        p = self.patch_size
        past = F.pad(past.flatten(0, 1), (0, -width % p, 0, -height % p)).unflatten(
            0, past.shape[:2]
        )
        encoded = F.pixel_unshuffle(past, p)
        states: list[State] = []
        for cell in self.encoder:
            encoded, state = run_layer(cell, encoded, zero_state(cell, encoded), past.shape[1])
            states.append(state)
        outputs: list[Tensor] = []
        for cell, state in zip(self.forecaster, states, strict=True):
            below = outputs[-1] if outputs else None
            outputs.append(run_layer(cell, below, state, lead_times)[0])
        hidden = torch.cat(outputs, dim=2)
        patches = self.readout(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        return F.pixel_shuffle(patches, p)[..., :height, :width]


def run_layer(
    cell: nn.Module, inputs: Float[Tensor, "B T C h w"] | None, state: State, timesteps: int
) -> tuple[Float[Tensor, "B T c h w"], State]:
    """One layer over all timesteps: its hidden states, and its last state."""
    assert isinstance(cell, ConvLSTMCell)
    convolved = [None] * timesteps if inputs is None else cell.convolve_inputs(inputs).unbind(1)
    hidden = []
    for timestep in convolved:
        state = cell(timestep, state)
        hidden.append(state[0])
    return torch.stack(hidden, dim=1), state


def zero_state(cell: nn.Module, inputs: Float[Tensor, "B T C h w"]) -> State:
    """Before the first frame nothing is known: H = C = 0."""
    assert isinstance(cell, ConvLSTMCell)
    batch, _, _, height, width = inputs.shape
    zeros = inputs.new_zeros(batch, cell.hidden_channels, height, width)
    return zeros, zeros


def _per_layer(name: str, kernel: int | Sequence[int], layers: int) -> Sequence[int]:
    kernels = [kernel] * layers if isinstance(kernel, int) else list(kernel)
    if len(kernels) != layers:
        raise ValueError(f"{name} needs one kernel for each of {layers} layers, got {kernels}")
    return kernels
