"""FC-LSTM (Srivastava et al. 2015; the fully connected baseline of Shi et al. 2015, section 3.2).

Notable features:
- ConvLSTM's time loop with every matrix product dense: a frame is one patch, its pixels are the
  channels of a 1×1 image, and a 1×1 convolution of that is a dense layer
- peepholes, one weight per unit
- read out from the last layer alone

2048-2048 on 64×64 frames has the paper's 142,667,776 parameters.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from models.networks.convlstm import Compute, layers, precision
from models.networks.encoder_forecaster import Flat
from pipelines.errors import SquallError


class FCLSTM(Flat):
    """A dense LSTM encoder–forecaster, for frames of one size.

    Parameters
    ----------
    in_channels, out_channels : of a frame; as many come out as go in by default
    frame_size : rows and columns of every frame
    hidden_channels : units of each layer, first layer first
    compute : see `models.networks.convlstm.Compute`

    Raises `SquallError` for a frame of another size.
    """

    paper = "Srivastava et al. 2015"

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        frame_size: Sequence[int] = (64, 64),
        hidden_channels: Sequence[int] = (2048, 2048),
        compute: Compute = "exact",
    ) -> None:
        rows, columns = self.frame_size = tuple(frame_size)
        out_channels = in_channels if out_channels is None else out_channels
        pixels = rows * columns
        super().__init__(
            layers(hidden_channels, 1, 1, True, compute),
            in_channels * pixels,
            out_channels * pixels,
            hidden_channels,
            patch_size=1,
            readout="last",
            dtype=precision(compute),
        )

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames."""
        size = tuple(past.shape[-2:])
        if size != self.frame_size:
            raise SquallError(
                "a dense network takes frames of one size",
                found="×".join(map(str, size)),
                expected="×".join(map(str, self.frame_size)),
                remedy="crop to that size (train.crop), set the network's option frame_size, or "
                "choose a convolutional network",
            )
        dense = super().forward(past.flatten(2)[..., None, None], lead_times)
        return dense.reshape(*dense.shape[:2], -1, *size)
