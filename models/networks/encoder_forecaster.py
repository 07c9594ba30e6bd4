"""The encoder–forecaster, once for every recurrent layer (Shi et al. 2015, figure 3; 2017, fig. 1).

An encoder reads the past frames; the states that it ends with initialise a forecaster of the same
layers, which unrolls the future. Networks differ in their layer (`RecurrentLayer`: ConvLSTM,
ConvGRU, TrajGRU) and in how layers are stacked:

`Flat`      all layers at one resolution, after patching (2015); read out from their hidden states
`Strided`   strided convolutions between the encoder's layers, deconvolutions between the
            forecaster's (2017): states shrink as they go up

Inside, time comes first, so that one timestep of a sequence is one piece of memory.

Shapes: B batch, T past frames, L lead times, C channels, H×W pixels; c hidden channels, h×w
patches, G channels of the convolved input.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""What a layer carries from one timestep to the next, "B c h w" each; the hidden state first."""

MakeLayer = Callable[[int, int], "RecurrentLayer"]
"""A layer from (channels of its input, 0 for none; its place in the stack, 0 lowest)."""

LEAK = 0.2
"""Slope of the leaky ReLU below zero (Shi et al. 2017, appendix)."""


class RecurrentLayer(nn.Module, ABC):
    """A layer that goes through time: its input convolved at all timesteps at once, then `step`."""

    hidden_channels: int

    @abstractmethod
    def convolve_inputs(self, inputs: Float[Tensor, "T B C h w"]) -> Float[Tensor, "T B G h w"]:
        """All that depends on the input alone: W_x ∗ X of all timesteps in one convolution."""

    @abstractmethod
    def step(self, convolved: Float[Tensor, "B G h w"] | None, state: State) -> State:
        """One timestep; `convolved` is None for a layer without input."""

    def zero_state(self, inputs: Float[Tensor, "T B C h w"]) -> State:
        """Before the first frame nothing is known."""
        _, batch, _, height, width = inputs.shape
        return (inputs.new_zeros(batch, self.hidden_channels, height, width),)

    def forward(
        self, inputs: Float[Tensor, "T B C h w"] | None, state: State | None, timesteps: int
    ) -> tuple[Float[Tensor, "T B c h w"], State]:
        """All timesteps: the hidden states, and the last state.

        A layer without input needs a state; one without a state starts from zeros.
        """
        if inputs is None:
            assert state is not None
            convolved: Sequence[Tensor | None] = [None] * timesteps
        else:
            state = state or self.zero_state(inputs)
            convolved = self.convolve_inputs(inputs).unbind(0)
        hidden = []
        for of_timestep in convolved:
            state = self.step(of_timestep, state)
            hidden.append(state[0])
        return torch.stack(hidden), state


class Flat(nn.Module):
    """Layers at one resolution (Shi et al. 2015): past frames in, future frames out.

    Frames become 3-D tensors by patching: p×p pixels become p² channels (space to depth). The
    forecaster's first layer has no input; each other one takes the hidden states of the one below.
    One 1×1 convolution reads out the hidden states of all forecaster layers, concatenated, or of
    the last one.
    """

    def __init__(
        self,
        make_layer: MakeLayer,
        in_channels: int,
        out_channels: int,
        hidden_channels: Sequence[int],
        patch_size: int,
        readout: Literal["all", "last"] = "all",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(hidden_channels) == 0:
            raise ValueError("hidden_channels must name at least one layer")
        self.patch_size, self.dtype = patch_size, dtype
        below = [in_channels * patch_size**2, *hidden_channels[:-1]]
        self.encoder = nn.ModuleList(make_layer(c, k) for k, c in enumerate(below))
        below[0] = 0
        self.forecaster = nn.ModuleList(make_layer(c, k) for k, c in enumerate(below))
        self.read_layers = slice(None) if readout == "all" else slice(-1, None)
        read = sum(hidden_channels[self.read_layers])
        self.readout = nn.Conv2d(read, out_channels * patch_size**2, 1)

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames. A size that no patch divides is padded, then cropped."""
        p = self.patch_size
        encoded = F.pixel_unshuffle(time_first(past, p, self.dtype), p)
        states = []
        for layer in self.encoder:
            encoded, state = layer(encoded, None, len(encoded))
            states.append(state)
        outputs: list[Tensor] = []
        for layer, state in zip(self.forecaster, states, strict=True):
            outputs.append(layer(outputs[-1] if outputs else None, state, lead_times)[0])
        patches = self._read_out(outputs[self.read_layers])
        return batch_first(F.pixel_shuffle(patches, p), past)

    def _read_out(self, outputs: list[Tensor]) -> Tensor:
        """The 1×1 convolution over the concatenated hidden states, without concatenating them."""
        channels = [hidden.shape[2] for hidden in outputs]
        weights = self.readout.weight.to(outputs[0].dtype).split(channels, dim=1)
        assert self.readout.bias is not None
        patches = [F.conv2d(h.flatten(0, 1), w) for h, w in zip(outputs, weights, strict=True)]
        patches[0] = patches[0] + self.readout.bias.to(outputs[0].dtype)[:, None, None]
        return sum(patches[1:], patches[0]).unflatten(0, outputs[0].shape[:2])


class Strided(nn.Module):
    """Layers whose states shrink as they go up (Shi et al. 2017, figure 1).

    Encoder, upwards: strided convolution, leaky ReLU, layer. Forecaster, from the top downwards:
    layer, deconvolution, leaky ReLU; the top layer has no input. Two convolutions read out: 3×3
    with a leaky ReLU, and 1×1.

    Parameters
    ----------
    strides : how many times each layer's states are smaller than what lies below, lowest first
    sampled_channels : channels that each strided convolution gives its layer, lowest first; the
        lowest deconvolution gives as many as the lowest of them
    """

    def __init__(
        self,
        make_layer: MakeLayer,
        in_channels: int,
        out_channels: int,
        hidden_channels: Sequence[int],
        strides: Sequence[int],
        sampled_channels: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        strides = per_layer("strides", strides, len(hidden_channels))
        sampled_channels = per_layer("sampled_channels", sampled_channels, len(hidden_channels))
        self.multiple, self.dtype = math.prod(strides), dtype
        below = [in_channels, *hidden_channels[:-1]]
        self.down = nn.ModuleList(
            nn.Conv2d(c, sampled, s + 2 if s % 2 else s + 1, s, padding=1)
            for c, sampled, s in zip(below, sampled_channels, strides, strict=True)
        )
        self.encoder = nn.ModuleList(make_layer(c, k) for k, c in enumerate(sampled_channels))
        into = [*hidden_channels[:-1], 0]
        self.forecaster = nn.ModuleList(make_layer(c, k) for k, c in enumerate(into))
        below = [sampled_channels[0], *hidden_channels[:-1]]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(hidden, c, s + 2, s, padding=1)
            for hidden, c, s in zip(hidden_channels, below, strides, strict=True)
        )
        self.smooth = nn.Conv2d(below[0], below[0], 3, padding=1)
        self.readout = nn.Conv2d(below[0], out_channels, 1)

    def forward(
        self, past: Float[Tensor, "B T C H W"], lead_times: int
    ) -> Float[Tensor, "B L out H W"]:
        """Forecast `lead_times` frames. A size that no stride divides is padded, then cropped."""
        hidden = time_first(past, self.multiple, self.dtype)
        states = []
        for down, layer in zip(self.down, self.encoder, strict=True):
            hidden, state = layer(leaky(each_frame(down, hidden)), None, len(hidden))
            states.append(state)
        below: Tensor | None = None
        for up, layer, state in reversed(list(zip(self.up, self.forecaster, states, strict=True))):
            below = leaky(each_frame(up, layer(below, state, lead_times)[0]))
        assert below is not None
        smooth = leaky(each_frame(self.smooth, below))
        return batch_first(each_frame(self.readout, smooth), past)


def time_first(
    past: Float[Tensor, "B T C H W"], multiple: int, dtype: torch.dtype | None
) -> Float[Tensor, "T B C H2 W2"]:
    """Past frames, time first, padded with zeros below and to the right to a multiple."""
    height, width = past.shape[-2:]
    frames = past.transpose(0, 1).to(dtype or past.dtype)
    padding = (0, -width % multiple, 0, -height % multiple)
    return F.pad(frames.flatten(0, 1), padding).unflatten(0, frames.shape[:2])


def batch_first(
    frames: Float[Tensor, "L B out H2 W2"], past: Float[Tensor, "B T C H W"]
) -> Float[Tensor, "B L out H W"]:
    """Forecast frames with `past`'s size and type."""
    height, width = past.shape[-2:]
    return frames[..., :height, :width].transpose(0, 1).to(past.dtype)


def each_frame(
    convolution: nn.Module, frames: Float[Tensor, "T B C h w"]
) -> Float[Tensor, "T B C2 h2 w2"]:
    """A convolution of every frame at once, in the frames' own precision."""
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    apply = F.conv2d if isinstance(convolution, nn.Conv2d) else F.conv_transpose2d
    assert convolution.bias is not None
    weight, bias = convolution.weight.to(frames.dtype), convolution.bias.to(frames.dtype)
    stride, padding = convolution.stride, convolution.padding
    result = apply(frames.flatten(0, 1), weight, bias, stride, padding)  # type: ignore[arg-type]
    return result.unflatten(0, frames.shape[:2])


def leaky(frames: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Leaky ReLU, in the memory of what is given, which no convolution needs to keep."""
    return F.leaky_relu_(frames, LEAK)


def same_size(in_channels: int, out_channels: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the size; `ValueError` where the kernel is even and none can."""
    if kernel % 2 == 0:
        raise ValueError(f"a kernel must be odd so that the size never changes, not {kernel}")
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def per_layer(name: str, value: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """One value for each layer, from one for all of them or a sequence."""
    values = (value,) * layers if isinstance(value, int) else tuple(value)
    if len(values) != layers:
        raise ValueError(f"{name} needs one value for each of {layers} layers, got {values}")
    return values
