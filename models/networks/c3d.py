"""C3D (Tran et al. 2015, "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV),
with a decoder that forecasts.

The encoder is the paper's: 3×3×3 convolutions over time, y and x, and max pooling that halves time
as well, except the first: early frames are not merged too soon. The paper classifies what it sees
through two fully connected layers and a softmax; they are left out, so the size of a frame is free,
and the encoder mirrored takes their place: transposed convolutions where there was pooling, 3×3×3
convolutions in between.

One pass forecasts a clip of as many frames as the encoder pools into one: 16. A shorter forecast is
the start of the clip; for a longer one the newest frames, forecast ones among them, are the past of
the next pass.

Shapes: B batch, T past frames, L lead times, C channels, H×W pixels; c channels of t×h×w features.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.encoder_forecaster import batch_first, time_first

SINGLE = 2
"""The lowest groups, which have one convolution; those above have two (figure 3)."""


class C3D(nn.Module):
    """3-D convolutions of past frames: a clip of future frames out.

    Pooling in time rounds up, so any number of past frames will do; where more than a clip of them
    comes in, the last pooling takes the largest of what time is left.

    Parameters
    ----------
    in_channels : channels of an input frame
    out_channels : channels of a forecast frame, as many as come in by default. Fed back as input,
        its other channels (the observed mask) are 1: a forecast has no gaps
    widths : features of each group of convolutions, lowest first; n of them forecast 2ⁿ⁻¹ frames
        a pass

    Raises
    ------
    ValueError
        More channels come out than go in, or no widths.
    """

    paper = "Tran et al. 2015"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if out_channels > in_channels:
            raise ValueError(
                f"a forecast frame is the next input: out_channels must be at most {in_channels}, "
                f"got {out_channels}"
            )
        if len(widths) == 0:
            raise ValueError("widths must name at least one group of convolutions")
        self.added_channels = in_channels - out_channels
        self.multiple, self.frames_a_pass = 2 ** len(widths), 2 ** (len(widths) - 1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        below = [in_channels, *widths[:-1]]
        for place, (narrow, width) in enumerate(zip(below, widths, strict=True)):
            inner = [width] * (place >= SINGLE)
            self.encoder.append(convolutions([narrow, *inner, width]))
        below[0] = out_channels
        for place, (narrow, width) in reversed(list(enumerate(zip(below, widths, strict=True)))):
            inner = [width] * (place >= SINGLE)
            stride = pooling(place)
            up = nn.ConvTranspose3d(width, width, stride, stride)
            self.decoder.append(nn.Sequential(up, *convolutions([width, *inner, narrow])))
        last = self.decoder[-1]
        assert isinstance(last, nn.Sequential)
        del last[-1]  # a forecast may have any value: no ReLU
        self._initialise()

    def _initialise(self) -> None:
        """Weights that keep the size of what passes a ReLU (He et al. 2015, equation 10).

        A transposed convolution, whose windows do not overlap, has as many inputs as channels and
        no ReLU after it. The last layer is left as it is.
        """
        *layers, _ = (m for m in self.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d))
        for layer in layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames. Any size: padded to a multiple of 32, then cropped."""
        frames = time_first(past, self.multiple, None).permute(1, 2, 0, 3, 4)
        clips = [self.next_clip(frames)]
        for _ in range((lead_times - 1) // self.frames_a_pass):
            fed_back = F.pad(clips[-1], (0, 0) * 3 + (0, self.added_channels), value=1.0)
            frames = torch.cat([frames, fed_back], dim=2)[:, :, -past.shape[1] :]
            clips.append(self.next_clip(frames))
        forecast = torch.cat(clips, dim=2)[:, :, :lead_times]
        return batch_first(forecast.permute(2, 0, 1, 3, 4), past)

    def next_clip(self, frames: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B out F H W"]:
        """The `frames_a_pass` frames that follow."""
        features = frames
        for place, group in enumerate(self.encoder):
            features = F.max_pool3d(group(features), pooling(place), ceil_mode=True)
        features = features.amax(dim=2, keepdim=True)
        for group in self.decoder:
            features = group(features)
        return features


def pooling(place: int) -> tuple[int, int, int]:
    """How a group's features are pooled in (time, y, x): time not in the lowest (section 3.2)."""
    return (1 if place == 0 else 2, 2, 2)


def convolutions(channels: Sequence[int]) -> nn.Sequential:
    """3×3×3 convolutions from each number of channels to the next, with ReLU after each."""
    layers: list[nn.Module] = []
    for below, above in itertools.pairwise(channels):
        layers += [nn.Conv3d(below, above, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
