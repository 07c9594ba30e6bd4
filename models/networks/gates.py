"""The gates of a ConvLSTM timestep, forward and backward, in plain PyTorch.

The one place that knows what happens between two convolutions. `models.networks.gates_triton` does
the same in one GPU kernel each; these are its reference, and what runs on a CPU.

Both write into memory that the caller gives, and compute in the cell's precision, float32, whatever
that of the convolutions is.

Shapes: B batch, c hidden channels, h×w patches; gates lie in the order i, f, o, g.
"""

import sys
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor


def gates_for(tensor: Tensor) -> ModuleType:
    """The kernels for where a tensor lies: Triton's on a GPU, if it is there, or these."""
    return sys.modules[__name__]


Field = Float[Tensor, "B c h w"]
Gates = Float[Tensor, "B G h w"]


def forward(
    convolved: Gates | None,
    recurrent: Gates | None,
    cell: Field,
    peepholes: Float[Tensor, "3 c"] | None,
    hidden_out: Field,
    cell_out: Field,
    gates_out: Gates | None,
) -> None:
    """One timestep (Shi et al. 2015, equation 3).

    Parameters
    ----------
    convolved, recurrent : what the gates sum: W_x ∗ X and W_h ∗ H, one of them with the bias; None
        for zero, not both
    cell : C
    hidden_out, cell_out : where H' and C' go; `cell_out` may be `cell`
    gates_out : where the activated gates go, for `backward`; None where there will be none
    """
    summed = recurrent if convolved is None else convolved
    assert summed is not None
    gates = summed.to(cell.dtype, copy=True)
    if convolved is not None and recurrent is not None:
        gates += recurrent
    channels = cell.shape[1]
    i, f, o, g = gates.split(channels, dim=1)
    if peepholes is not None:
        w_ci, w_cf, w_co = peepholes[:, :, None, None]
        i.addcmul_(w_ci, cell)
        f.addcmul_(w_cf, cell)
    gates[:, : 2 * channels].sigmoid_()
    g.tanh_()
    torch.mul(f, cell, out=cell_out)
    cell_out.addcmul_(i, g)
    if peepholes is not None:
        o.addcmul_(w_co, cell_out)
    o.sigmoid_()
    hidden_out.copy_(torch.tanh(cell_out).mul_(o))
    if gates_out is not None:
        gates_out.copy_(gates)


def activate(
    summed: Gates,
    cell: Field,
    cell_out: Field,
    peepholes: Float[Tensor, "3 c"] | None,
) -> None:
    """Summed convolutions to activated gates, in place, where C and C' are known."""
    channels = cell.shape[1]
    gates = summed.to(cell.dtype)
    i, f, o, g = gates.split(channels, dim=1)
    if peepholes is not None:
        w_ci, w_cf, w_co = peepholes[:, :, None, None]
        i.addcmul_(w_ci, cell)
        f.addcmul_(w_cf, cell)
        o.addcmul_(w_co, cell_out)
    gates[:, : 3 * channels].sigmoid_()
    g.tanh_()
    if gates is not summed:
        summed.copy_(gates)


def backward(
    gates: Gates,
    cell: Field,
    cell_out: Field,
    peepholes: Float[Tensor, "3 c"] | None,
    grad_hidden: Field | None,
    grad_recurrent: Field | None,
    grad_cell: Field,
    grad_gates: Gates,
    grad_peepholes: Float[Tensor, "n 3 c"],
) -> None:
    """What `forward` sends back; `gates` are the activated ones.

    Parameters
    ----------
    grad_hidden, grad_recurrent : of H', from above and from the timestep after; None for zero
    grad_cell : of C' from the timestep after; that of C when done
    grad_gates : where the gradient of the summed convolutions goes; may be `gates`
    grad_peepholes : is added to; its sum over n is the gradient
    """
    i, f, o, g = (gate.to(cell.dtype) for gate in gates.split(cell.shape[1], dim=1))
    grad = torch.zeros_like(cell) if grad_hidden is None else grad_hidden.to(cell.dtype)
    if grad_recurrent is not None:
        grad = grad + grad_recurrent
    tanh_cell = torch.tanh(cell_out)
    grad_o = grad * tanh_cell * o * (1 - o)
    grad_cell.addcmul_(grad * o, 1 - tanh_cell * tanh_cell)
    if peepholes is not None:
        grad_cell.addcmul_(grad_o, peepholes[2, :, None, None])
    grad_i = grad_cell * g * i * (1 - i)
    grad_f = grad_cell * cell * f * (1 - f)
    grad_g = grad_cell * i * (1 - g * g)
    grad_cell.mul_(f)
    if peepholes is not None:
        grad_cell.addcmul_(grad_i, peepholes[0, :, None, None])
        grad_cell.addcmul_(grad_f, peepholes[1, :, None, None])
        over = (0, 2, 3)
        grad_peepholes[0, 0] += (grad_i * cell).sum(over)
        grad_peepholes[0, 1] += (grad_f * cell).sum(over)
        grad_peepholes[0, 2] += (grad_o * cell_out).sum(over)
    for to, of in zip(
        grad_gates.split(cell.shape[1], dim=1), (grad_i, grad_f, grad_o, grad_g), strict=True
    ):
        to.copy_(of)


def peephole_sums(cell: Field) -> Float[Tensor, "n 3 c"]:
    """Zeros for `backward` to add to."""
    return cell.new_zeros(1, 3, cell.shape[1])
