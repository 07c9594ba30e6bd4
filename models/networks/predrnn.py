"""PredRNN (Wang et al. 2017, "PredRNN: Recurrent Neural Networks for Predictive Learning using
Spatiotemporal LSTMs", NeurIPS 30).

Notable features:
- besides each layer's cell C, one memory M that zigzags: up through the layers of a timestep, and
  from the top one to the lowest of the next
- a frame goes in, the next frame comes out; beyond the past, forecasts are fed back

As M ties the layers of a timestep together, time is the outer loop: there is no whole layer to run
at once, and so this is not an encoder–forecaster.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.encoder_forecaster import batch_first, same_size, time_first


class STLSTMLayer(nn.Module):
    """One spatiotemporal LSTM layer (equation 3); ∗ convolution, ∘ elementwise product:

    g  = tanh(W_xg ∗ X + W_hg ∗ H + b_g)        i, f likewise with σ
    C' = f ∘ C + i ∘ g
    g' = tanh(W'_xg ∗ X + W_mg ∗ M + b'_g)      i', f' likewise with σ
    M' = f' ∘ M + i' ∘ g'
    o  = σ(W_xo ∗ X + W_ho ∗ H + W_co ∗ C' + W_mo ∗ M' + b_o)
    H' = o ∘ tanh(W_1×1 ∗ [C', M'])

    Channels: of X's convolution g, i, f, g', i', f', o; of H's g, i, f, o; of M's g', i', f'.
    """

    def __init__(self, in_channels: int, hidden_channels: int, kernel: int) -> None:
        super().__init__()
        c = hidden_channels
        self.hidden_channels = c
        self.input_conv = same_size(in_channels, 7 * c, kernel)
        self.state_conv = same_size(c, 4 * c, kernel, bias=False)
        self.memory_conv = same_size(c, 3 * c, kernel, bias=False)
        self.output_conv = same_size(2 * c, c, kernel, bias=False)
        self.join_conv = same_size(2 * c, c, 1, bias=False)

    def forward(
        self,
        frame: Float[Tensor, "B C h w"],
        hidden: Float[Tensor, "B c h w"],
        cell: Float[Tensor, "B c h w"],
        memory: Float[Tensor, "B c h w"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """H', C' and M'."""
        x_g, x_i, x_f, x_gm, x_im, x_fm, x_o = self.input_conv(frame).chunk(7, dim=1)
        h_g, h_i, h_f, h_o = self.state_conv(hidden).chunk(4, dim=1)
        m_g, m_i, m_f = self.memory_conv(memory).chunk(3, dim=1)
        cell = torch.sigmoid(x_f + h_f) * cell + torch.sigmoid(x_i + h_i) * torch.tanh(x_g + h_g)
        memory = torch.sigmoid(x_fm + m_f) * memory + torch.sigmoid(x_im + m_i) * torch.tanh(
            x_gm + m_g
        )
        both = torch.cat([cell, memory], dim=1)
        o = torch.sigmoid(x_o + h_o + self.output_conv(both))
        return o * torch.tanh(self.join_conv(both)), cell, memory


class PredRNN(nn.Module):
    """Past frames in, future frames out, one after the other.

    Parameters
    ----------
    in_channels, out_channels : of a frame; as many come out as go in by default. Where fewer come
        out, the others of a frame that is fed back are 1: a forecast pixel counts as observed
    hidden_channels : of each layer, all alike, as M passes through all of them
    kernel : odd kernel size
    patch_size : side of the square patches, 1 for none
    """

    paper = "Wang et al. 2017"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        hidden_channels: Sequence[int] = (128, 128, 128, 128),
        kernel: int = 5,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        if len(set(hidden_channels)) != 1:
            raise ValueError(f"hidden_channels must all be alike, not {tuple(hidden_channels)}")
        out_channels = in_channels if out_channels is None else out_channels
        if out_channels > in_channels:
            raise ValueError(f"{out_channels} channels cannot be fed back into {in_channels}")
        self.patch_size, self.flags = patch_size, in_channels - out_channels
        pixels = patch_size**2
        below = [in_channels * pixels, *hidden_channels[:-1]]
        self.layers = nn.ModuleList(
            STLSTMLayer(c, hidden, kernel) for c, hidden in zip(below, hidden_channels, strict=True)
        )
        self.readout = nn.Conv2d(hidden_channels[-1], out_channels * pixels, 1)

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames. A size that no patch divides is padded, then cropped."""
        p = self.patch_size
        frames = F.pixel_unshuffle(time_first(past, p, None), p)
        _, batch, _, height, width = frames.shape
        zeros = frames.new_zeros(batch, self.readout.in_channels, height, width)
        states = [(zeros, zeros)] * len(self.layers)
        memory = zeros
        ones = frames.new_ones(batch, self.flags * p**2, height, width)
        forecast: list[Tensor] = []
        for t in range(len(frames) + lead_times - 1):
            below = frames[t] if t < len(frames) else torch.cat([forecast[-1], ones], dim=1)
            for number, layer in enumerate(self.layers):
                below, cell, memory = layer(below, *states[number], memory)
                states[number] = below, cell
            if t >= len(frames) - 1:
                forecast.append(self.readout(below))
        return batch_first(F.pixel_shuffle(torch.stack(forecast), p), past)
