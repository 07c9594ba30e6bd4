"""The gates of a ConvLSTM timestep, forward and backward, in plain PyTorch.

The one place that knows what happens between two convolutions. `models.networks.gates_triton` does
the same in one GPU kernel each; these are its reference, and what runs on a CPU.

All write into memory that the caller gives, and compute in the cell state's precision, float32,
whatever that of the convolutions and of what is kept for the backward pass.

Shapes: B batch, c hidden channels, h×w patches; gates lie in the order i, f, o, g.
"""

import torch
from jaxtyping import Float
from torch import Tensor

sigmoid_backward = torch.ops.aten.sigmoid_backward  # σ' and tanh' from their results
tanh_backward = torch.ops.aten.tanh_backward

Field = Float[Tensor, "B c h w"]
Gates = Float[Tensor, "B G h w"]


def forward(
    convolved: Gates | None,
    recurrent: Gates | None,
    cell: Field,
    peepholes: Float[Tensor, "3 c"] | None,
    hidden_out: Field,
    cell_kept: Field | None,
    gates_kept: Gates | None,
) -> None:
    """One timestep (Shi et al. 2015, equation 3).

    Parameters
    ----------
    convolved, recurrent : what the gates sum: W_x ∗ X and W_h ∗ H, one of them with the bias; None
        for zero, not both
    cell : C, which becomes C'
    hidden_out : where H' goes
    cell_kept, gates_kept : where C' and the activated gates go, for `backward`, if it needs them
    """
    summed = recurrent if convolved is None else convolved
    assert summed is not None
    in_place = gates_kept is not None and gates_kept.dtype == cell.dtype
    gates = gates_kept if in_place else torch.empty_like(summed, dtype=cell.dtype)
    assert gates is not None
    if convolved is None or recurrent is None:
        gates.copy_(summed)
    elif summed.dtype == cell.dtype:
        torch.add(convolved, recurrent, out=gates)
    else:
        gates.copy_(convolved).add_(recurrent)
    channels = cell.shape[1]
    i, f, o, g = gates.split(channels, dim=1)
    if peepholes is not None:
        w_ci, w_cf, w_co = peepholes[:, :, None, None]
        i.addcmul_(w_ci, cell)
        f.addcmul_(w_cf, cell)
    gates[:, : 2 * channels].sigmoid_()
    g.tanh_()
    cell.mul_(f).addcmul_(i, g)
    if peepholes is not None:
        o.addcmul_(w_co, cell)
    o.sigmoid_()
    hidden_out.copy_(torch.tanh(cell).mul_(o))
    if cell_kept is not None:
        cell_kept.copy_(cell)
    if gates_kept is not None and not in_place:
        gates_kept.copy_(gates)


def activate(
    summed: Gates,
    cell: Field,
    cell_after: Field,
    peepholes: Float[Tensor, "3 c"] | None,
) -> None:
    """Summed convolutions to activated gates, in place, where C and C' are known."""
    channels = cell.shape[1]
    precise = torch.promote_types(summed.dtype, torch.float32)
    gates, cell, cell_after = summed.to(precise), cell.to(precise), cell_after.to(precise)
    i, f, o, g = gates.split(channels, dim=1)
    if peepholes is not None:
        w_ci, w_cf, w_co = peepholes[:, :, None, None]
        i.addcmul_(w_ci, cell)
        f.addcmul_(w_cf, cell)
        o.addcmul_(w_co, cell_after)
    gates[:, : 3 * channels].sigmoid_()
    g.tanh_()
    if gates is not summed:
        summed.copy_(gates)


def backward(
    gates: Gates,
    cell: Field,
    cell_after: Field,
    peepholes: Float[Tensor, "3 c"] | None,
    grad_hidden: Field | None,
    grad_recurrent: Field | None,
    grad_cell: Field,
    grad_gates: Gates,
    grad_peepholes: Float[Tensor, "n 3 c"],
) -> None:
    """What `forward` sends back.

    Parameters
    ----------
    gates, cell, cell_after : the activated gates, C and C', as kept
    grad_hidden, grad_recurrent : of H', from above and from the timestep after; None for zero
    grad_cell : of C' from the timestep after; that of C when done
    grad_gates : where the gradient of the summed convolutions goes; may be `gates`
    grad_peepholes : is added to; its sum over n is the gradient
    """
    precise = grad_cell.dtype
    cell, cell_after, gates = cell.to(precise), cell_after.to(precise), gates.to(precise)
    tanh_cell = torch.tanh(cell_after)
    grad = torch.zeros_like(cell) if grad_hidden is None else grad_hidden.to(precise)
    if grad_recurrent is not None:
        grad = grad + grad_recurrent
    results = grad_gates if grad_gates.dtype == precise else gates
    i, f, o, g = gates.split(cell.shape[1], dim=1)
    grad_i, grad_f, grad_o, grad_g = results.split(cell.shape[1], dim=1)

    through_cell = tanh_backward(grad * o, tanh_cell)
    sigmoid_backward.grad_input(grad.mul(tanh_cell), o, grad_input=grad_o)
    grad_cell += through_cell
    if peepholes is not None:
        grad_cell.addcmul_(grad_o, peepholes[2, :, None, None])
    of_i, of_f, of_g = grad_cell * g, grad_cell * cell, grad_cell * i
    grad_cell *= f
    tanh_backward.grad_input(of_g, g, grad_input=grad_g)
    sigmoid_backward.grad_input(of_i, i, grad_input=grad_i)
    sigmoid_backward.grad_input(of_f, f, grad_input=grad_f)
    if peepholes is not None:
        grad_cell.addcmul_(grad_i, peepholes[0, :, None, None])
        grad_cell.addcmul_(grad_f, peepholes[1, :, None, None])
        for k, (of_gate, seen) in enumerate(((grad_i, cell), (grad_f, cell), (grad_o, cell_after))):
            grad_peepholes[0, k] += (of_gate * seen).sum((0, 2, 3))
    if results is not grad_gates:
        grad_gates.copy_(results)


def peephole_sums(cell: Field) -> Float[Tensor, "n 3 c"]:
    """Zeros for `backward` to add to."""
    return cell.new_zeros(1, 3, cell.shape[1])
