"""MCNet (Villegas et al. 2017, "Decomposing Motion and Content for Natural Video Sequence
Prediction", ICLR).

How things move and what is there are encoded apart, and put together for the next frame:

motion encoder    differences of frames through convolutions and a ConvLSTM: d
content encoder   the newest frame alone through convolutions: s
combination       d and s through three convolutions: f
residuals         what the two encoders saw before each pooling, for the decoder to add: r
decoder           the content encoder mirrored: unpooling, + r, deconvolutions; tanh

A forecast frame becomes the newest frame for the next lead time. Losses are a matter of training:
gradient difference is in `models.losses`, the adversarial term in `models.adversary`.

Shapes: B batch, T past frames, L lead times, C channels, H×W pixels; c channels of h×w features.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.convlstm import ConvLSTMLayer
from models.networks.encoder_forecaster import State, batch_first, time_first

MOTION_KERNELS = (5, 5, 7)
"""Kernels of the motion encoder, finest scale first (Villegas et al. 2017, appendix A)."""

CONVOLUTIONS = (2, 2, 3)
"""Convolutions of the content encoder before each pooling: VGG16 up to its third pooling."""


class Encoder(nn.Module):
    """Groups of convolutions with ReLU, each followed by 2×2 max pooling."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        convolutions: Sequence[int],
    ) -> None:
        super().__init__()
        self.groups = nn.ModuleList()
        for width, kernel, count in zip(widths, kernels, convolutions, strict=True):
            below = [in_channels] + [width] * (count - 1)
            layers = [nn.Conv2d(c, width, kernel, padding=kernel // 2) for c in below]
            self.groups.append(nn.ModuleList(layers))
            in_channels = width

    def forward(
        self, frames: Float[Tensor, "N C H W"]
    ) -> tuple[Float[Tensor, "N c h w"], list[Tensor]]:
        """Pooled features of the coarsest scale, and those before each pooling, finest first."""
        before_pooling = []
        for group in self.groups:
            for convolution in group:  # type: ignore[attr-defined]
                frames = torch.relu(convolution(frames))
            before_pooling.append(frames)
            frames = F.max_pool2d(frames, 2)
        return frames, before_pooling


class Decoder(nn.Module):
    """The content encoder mirrored: each of its convolutions the other way round.

    The last layer is linear.
    """

    def __init__(self, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.groups = nn.ModuleList()
        above = [out_channels, *widths[:-1]]
        for width, narrow, count in reversed(list(zip(widths, above, CONVOLUTIONS, strict=True))):
            after = [width] * (count - 1) + [narrow]
            layers = [nn.ConvTranspose2d(width, c, 3, padding=1) for c in after]
            self.groups.append(nn.ModuleList(layers))
        self.last = layers[-1]

    def forward(
        self, combined: Float[Tensor, "B c h w"], residuals: Sequence[Tensor]
    ) -> Float[Tensor, "B out H W"]:
        """A frame from f and r, the residuals given finest first."""
        features = combined
        for group, residual in zip(self.groups, reversed(residuals), strict=True):
            features = unpool(features) + residual
            for deconvolution in group:  # type: ignore[attr-defined]
                features = deconvolution(features)
                if deconvolution is not self.last:
                    features = torch.relu(features)
        return features


class MCNet(nn.Module):
    """Motion–content network: past frames in, future frames out, one after the other.

    Parameters
    ----------
    in_channels : channels of an input frame
    out_channels : channels of a forecast frame, as many as come in by default. It becomes the next
        input frame, whose other channels (the observed mask) are 1: a forecast has no gaps
    widths : features at each of the three scales, finest first
    bounded : tanh at the end, as published for frames in [−1, 1]; without it any value is possible

    Raises
    ------
    ValueError
        More channels come out than go in; not three widths; or, when called, one past frame only:
        motion is the difference of two.
    """

    paper = "Villegas et al. 2017"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        widths: Sequence[int] = (64, 128, 256),
        bounded: bool = True,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if out_channels > in_channels:
            raise ValueError(
                f"a forecast frame is the next input: out_channels must be at most {in_channels}, "
                f"got {out_channels}"
            )
        if len(widths) != len(CONVOLUTIONS):
            raise ValueError(f"widths must be {len(CONVOLUTIONS)} numbers, got {tuple(widths)}")
        self.added_channels, self.bounded = in_channels - out_channels, bounded
        self.multiple = 2 ** len(CONVOLUTIONS)
        middle, coarsest = widths[-2:]
        self.motion = Encoder(in_channels, widths, MOTION_KERNELS, (1, 1, 1))
        self.content = Encoder(in_channels, widths, (3, 3, 3), CONVOLUTIONS)
        self.combination = nn.Sequential(
            nn.Conv2d(2 * coarsest, coarsest, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(coarsest, middle, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(middle, coarsest, 3, padding=1),
            nn.ReLU(),
        )
        self.residuals = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for width in widths
        )
        self.decoder = Decoder(widths, out_channels)
        self._initialise()
        self.memory = ConvLSTMLayer(coarsest, coarsest, peephole=False)

    def _initialise(self) -> None:
        """Weights that keep the size of what passes a ReLU (He et al. 2015, equation 10).

        The last layer is left as it is.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer is not self.decoder.last:
                transposed = isinstance(layer, nn.ConvTranspose2d)
                mode: Literal["fan_in", "fan_out"] = "fan_out" if transposed else "fan_in"
                nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames. Any size: padded to a multiple of 8, then cropped."""
        if past.shape[1] < 2:
            raise ValueError("mcnet sees motion as differences: it needs at least two past frames")
        frames = time_first(past, self.multiple, None)
        newest = frames[-1]
        features, before_pooling, state = self._encode_motion(frames.diff(dim=0), None)
        forecast = [self._next_frame(newest, features, before_pooling)]
        for _ in range(lead_times - 1):
            fed_back = F.pad(forecast[-1], (0, 0, 0, 0, 0, self.added_channels), value=1.0)
            difference, newest = fed_back - newest, fed_back
            features, before_pooling, state = self._encode_motion(difference[None], state)
            forecast.append(self._next_frame(newest, features, before_pooling))
        return batch_first(torch.stack(forecast), past)

    def _encode_motion(
        self, differences: Float[Tensor, "T B C H W"], state: State | None
    ) -> tuple[Float[Tensor, "B c h w"], list[Tensor], State]:
        """d after the last difference, its features before each pooling, and the ConvLSTM's state.

        Equation 1 of the paper.
        """
        timesteps, batch = differences.shape[:2]
        pooled, before_pooling = self.motion(differences.flatten(0, 1))
        hidden, state = self.memory(pooled.unflatten(0, (timesteps, batch)), state, timesteps)
        return hidden[-1], [features[-batch:] for features in before_pooling], state

    def _next_frame(
        self,
        newest: Float[Tensor, "B C H W"],
        motion: Float[Tensor, "B c h w"],
        motion_before_pooling: Sequence[Tensor],
    ) -> Float[Tensor, "B out H W"]:
        """The frame after `newest`: equations 2 (content), 3 (combination), 4 (residuals)."""
        content, content_before_pooling = self.content(newest)
        combined = self.combination(torch.cat([motion, content], dim=1))
        residuals = [
            residual(torch.cat(both, dim=1))
            for residual, *both in zip(
                self.residuals, motion_before_pooling, content_before_pooling, strict=True
            )
        ]
        frame = self.decoder(combined, residuals)
        return torch.tanh(frame) if self.bounded else frame


def unpool(features: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h2 w2"]:
    """Twice the size: each value in the upper left of four pixels, zeros in the other three."""
    height, width = features.shape[-2:]
    unpooled = features.new_zeros(*features.shape[:2], 2 * height, 2 * width)
    unpooled[..., ::2, ::2] = features
    return unpooled
