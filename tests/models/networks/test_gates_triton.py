"""The Triton gates: equal to the plain ones, run by Triton's interpreter, compiled for a GPU."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from models.networks import build_model, convlstm_function, gates
from models.networks.convlstm import precision

pytest.importorskip("triton", reason="Triton is there on Linux only")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""The interpreter cuts numbers off to bfloat16 where a GPU rounds them."""


@pytest.fixture(scope="module")
def triton_gates():
    """The kernels as the interpreter runs them: see TRITON_INTERPRET in tests/conftest.py."""
    return importlib.import_module("models.networks.gates_triton")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def field(channels, dtype=torch.float32):
    """Two images of 5×7, channels last."""
    return torch.randn(2, 5, 7, channels).to(dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 64, 70])
@pytest.mark.parametrize("peephole", [True, False])
@pytest.mark.parametrize("given", ["both", "convolved", "recurrent"])
def test_a_timestep_forward_and_backward(triton_gates, dtype, channels, peephole, given):
    peepholes = torch.randn(3, channels) if peephole else None
    summed = {
        "convolved": field(4 * channels, dtype) if given != "recurrent" else None,
        "recurrent": field(4 * channels, dtype) if given != "convolved" else None,
    }
    before, of_cell_after = field(channels), field(channels)
    of_hidden = field(channels, dtype) if given != "recurrent" else None
    of_recurrent = field(channels, dtype) if given != "convolved" else None
    forward = {}
    for kernels in (gates, triton_gates):
        cell, hidden, kept = before.clone(), field(channels, dtype), field(channels, dtype)
        activated = field(4 * channels, dtype)
        kernels.forward(
            **summed, cell=cell, peepholes=peepholes, hidden_out=hidden, cell_kept=kept,
            gates_kept=activated,
        )  # fmt: skip
        forward[kernels] = (cell, hidden, kept, activated)
    _, _, kept, activated = forward[gates]
    backward = {}
    for kernels in (gates, triton_gates):
        of_cell, of_gates = of_cell_after.clone(), torch.empty_like(activated)
        sums = kernels.peephole_sums(of_cell)
        kernels.backward(
            activated, before.to(dtype), kept, peepholes, of_hidden, of_recurrent, of_cell,
            of_gates, sums,
        )  # fmt: skip
        backward[kernels] = (of_cell, of_gates, sums.sum(0))
    tolerance = TOLERANCE[dtype]
    for results in (forward, backward):
        for plain, triton in zip(results[gates], results[triton_gates], strict=True):
            torch.testing.assert_close(triton, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activating_again(triton_gates, dtype):
    summed, before, after = field(12, dtype), field(3, dtype), field(3, dtype)
    plain, triton = summed.clone(), summed.clone()
    peepholes = torch.randn(3, 3)
    gates.activate(plain, before, after, peepholes)
    triton_gates.activate(triton, before, after, peepholes)
    assert not torch.equal(plain, summed)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(triton, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compute", ["exact", "exact-remat", "bf16", "bf16-remat"])
def test_a_network_learns_the_same_with_them(triton_gates, compute, monkeypatch):
    torch.manual_seed(0)
    network = build_model("convlstm", hidden_channels=(5, 3), patch_size=2, compute=compute)
    frames = torch.rand(2, 3, 1, 9, 8)

    def outcome():
        network.zero_grad()
        forecast = network(frames, 3)
        forecast.square().mean().backward()
        return [forecast.detach(), *(weights.grad.clone() for weights in network.parameters())]

    plain = outcome()
    monkeypatch.setattr(convlstm_function, "gates_for", lambda tensor: triton_gates)
    tolerance = TOLERANCE[precision(compute) or torch.float32]
    for ours, expected in zip(outcome(), plain, strict=True):
        error = (ours - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < tolerance


COMPILE = """
import triton, torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from models.networks import gates_triton as g

def build(kernel, pointers, missing=()):
    signature = {name: kind for name, kind in pointers.items()}
    signature |= {"rows": "i32", "channels": "i32", "ROWS": "constexpr", "CHANNELS": "constexpr"}
    constants = {"ROWS": 32, "CHANNELS": 64} | {name: None for name in missing}
    signature |= {name: "constexpr" for name in missing}
    source = ASTSource(kernel, signature, constants)
    print(kernel.__name__, len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))

low, full = "*bf16", "*fp32"
forward = dict(convolved=low, recurrent=low, cell=full, peepholes=full, hidden_out=low,
               cell_kept=low, gates_kept=low)
build(g._forward_kernel, forward)
build(g._forward_kernel, forward, ("convolved", "peepholes", "cell_kept", "gates_kept"))
build(g._activate_kernel, dict(summed=low, cell=low, cell_after=low, peepholes=full))
backward = dict(gates=low, cell=low, cell_after=low, peepholes=full, grad_hidden=low,
                grad_recurrent=low, grad_cell=full, grad_gates=low, grad_peepholes=full)
build(g._backward_kernel, backward)
build(g._backward_kernel, backward, ("grad_hidden", "grad_recurrent"))
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("_kernel ") == 5
