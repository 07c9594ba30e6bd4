"""ConvGRU, TrajGRU, ST-LSTM and FC-LSTM against float64 NumPy, from the papers' equations."""

import numpy as np
import pytest
import torch

from models.networks import build_model
from models.networks.convgru import ConvGRULayer, TrajGRULayer, warp
from models.networks.predrnn import STLSTMLayer
from tests.reference.test_convlstm_equation import convolve, randomised, sigmoid


def leaky(a):
    return np.where(a > 0, a, 0.2 * a)


def parts(module):
    return {name: weights.detach().numpy() for name, weights in module.named_parameters()}


def warped(field, U, V):
    """Shi et al. 2017, equation 4: every pixel of the field, weighted by how near it is."""
    _, height, width = field.shape
    result = np.zeros_like(field)
    for i in range(height):
        for j in range(width):
            for m in range(height):
                for n in range(width):
                    near_y = max(0.0, 1 - abs(i + V[i, j] - m))
                    near_x = max(0.0, 1 - abs(j + U[i, j] - n))
                    result[:, i, j] += field[:, m, n] * near_y * near_x
    return result


def gru(x, h, H, b):
    """Shi et al. 2017, equation 2, from what X and H give to Z, R and H'."""
    (x_z, x_r, x_h), (h_z, h_r, h_h) = np.split(x, 3), np.split(h + b[:, None, None], 3)
    Z, R = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
    return (1 - Z) * leaky(x_h + R * h_h) + Z * H


def step(layer, X, H):
    """One timestep of a layer, on one sequence."""
    convolved = None
    if X is not None:
        convolved = layer.convolve_inputs(torch.from_numpy(X)[None, None])[0]
    (got,) = layer.step(convolved, (torch.from_numpy(H)[None],))
    return got[0].detach().numpy()


@pytest.mark.parametrize("with_input", [True, False])
def test_a_convgru_layer_is_equation_2(with_input):
    layer = randomised(ConvGRULayer(2 if with_input else 0, 3, 3, 5))
    rng = np.random.default_rng(0)
    X, H = rng.normal(size=(2, 4, 5)) if with_input else None, rng.normal(size=(3, 4, 5))
    w = parts(layer)
    x = convolve(X, w["input_conv.weight"]) if with_input else np.zeros((9, 4, 5))
    expected = gru(x, convolve(H, w["state_conv.weight"]), H, w["state_conv.bias"])
    np.testing.assert_allclose(step(layer, X, H), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("with_input", [True, False])
def test_a_trajgru_layer_is_equation_3(with_input):
    layer = randomised(TrajGRULayer(2 if with_input else 0, 3, 3, links=2))
    rng = np.random.default_rng(0)
    X, H = rng.normal(size=(2, 4, 5)) if with_input else None, rng.normal(size=(3, 4, 5))
    w = parts(layer)
    x = convolve(X, w["input_conv.weight"]) if with_input else np.zeros((9, 4, 5))
    inner = convolve(H, w["flow_state_conv.weight"]) + w["flow_state_conv.bias"][:, None, None]
    if with_input:
        inner += convolve(X, w["flow_input_conv.weight"])
    flows = convolve(leaky(inner), w["flow_conv.weight"]) + w["flow_conv.bias"][:, None, None]
    h = np.zeros((9, 4, 5))
    for link in range(2):
        U, V = flows[2 * link : 2 * link + 2]
        of_link = w["state_conv.weight"][:, link::2]
        h += convolve(warped(H, U, V), of_link)
    expected = gru(x, h, H, w["state_conv.bias"])
    np.testing.assert_allclose(step(layer, X, H), expected, rtol=1e-10, atol=1e-10)


def test_a_flow_of_whole_pixels_shifts_and_what_comes_from_outside_is_zero():
    field = torch.arange(12.0).reshape(1, 1, 3, 4)
    flows = torch.zeros(1, 3, 2, 3, 4)
    flows[:, 1, 0] = 1  # seen from one pixel further along x
    flows[:, 2, 1] = -2  # and from two pixels before along y
    expected = torch.stack(
        [
            field[0, 0],
            torch.tensor([[1.0, 2, 3, 0], [5, 6, 7, 0], [9, 10, 11, 0]]),
            torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3]]),
        ]
    )
    torch.testing.assert_close(warp(field, flows)[0, 0], expected, atol=1e-5, rtol=0)


def st_lstm(layer, X, H, C, M):
    """Wang et al. 2017, equation 3, a gate at a time."""
    w = parts(layer)
    names = ("g", "i", "f", "g'", "i'", "f'", "o")
    W_x = dict(zip(names, np.split(w["input_conv.weight"], 7), strict=True))
    b = dict(zip(names, np.split(w["input_conv.bias"], 7), strict=True))
    W_h = dict(zip(("g", "i", "f", "o"), np.split(w["state_conv.weight"], 4), strict=True))
    W_m = dict(zip(("g'", "i'", "f'"), np.split(w["memory_conv.weight"], 3), strict=True))

    def summed(gate):
        field, W = (H, W_h) if gate in W_h else (M, W_m)
        return convolve(X, W_x[gate]) + convolve(field, W[gate]) + b[gate][:, None, None]

    C = sigmoid(summed("f")) * C + sigmoid(summed("i")) * np.tanh(summed("g"))
    M_new = sigmoid(summed("f'")) * M + sigmoid(summed("i'")) * np.tanh(summed("g'"))
    both = np.concatenate([C, M_new])
    o = sigmoid(summed("o") + convolve(both, w["output_conv.weight"]))
    return o * np.tanh(convolve(both, w["join_conv.weight"])), C, M_new


def test_an_st_lstm_layer_is_equation_3():
    layer = randomised(STLSTMLayer(2, 3, 3))
    rng = np.random.default_rng(0)
    X, (H, C, M) = rng.normal(size=(2, 4, 5)), rng.normal(size=(3, 3, 4, 5))
    got = layer(*(torch.from_numpy(field)[None] for field in (X, H, C, M)))
    for ours, expected in zip(got, st_lstm(layer, X, H, C, M), strict=True):
        np.testing.assert_allclose(ours[0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_predrnn_passes_its_memory_on_and_feeds_its_forecasts_back():
    network = randomised(
        build_model(
            "predrnn", in_channels=2, out_channels=1, hidden_channels=(3, 3), kernel=3, patch_size=1
        )
    )
    past = np.random.default_rng(0).normal(size=(2, 2, 4, 5))
    H = [np.zeros((3, 4, 5))] * 2
    C, M = list(H), H[0]
    frames, forecast = list(past), []
    w = parts(network)
    for t in range(2 + 3 - 1):
        below = frames[t]
        for number, layer in enumerate(network.layers):
            H[number], C[number], M = st_lstm(layer, below, H[number], C[number], M)
            below = H[number]
        if t >= 1:
            read = np.einsum("oc,cyx->oyx", w["readout.weight"][:, :, 0, 0], below)
            forecast.append(read + w["readout.bias"][:, None, None])
            frames.append(np.concatenate([forecast[-1], np.ones((1, 4, 5))]))
    got = network(torch.from_numpy(past)[None], 3)[0].detach().numpy()
    np.testing.assert_allclose(got, np.stack(forecast), rtol=1e-10, atol=1e-10)


def test_fclstm_without_peepholes_is_torchs_lstm():
    network = build_model("fclstm", frame_size=(3, 4), hidden_channels=(5,)).double()
    (layer,) = network.encoder
    lstm = torch.nn.LSTM(12, 5).double()
    with torch.no_grad():
        i, f, g, o = lstm.weight_ih_l0.chunk(4)
        layer.input_conv.weight.copy_(torch.cat([i, f, o, g])[..., None, None])
        i, f, g, o = lstm.weight_hh_l0.chunk(4)
        layer.state_conv.weight.copy_(torch.cat([i, f, o, g])[..., None, None])
        i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
        layer.state_conv.bias.copy_(torch.cat([i, f, o, g]))
    past = torch.rand(4, 2, 12, dtype=torch.float64)
    hidden, (last, cell) = layer(past[..., None, None], None, 4)
    expected, (expected_last, expected_cell) = lstm(past)
    torch.testing.assert_close(hidden[..., 0, 0], expected)
    torch.testing.assert_close(last[None, ..., 0, 0], expected_last)
    torch.testing.assert_close(cell[None, ..., 0, 0], expected_cell)


def test_a_strided_network_goes_up_in_the_encoder_and_down_in_the_forecaster():
    """Shi et al. 2017, figure 1, a layer and a timestep at a time."""
    options = {"hidden_channels": (3, 4), "strides": (2, 3), "sampled_channels": (2, 5)}
    network = randomised(build_model("convgru", state_kernel=3, **options))
    past = torch.rand(1, 3, 1, 12, 6, dtype=torch.float64)
    states = [torch.zeros(1, 3, 6, 3).double(), torch.zeros(1, 4, 2, 1).double()]

    def f(field):
        return torch.nn.functional.leaky_relu(field, 0.2)

    for t in range(3):
        below = past[:, t]
        for k, (down, layer) in enumerate(zip(network.down, network.encoder, strict=True)):
            convolved = layer.convolve_inputs(f(down(below))[None])[0]
            (states[k],) = layer.step(convolved, (states[k],))
            below = states[k]
    expected = []
    for _ in range(2):
        lower, top = network.forecaster
        (states[1],) = top.step(None, (states[1],))
        convolved = lower.convolve_inputs(f(network.up[1](states[1]))[None])[0]
        (states[0],) = lower.step(convolved, (states[0],))
        smooth = f(network.smooth(f(network.up[0](states[0]))))
        expected.append(network.readout(smooth))
    torch.testing.assert_close(network(past, 2), torch.stack(expected, dim=1))
