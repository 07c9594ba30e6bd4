"""A whole ConvLSTM layer, all its timesteps, as one autograd function.

What autograd would do timestep by timestep is done once for all of them, where that is the same:

forward   one convolution of all inputs; the loop holds only the state convolution and the gates;
          a zero state is not convolved
backward  the loop holds only the gates' gradient and the convolution that takes it to the timestep
          before; then one gradient for each weight, over all timesteps, and one for the inputs
memory    kept are H, C and the activated gates; or, rematerialising, H and C alone: as all of H is
          known, one convolution gives all gates back at once; a zero state is kept as well, so that
          what the timesteps need lies in one piece

Memory is channels last and time first, so that every timestep, and all of them together, are one
piece. Convolutions run, and things are kept, in the inputs' precision; cell state, gates
and sums are float32.

Shapes: T timesteps, B batch, C channels of the input, c of the state, G = 4c, h×w patches.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from models.networks import gates

HOISTED_BYTES = 2**28
"""Inputs are convolved so many timesteps at once that the result is not larger than this."""


def convlstm_layer(
    inputs: Float[Tensor, "T B C h w"] | None,
    state: tuple[Tensor, ...] | None,
    input_weight: Float[Tensor, "G C k k"] | None,
    state_weight: Float[Tensor, "G c n n"],
    bias: Float[Tensor, " G"],
    peepholes: Float[Tensor, "3 c"] | None,
    timesteps: int,
    *,
    rematerialise: bool = False,
) -> tuple[Float[Tensor, "T B c h w"], Float[Tensor, "B c h w"], Float[Tensor, "B c h w"]]:
    """Hidden states of all timesteps, the last of them, and the last cell state.

    Parameters
    ----------
    inputs : None for a layer without; then `state` must be given
    state : H in the inputs' precision, C in float32; None for zeros
    rematerialise : keep less for the backward pass and compute it again there

    Autocast has no say in it: the inputs' precision is what it runs in.
    """
    device = state_weight.device.type
    known = torch.amp.is_autocast_available(device)  # not on the meta device
    with torch.autocast(device, enabled=False) if known else contextlib.nullcontext():
        return _layer(
            inputs, state, input_weight, state_weight, bias, peepholes, timesteps, rematerialise
        )


def _layer(
    inputs: Tensor | None,
    state: tuple[Tensor, ...] | None,
    input_weight: Tensor | None,
    state_weight: Tensor,
    bias: Tensor,
    peepholes: Tensor | None,
    timesteps: int,
    rematerialise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = state if state is not None else (None, None)
    weights = (input_weight, state_weight, bias, peepholes)
    arguments = (inputs, hidden, cell, *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        return ConvLSTMFunction.apply(*arguments, timesteps, rematerialise)
    hiddens, last_cell, _, _ = _forward(*arguments, timesteps, keep_cells=False, keep_gates=False)
    return hiddens[1:], hiddens[-1], last_cell


class ConvLSTMFunction(torch.autograd.Function):
    """See the module. Derivatives of derivatives are not offered."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor | None,
        hidden: Tensor | None,
        cell: Tensor | None,
        input_weight: Tensor | None,
        state_weight: Tensor,
        bias: Tensor,
        peepholes: Tensor | None,
        timesteps: int,
        rematerialise: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, the last one, the last cell state."""
        arguments = (inputs, hidden, cell, input_weight, state_weight, bias, peepholes)
        hiddens, last_cell, cells, activated = _forward(
            *arguments, timesteps, keep_cells=True, keep_gates=not rematerialise
        )
        ctx.save_for_backward(
            inputs, input_weight, state_weight, bias, peepholes, hiddens, cells, activated
        )
        ctx.zero_state = hidden is None
        ctx.set_materialize_grads(False)
        return hiddens[1:], hiddens[-1].clone(), last_cell

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_hiddens: Tensor | None, grad_hidden: Tensor | None, grad_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of `forward`'s arguments."""
        inputs, input_weight, state_weight, bias, peepholes, hiddens, cells, activated = (
            ctx.saved_tensors
        )
        if activated is None:
            activated = _activated_again(
                inputs, input_weight, state_weight, bias, peepholes, hiddens, cells, ctx.zero_state
            )
            grad_gates = activated  # ours, so each timestep's gradient takes its gates' place
        else:
            grad_gates = torch.empty_like(activated)
        timesteps = len(activated)
        if grad_hiddens is not None:
            grad_hiddens = _in_order(grad_hiddens)
        state_weight_cast = _cast(state_weight, hiddens)
        gate = gates_for(hiddens)
        precise = torch.promote_types(hiddens.dtype, torch.float32)
        of_cell = _channels_last(hiddens, 1, hiddens.shape[1:], precise)[0]
        of_cell.copy_(grad_cell if grad_cell is not None else torch.zeros_like(of_cell))
        of_hidden = None if grad_hidden is None else _in_order(grad_hidden)
        grad_peepholes = gate.peephole_sums(of_cell)
        for t in reversed(range(timesteps)):
            gate.backward(
                activated[t],
                cells[t],
                cells[t + 1],
                peepholes,
                None if grad_hiddens is None else grad_hiddens[t],
                of_hidden,
                of_cell,
                grad_gates[t],
                grad_peepholes,
            )
            if t > 0 or not ctx.zero_state:
                of_hidden = _input_gradient(grad_gates[t], hiddens[t], state_weight_cast)
        first = 1 if ctx.zero_state else 0  # a zero state has no part in the weights' gradient
        of_state_weight = _weight_gradient(
            grad_gates[first:].flatten(0, 1), hiddens[first:-1].flatten(0, 1), state_weight_cast
        )
        of_inputs = of_input_weight = None
        flat = grad_gates.flatten(0, 1)
        if inputs is not None:
            input_weight_cast = _cast(input_weight, hiddens)
            flat_inputs = inputs.flatten(0, 1)
            of_input_weight = _weight_gradient(flat, flat_inputs, input_weight_cast)
            if ctx.needs_input_grad[0]:
                of_inputs = _input_gradient(flat, flat_inputs, input_weight_cast)
                of_inputs = of_inputs.unflatten(0, inputs.shape[:2])
        return (
            of_inputs,
            None if ctx.zero_state else of_hidden,
            None if ctx.zero_state else of_cell,
            None if of_input_weight is None else of_input_weight.to(input_weight.dtype),
            of_state_weight.to(state_weight.dtype),
            flat.sum((0, 2, 3), dtype=bias.dtype),
            None if peepholes is None else grad_peepholes.sum(0),
            None,
            None,
        )


def _forward(
    inputs: Tensor | None,
    hidden: Tensor | None,
    cell: Tensor | None,
    input_weight: Tensor | None,
    state_weight: Tensor,
    bias: Tensor,
    peepholes: Tensor | None,
    timesteps: int,
    *,
    keep_cells: bool,
    keep_gates: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """H of timesteps 0 (the state before) to T, the last C, and what the backward pass may need:

    C of timesteps 0 to T and the activated gates of 1 to T, both in the inputs' precision.
    """
    like = inputs[0] if inputs is not None else hidden
    assert like is not None
    size = (like.shape[0], state_weight.shape[1], *like.shape[-2:])
    gates_size = (size[0], state_weight.shape[0], *size[2:])
    running = _channels_last(like, 1, size, torch.promote_types(like.dtype, torch.float32))[0]
    running.copy_(torch.zeros_like(running) if cell is None else cell)
    hiddens = _channels_last(like, timesteps + 1, size)
    hiddens[0].copy_(torch.zeros_like(running) if hidden is None else hidden)
    cells = _channels_last(like, timesteps + 1, size) if keep_cells else None
    if cells is not None:
        cells[0].copy_(running)
    activated = _channels_last(like, timesteps, gates_size) if keep_gates else None
    state_weight, bias = _cast(state_weight, like), bias.to(like.dtype)
    gate = gates_for(like)
    scratch = None
    if gate is gates and activated is None:  # memory that is not taken from the system every time
        scratch = _channels_last(like, 1, gates_size, running.dtype)[0]
    convolved = _convolved(inputs, input_weight, bias, like, timesteps)
    for t, of_timestep in enumerate(convolved):
        recurrent = None
        if t > 0 or hidden is not None:
            own_bias = bias if of_timestep is None else None
            recurrent = _convolve(hiddens[t], state_weight, own_bias)
        gate.forward(
            of_timestep,
            recurrent,
            running,
            peepholes,
            hiddens[t + 1],
            None if cells is None else cells[t + 1],
            scratch if activated is None else activated[t],
        )
    return hiddens, running, cells, activated


def gates_for(tensor: Tensor) -> ModuleType:
    """The gates for where a tensor lies: Triton's on a GPU, if it is there; else PyTorch's."""
    if tensor.is_cuda and importlib.util.find_spec("triton"):
        from models.networks import gates_triton

        return gates_triton
    return gates


def _convolved(
    inputs: Tensor | None, weight: Tensor | None, bias: Tensor, like: Tensor, timesteps: int
) -> Iterator[Tensor | None]:
    """W_x ∗ X + b timestep by timestep, convolved many at once."""
    if inputs is None or weight is None:
        yield from [None] * timesteps
        return
    weight = _cast(weight, like)
    of_timestep = like[:, 0].numel() * weight.shape[0] * like.element_size()
    for some in inputs.split(max(1, HOISTED_BYTES // of_timestep)):
        yield from _convolve(some.flatten(0, 1), weight, bias).unflatten(0, some.shape[:2])


def _activated_again(
    inputs: Tensor | None,
    input_weight: Tensor | None,
    state_weight: Tensor,
    bias: Tensor,
    peepholes: Tensor | None,
    hiddens: Tensor,
    cells: Tensor,
    zero_state: bool,
) -> Tensor:
    """The activated gates from H and C: all timesteps in one convolution each."""
    timesteps, batch = len(hiddens) - 1, hiddens.shape[1]
    bias = bias.to(hiddens.dtype)
    state_weight = _cast(state_weight, hiddens)
    if inputs is None or input_weight is None:
        summed = _convolve(hiddens[:-1].flatten(0, 1), state_weight, bias)
    else:
        summed = _convolve(inputs.flatten(0, 1), _cast(input_weight, hiddens), bias)
        first = batch if zero_state else 0
        if len(summed) > first:
            before = hiddens[:-1].flatten(0, 1)[first:]
            summed[first:] += _convolve(before, state_weight, None)
    gates_for(hiddens).activate(
        summed, cells[:-1].flatten(0, 1), cells[1:].flatten(0, 1), peepholes
    )
    return summed.unflatten(0, (timesteps, batch))


def _channels_last(
    like: Tensor, timesteps: int, size: tuple[int, ...], dtype: torch.dtype | None = None
) -> Tensor:
    """Memory for (timesteps, batch, channels, height, width), channels last."""
    batch, channels, height, width = size
    shape = (timesteps, batch, height, width, channels)
    return like.new_empty(shape, dtype=dtype or like.dtype).permute(0, 1, 4, 2, 3)


def _in_order(fields: Tensor) -> Tensor:
    """(…, channels, height, width) in the memory order of `_channels_last`."""
    return fields.movedim(-3, -1).contiguous().movedim(-1, -3)


def _cast(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(like.dtype, memory_format=torch.channels_last)


def _convolve(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Same size out as in, channels last."""
    return _in_order(F.conv2d(frames, weight, bias, padding=weight.shape[-1] // 2))


def _input_gradient(grad: Tensor, frames: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = _convolution_backward(grad, frames, weight, [True, False, False])[0]
    return _in_order(result)


def _weight_gradient(grad: Tensor, frames: Tensor, weight: Tensor) -> Tensor:
    if len(grad) == 0:
        return torch.zeros_like(weight)
    result: Tensor = _convolution_backward(grad, frames, weight, [False, True, False])[1]
    return result


def _convolution_backward(grad: Tensor, frames: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
    """Gradients of frames and weight, those that are wanted."""
    padding = [weight.shape[-1] // 2] * 2
    return torch.ops.aten.convolution_backward(
        grad, frames, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
    )
