"""The gates of a ConvLSTM timestep as Triton kernels: one launch forward, one backward.

Same interface and same results, to rounding, as `models.networks.gates`, which is their reference
and explains the arguments. Each kernel reads what a timestep's gates need once and writes what they
give once. Memory is channels last, so a field is a matrix of pixels by channels and the four gates
are the four quarters of a row. ``TRITON_INTERPRET=1`` runs them without a GPU.
"""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCK_ROWS, BLOCK_CHANNELS = 32, 64


@triton.jit
@no_type_check
def _block(channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr, rows):
    """Which pixels and channels a program has, and whether they are there."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = (row < rows)[:, None] & (channel < channels)[None, :]
    return row[:, None], channel, there


@triton.jit
@no_type_check
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
@no_type_check
def _forward_kernel(
    convolved, recurrent, cell, peepholes, hidden_out, cell_kept, gates_kept,
    rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel, there = _block(channels, ROWS, CHANNELS, rows)
    field = row * channels + channel[None, :]
    gate = row * (4 * channels) + channel[None, :]
    old = tl.load(cell + field, there, 0.0)
    i, f, o, g = tl.zeros_like(old), tl.zeros_like(old), tl.zeros_like(old), tl.zeros_like(old)
    if convolved is not None:
        i += tl.load(convolved + gate, there, 0.0)
        f += tl.load(convolved + gate + channels, there, 0.0)
        o += tl.load(convolved + gate + 2 * channels, there, 0.0)
        g += tl.load(convolved + gate + 3 * channels, there, 0.0)
    if recurrent is not None:
        i += tl.load(recurrent + gate, there, 0.0)
        f += tl.load(recurrent + gate + channels, there, 0.0)
        o += tl.load(recurrent + gate + 2 * channels, there, 0.0)
        g += tl.load(recurrent + gate + 3 * channels, there, 0.0)
    known = channel < channels
    if peepholes is not None:
        i += tl.load(peepholes + channel, known, 0.0)[None, :] * old
        f += tl.load(peepholes + channels + channel, known, 0.0)[None, :] * old
    i, f, g = tl.sigmoid(i), tl.sigmoid(f), _tanh(g)
    new = f * old + i * g
    if peepholes is not None:
        o += tl.load(peepholes + 2 * channels + channel, known, 0.0)[None, :] * new
    o = tl.sigmoid(o)
    tl.store(cell + field, new, there)
    tl.store(hidden_out + field, o * _tanh(new), there)
    if cell_kept is not None:
        tl.store(cell_kept + field, new, there)
    if gates_kept is not None:
        tl.store(gates_kept + gate, i, there)
        tl.store(gates_kept + gate + channels, f, there)
        tl.store(gates_kept + gate + 2 * channels, o, there)
        tl.store(gates_kept + gate + 3 * channels, g, there)


@triton.jit
@no_type_check
def _activate_kernel(
    summed, cell, cell_after, peepholes,
    rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel, there = _block(channels, ROWS, CHANNELS, rows)
    field = row * channels + channel[None, :]
    gate = summed + row * (4 * channels) + channel[None, :]
    old = tl.load(cell + field, there, 0.0).to(tl.float32)
    new = tl.load(cell_after + field, there, 0.0).to(tl.float32)
    i = tl.load(gate, there, 0.0).to(old.dtype)
    f = tl.load(gate + channels, there, 0.0).to(old.dtype)
    o = tl.load(gate + 2 * channels, there, 0.0).to(old.dtype)
    g = tl.load(gate + 3 * channels, there, 0.0).to(old.dtype)
    if peepholes is not None:
        known = channel < channels
        i += tl.load(peepholes + channel, known, 0.0)[None, :] * old
        f += tl.load(peepholes + channels + channel, known, 0.0)[None, :] * old
        o += tl.load(peepholes + 2 * channels + channel, known, 0.0)[None, :] * new
    tl.store(gate, tl.sigmoid(i), there)
    tl.store(gate + channels, tl.sigmoid(f), there)
    tl.store(gate + 2 * channels, tl.sigmoid(o), there)
    tl.store(gate + 3 * channels, _tanh(g), there)


@triton.jit
@no_type_check
def _backward_kernel(
    gates, cell, cell_after, peepholes, grad_hidden, grad_recurrent, grad_cell, grad_gates,
    grad_peepholes, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel, there = _block(channels, ROWS, CHANNELS, rows)
    field = row * channels + channel[None, :]
    gate = row * (4 * channels) + channel[None, :]
    of_cell = tl.load(grad_cell + field, there, 0.0)
    old = tl.load(cell + field, there, 0.0).to(of_cell.dtype)
    new = tl.load(cell_after + field, there, 0.0).to(of_cell.dtype)
    i = tl.load(gates + gate, there, 0.0).to(old.dtype)
    f = tl.load(gates + gate + channels, there, 0.0).to(old.dtype)
    o = tl.load(gates + gate + 2 * channels, there, 0.0).to(old.dtype)
    g = tl.load(gates + gate + 3 * channels, there, 0.0).to(old.dtype)
    of_hidden = tl.zeros_like(old)
    if grad_hidden is not None:
        of_hidden += tl.load(grad_hidden + field, there, 0.0)
    if grad_recurrent is not None:
        of_hidden += tl.load(grad_recurrent + field, there, 0.0)
    tanh_new = _tanh(new)
    of_o = of_hidden * tanh_new * o * (1 - o)
    of_cell += of_hidden * o * (1 - tanh_new * tanh_new)
    known = channel < channels
    if peepholes is not None:
        of_cell += tl.load(peepholes + 2 * channels + channel, known, 0.0)[None, :] * of_o
    of_i = of_cell * g * i * (1 - i)
    of_f = of_cell * old * f * (1 - f)
    of_g = of_cell * i * (1 - g * g)
    of_cell *= f
    if peepholes is not None:
        of_cell += tl.load(peepholes + channel, known, 0.0)[None, :] * of_i
        of_cell += tl.load(peepholes + channels + channel, known, 0.0)[None, :] * of_f
        sums = grad_peepholes + tl.program_id(0).to(tl.int64) * 3 * channels + channel
        tl.store(sums, tl.load(sums, known, 0.0) + tl.sum(of_i * old, 0), known)
        sums += channels
        tl.store(sums, tl.load(sums, known, 0.0) + tl.sum(of_f * old, 0), known)
        sums += channels
        tl.store(sums, tl.load(sums, known, 0.0) + tl.sum(of_o * new, 0), known)
    tl.store(grad_cell + field, of_cell, there)
    tl.store(grad_gates + gate, of_i, there)
    tl.store(grad_gates + gate + channels, of_f, there)
    tl.store(grad_gates + gate + 2 * channels, of_o, there)
    tl.store(grad_gates + gate + 3 * channels, of_g, there)


@triton_op("squall::convlstm_gates", mutates_args={"cell", "hidden_out", "cell_kept", "gates_kept"})
def forward(
    convolved: Tensor | None,
    recurrent: Tensor | None,
    cell: Tensor,
    peepholes: Tensor | None,
    hidden_out: Tensor,
    cell_kept: Tensor | None,
    gates_kept: Tensor | None,
) -> None:
    """See `models.networks.gates.forward`."""
    wrap_triton(_forward_kernel)[_grid(cell)](
        _matrix(convolved), _matrix(recurrent), _matrix(cell), peepholes,
        _matrix(hidden_out), _matrix(cell_kept), _matrix(gates_kept), *_size(cell),
    )  # fmt: skip


@triton_op("squall::convlstm_activate", mutates_args={"summed"})
def activate(summed: Tensor, cell: Tensor, cell_after: Tensor, peepholes: Tensor | None) -> None:
    """See `models.networks.gates.activate`."""
    wrap_triton(_activate_kernel)[_grid(cell)](
        _matrix(summed), _matrix(cell), _matrix(cell_after), peepholes, *_size(cell)
    )


@triton_op(
    "squall::convlstm_gates_backward",
    mutates_args={"grad_cell", "grad_gates", "grad_peepholes"},
)
def backward(
    gates: Tensor,
    cell: Tensor,
    cell_after: Tensor,
    peepholes: Tensor | None,
    grad_hidden: Tensor | None,
    grad_recurrent: Tensor | None,
    grad_cell: Tensor,
    grad_gates: Tensor,
    grad_peepholes: Tensor,
) -> None:
    """See `models.networks.gates.backward`."""
    wrap_triton(_backward_kernel)[_grid(cell)](
        _matrix(gates), _matrix(cell), _matrix(cell_after), peepholes,
        _matrix(grad_hidden), _matrix(grad_recurrent),
        _matrix(grad_cell), _matrix(grad_gates), grad_peepholes, *_size(cell),
    )  # fmt: skip


def peephole_sums(cell: Tensor) -> Tensor:
    """See `models.networks.gates.peephole_sums`: one sum for each program, so no order counts."""
    return cell.new_zeros(_grid(cell)[0], 3, cell.shape[1])


def _matrix(field: Tensor | None) -> Tensor | None:
    """Pixels by channels, the same memory."""
    if field is None:
        return None
    batch, channels, height, width = field.shape
    return field.permute(0, 2, 3, 1).view(batch * height * width, channels)


def _size(cell: Tensor) -> tuple[int, int, int, int]:
    """Pixels, channels, and how many of either a program has."""
    channels = cell.shape[1]
    of_block = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    return cell.numel() // channels, channels, BLOCK_ROWS, of_block


def _grid(cell: Tensor) -> tuple[int, int]:
    rows, channels, of_rows, of_channels = _size(cell)
    return triton.cdiv(rows, of_rows), triton.cdiv(channels, of_channels)
