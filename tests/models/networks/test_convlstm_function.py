"""A whole layer as one autograd function: the equations' values and gradients, and less memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from models.catalogue import saved_bytes
from models.losses import masked_mse
from models.networks import build_model, convlstm_function
from models.networks.convlstm import ConvLSTM, ConvLSTMLayer
from models.networks.convlstm_function import convlstm_layer
from tests.benchmarks.naive_convlstm import NaiveConvLSTM

COMPUTES = ("exact", "exact-remat", "bf16", "bf16-remat")
TOLERANCE = {"exact": 1e-5, "exact-remat": 1e-5, "bf16": 1e-2, "bf16-remat": 1e-2}


def loop(weights, past, lead_times, patch_size, layers):
    """The encoder–forecaster from Shi et al. 2015, equation 3, a convolution and gate at a time."""

    def step(prefix, X, H, C):
        w = {name: weights[f"{prefix}.{name}"] for name in ("state_conv.weight", "state_conv.bias")}
        W_hi, W_hf, W_ho, W_hc = w["state_conv.weight"].chunk(4)
        b_i, b_f, b_o, b_c = w["state_conv.bias"].chunk(4)
        W_ci, W_cf, W_co = weights[f"{prefix}.peepholes"][:, None, :, None, None]

        def conv(field, kernel):
            return F.conv2d(field, kernel, padding=kernel.shape[-1] // 2)

        def summed(W_h, b, number):
            total = conv(H, W_h) + b[:, None, None]
            if X is None:
                return total
            return total + conv(X, weights[f"{prefix}.input_conv.weight"].chunk(4)[number])

        i = torch.sigmoid(summed(W_hi, b_i, 0) + W_ci * C)
        f = torch.sigmoid(summed(W_hf, b_f, 1) + W_cf * C)
        C = f * C + i * torch.tanh(summed(W_hc, b_c, 3))
        o = torch.sigmoid(summed(W_ho, b_o, 2) + W_co * C)
        return o * torch.tanh(C), C

    height, width = past.shape[-2:]
    past = F.pad(past, (0, -width % patch_size, 0, -height % patch_size))
    frames = F.pixel_unshuffle(past, patch_size)
    batch, timesteps, _, rows, columns = frames.shape
    states = []
    for layer in range(layers):
        channels = weights[f"encoder.{layer}.peepholes"].shape[1]
        states.append((past.new_zeros(batch, channels, rows, columns),) * 2)
    for t in range(timesteps):
        below = frames[:, t]
        for layer in range(layers):
            states[layer] = step(f"encoder.{layer}", below, *states[layer])
            below = states[layer][0]
    forecast = []
    for _ in range(lead_times):
        below = None
        for layer in range(layers):
            states[layer] = step(f"forecaster.{layer}", below, *states[layer])
            below = states[layer][0]
        hidden = torch.cat([state[0] for state in states], dim=1)
        patches = F.conv2d(hidden, weights["readout.weight"], weights["readout.bias"])
        forecast.append(F.pixel_shuffle(patches, patch_size))
    return torch.stack(forecast, dim=1)[..., :height, :width]


def compare(compute, *, batch, past, lead_times, height, width, hidden, kernels, patch_size):
    """Relative errors of forecast, and of the gradients of past frames and of every weight."""
    torch.manual_seed(batch + past + height)
    network = ConvLSTM(
        hidden_channels=hidden,
        input_kernel=kernels[0],
        state_kernel=kernels[1],
        patch_size=patch_size,
        compute=compute,
    )
    torch.nn.init.normal_(network.encoder[0].peepholes)
    for layer in (*network.encoder, *network.forecaster):
        torch.nn.init.normal_(layer.peepholes, std=0.5)
    frames = torch.rand(batch, past, 1, height, width)
    future = torch.rand(batch, lead_times, 1, height, width)
    observed = torch.rand(future.shape) < 0.7
    future[~observed] = float("nan")

    def outcome(call, weights, frames, future):
        frames = frames.clone().requires_grad_()
        forecast = call(frames)
        masked_mse(forecast, future, observed).backward()
        return {
            "forecast": forecast.detach(),
            "past": frames.grad,
            **{name: weight.grad for name, weight in weights.items()},
        }

    weights = dict(network.named_parameters())
    got = outcome(lambda f: network(f, lead_times), weights, frames, future)
    doubles = {k: w.detach().double().requires_grad_() for k, w in weights.items()}
    expected = outcome(
        lambda f: loop(doubles, f, lead_times, patch_size, len(hidden)),
        doubles,
        frames.double(),
        future.double(),
    )
    errors = {}
    for name, exact in expected.items():
        scale = max(float(exact.norm()), 1e-6)
        errors[name] = float((got[name].double() - exact).norm()) / scale
    return errors


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize(
    "shape",
    [
        {"height": 13, "width": 10, "hidden": (6, 4), "kernels": (3, 3), "patch_size": 2},
        {"height": 5, "width": 9, "hidden": (4,), "kernels": (5, 1), "patch_size": 1},
        {"height": 33, "width": 40, "hidden": (3, 5, 4), "kernels": (3, 5), "patch_size": 4},
    ],
)
def test_values_and_every_gradient_are_those_of_a_float64_loop(compute, shape):
    errors = compare(compute, batch=2, past=4, lead_times=3, **shape)
    assert max(errors.values()) < TOLERANCE[compute], errors


@settings(max_examples=25)
@given(
    compute=st.sampled_from(["exact", "exact-remat"]),
    batch=st.integers(1, 3),
    past=st.integers(1, 3),
    lead_times=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    hidden=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    kernels=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    patch_size=st.integers(1, 3),
)
def test_any_shape_is_exact_to_rounding(**shape):
    errors = compare(**shape)
    assert max(errors.values()) < 1e-4, errors  # gradients near zero have no relative precision


@pytest.mark.parametrize("rematerialise", [False, True])
@pytest.mark.parametrize("with_input", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("with_peepholes", [False, True])
@pytest.mark.parametrize("timesteps", [1, 3])
def test_gradients_are_those_of_finite_differences(
    rematerialise, with_input, with_state, with_peepholes, timesteps
):
    if not with_input and not with_state:
        return  # a layer without input starts from a state
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    inputs = random(timesteps, 2, 1, 2, 3) if with_input else None
    input_weight = random(8, 1, 3, 3) if with_input else None
    state = (random(2, 2, 2, 3), random(2, 2, 2, 3)) if with_state else None
    peepholes = random(3, 2) if with_peepholes else None
    given_ = [inputs, *(state or (None, None)), input_weight, random(8, 2, 3, 3), random(8)]
    given_.append(peepholes)
    there = [tensor for tensor in given_ if tensor is not None]

    def call(*tensors):
        left = iter(tensors)
        x, h, c, *weights = [None if tensor is None else next(left) for tensor in given_]
        hidden_and_cell = None if h is None else (h, c)
        return convlstm_layer(x, hidden_and_cell, *weights, timesteps, rematerialise=rematerialise)

    assert torch.autograd.gradcheck(call, there)


@pytest.mark.parametrize("compute", COMPUTES)
def test_a_forecast_without_gradients_is_the_same(compute):
    torch.manual_seed(0)
    network, frames = (
        build_model("convlstm", hidden_channels=(5, 3), compute=compute),
        torch.rand(2, 3, 1, 16, 12),
    )
    with torch.no_grad():
        quiet = network(frames, 4)
    assert torch.equal(quiet, network(frames, 4).detach())


@pytest.mark.parametrize("compute", COMPUTES)
def test_how_many_timesteps_are_convolved_at_once_changes_nothing(compute, monkeypatch):
    torch.manual_seed(0)
    network = build_model("convlstm", hidden_channels=(5, 3), compute=compute)
    frames = torch.rand(2, 5, 1, 16, 12)
    together = network(frames, 3).detach()
    for size in (1, 5000):
        monkeypatch.setattr(convlstm_function, "HOISTED_BYTES", size)
        torch.testing.assert_close(network(frames, 3).detach(), together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("compute", COMPUTES)
def test_a_second_backward_pass_adds_the_same_gradient(compute):
    torch.manual_seed(0)
    network = build_model("convlstm", hidden_channels=(4,), compute=compute)
    loss = network(torch.rand(1, 2, 1, 8, 8), 2).square().mean()
    loss.backward(retain_graph=True)
    once = [weights.grad.clone() for weights in network.parameters()]
    loss.backward()
    for weights, gradient in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(weights.grad, 2 * gradient)


@pytest.mark.parametrize("compute", COMPUTES)
def test_nothing_in_a_step_waits_for_a_value(compute):
    """A CUDA graph can only hold a step whose course no tensor's value decides."""
    with FakeTensorMode():
        network = build_model("convlstm", hidden_channels=(4, 3), compute=compute)
        frames = torch.rand(2, 3, 1, 9, 8)
        observed = torch.ones(2, 2, 1, 9, 8, dtype=torch.bool)
        forecast = network(frames, 2)
        masked_mse(forecast, torch.rand(forecast.shape), observed).backward()
    assert all(weights.grad is not None for weights in network.parameters())


def test_rematerialising_keeps_less_than_a_fifth_of_the_common_loop_in_autocast():
    size = {"hidden_channels": (128, 64, 64), "patch_size": 4}
    frames = torch.rand(1, 10, 1, 64, 64)
    naive = NaiveConvLSTM(size["hidden_channels"], 3, size["patch_size"])

    def autocast():
        with torch.autocast("cpu", torch.bfloat16):
            return naive(frames, 10).square().mean()

    kept = {}
    for compute in COMPUTES:
        network = build_model("convlstm", compute=compute, **size)
        kept[compute] = saved_bytes(network, lambda n=network: n(frames, 10).square().mean())
    weights = sum(w.numel() for w in naive.parameters() if w.dim() == 4)
    common = saved_bytes(naive, autocast) - 2 * weights  # not counting the weights it casts
    assert kept["bf16-remat"] <= common / 5
    assert kept["bf16-remat"] < kept["bf16"] < kept["exact"]
    assert kept["exact-remat"] < kept["exact"]


def reference_cell(weight, bias, x, h, c):
    """The cell of common code: one convolution over cat(x, h), split into i, f, o, g."""
    gates = F.conv2d(torch.cat([x, h], dim=1), weight, bias, padding=weight.shape[-1] // 2)
    i, f, o, g = torch.split(gates, h.shape[1], dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.parametrize("compute", ["reference", "exact", "exact-remat"])
def test_without_peepholes_it_is_the_cell_of_common_code(compute):
    torch.manual_seed(0)
    layer = ConvLSTMLayer(3, 4, 5, 5, peephole=False, compute=compute)
    weight, bias = torch.randn(16, 7, 5, 5) * 0.2, torch.randn(16)
    layer.load_concatenated(weight, bias)
    inputs = torch.randn(4, 2, 3, 6, 7)
    h, c = torch.randn(2, 2, 4, 6, 7)
    hidden, (last_hidden, last_cell) = layer(inputs, (h, c), 4)
    for t in range(4):
        h, c = reference_cell(weight, bias, inputs[t], h, c)
        torch.testing.assert_close(hidden[t], h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last_hidden, h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last_cell, c, rtol=1e-5, atol=1e-6)
    assert not any("peep" in name for name, _ in layer.named_parameters())
