"""ConvLSTM as commonly written: one convolution over cat(x, h) a timestep, gates in operators.

Written from the formulas of Shi et al. (2015), with peepholes, for benchmarks to compare with. The
forecaster's first layer is fed zeros. Same shapes as `models.networks.convlstm.ConvLSTM`.
"""

import torch
import torch.nn.functional as F
from torch import nn


class NaiveCell(nn.Module):
    def __init__(self, in_channels, hidden_channels, kernel):
        super().__init__()
        self.hidden_channels = hidden_channels
        self.conv = nn.Conv2d(
            in_channels + hidden_channels, 4 * hidden_channels, kernel, padding=kernel // 2
        )
        self.w_ci, self.w_cf, self.w_co = (
            nn.Parameter(torch.zeros(1, hidden_channels, 1, 1)) for _ in range(3)
        )

    def forward(self, x, state):
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.hidden_channels, dim=1)
        i = torch.sigmoid(i + self.w_ci * c)
        f = torch.sigmoid(f + self.w_cf * c)
        c = f * c + i * torch.tanh(g)
        o = torch.sigmoid(o + self.w_co * c)
        h = o * torch.tanh(c)
        return h, c


class NaiveConvLSTM(nn.Module):
    def __init__(self, hidden_channels, kernel, patch_size):
        super().__init__()
        self.patch_size = patch_size
        below = [patch_size**2, *hidden_channels[:-1]]
        self.encoder, self.forecaster = (
            nn.ModuleList(
                NaiveCell(c, h, kernel) for c, h in zip(below, hidden_channels, strict=True)
            )
            for _ in range(2)
        )
        self.readout = nn.Conv2d(sum(hidden_channels), patch_size**2, 1)

    def forward(self, past, lead_times):
        batch, timesteps = past.shape[:2]
        past = F.pixel_unshuffle(past, self.patch_size)
        zeros = torch.zeros_like(past[:, 0])
        states = []
        for cell in self.encoder:
            size = (batch, cell.hidden_channels, *past.shape[-2:])
            states.append((past.new_zeros(size), past.new_zeros(size)))
        for t in range(timesteps):
            x = past[:, t]
            for layer, cell in enumerate(self.encoder):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]
        frames = []
        for _ in range(lead_times):
            x = zeros
            for layer, cell in enumerate(self.forecaster):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]
            hidden = torch.cat([state[0] for state in states], dim=1)
            frames.append(F.pixel_shuffle(self.readout(hidden), self.patch_size))
        return torch.stack(frames, dim=1)
