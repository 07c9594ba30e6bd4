"""ConvLSTM against a loop over pixels, gates and timesteps, written from Shi et al. 2015.

The reference is float64 NumPy: equation 3 as it is printed, convolution as a sum over the kernel,
patches cut out by hand, encoder and forecaster as figure 3 draws them. It shares nothing with the
network but its weights.
"""

import numpy as np
import pytest
import torch

from models.networks.convlstm import ConvLSTM, ConvLSTMLayer


def convolve(field, weight):
    """W ∗ X: (channel, y, x) with (out, channel, k, k), zeros around."""
    k = weight.shape[-1]
    _, height, width = field.shape
    padded = np.pad(field, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    result = np.zeros((weight.shape[0], height, width))
    for y in range(height):
        for x in range(width):
            window = padded[:, y : y + k, x : x + k]
            for channel in range(weight.shape[0]):
                result[channel, y, x] = (weight[channel] * window).sum()
    return result


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def cell_step(cell, X, H, C):
    """Equation 3, one gate at a time; X is None for a layer without input."""
    names = ("i", "f", "o", "c")
    parts = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    W_h = dict(zip(names, np.split(parts["state_conv.weight"], 4), strict=True))
    b = dict(zip(names, np.split(parts["state_conv.bias"], 4), strict=True))
    W_c = dict(zip(("i", "f", "o"), parts["peepholes"], strict=True))
    if X is not None:
        W_x = dict(zip(names, np.split(parts["input_conv.weight"], 4), strict=True))

    def summed(gate):
        total = convolve(H, W_h[gate]) + b[gate][:, None, None]
        return total if X is None else total + convolve(X, W_x[gate])

    i = sigmoid(summed("i") + W_c["i"][:, None, None] * C)
    f = sigmoid(summed("f") + W_c["f"][:, None, None] * C)
    C = f * C + i * np.tanh(summed("c"))
    o = sigmoid(summed("o") + W_c["o"][:, None, None] * C)
    return o * np.tanh(C), C


def to_patches(frame, p):
    """(channel, y, x) → (channel·p², y/p, x/p): pixel (dy, dx) of a patch is channel dy·p + dx."""
    channels, height, width = frame.shape
    patches = np.zeros((channels * p * p, height // p, width // p))
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                patches[c * p * p + (y % p) * p + x % p, y // p, x // p] = frame[c, y, x]
    return patches


def from_patches(patches, p):
    """The inverse of `to_patches`."""
    channels, rows, columns = patches.shape[0] // p**2, *patches.shape[1:]
    frame = np.zeros((channels, rows * p, columns * p))
    for c in range(channels):
        for y in range(rows * p):
            for x in range(columns * p):
                frame[c, y, x] = patches[c * p * p + (y % p) * p + x % p, y // p, x // p]
    return frame


def forecast(network, past, lead_times):
    """(time, channel, y, x) → (lead_time, channel, y, x): encode, pass the states on, forecast."""
    p = network.patch_size
    height, width = past.shape[-2:]
    past = np.pad(past, ((0, 0), (0, 0), (0, -height % p), (0, -width % p)))
    frames = [to_patches(frame, p) for frame in past]
    area = frames[0].shape[1:]
    states = [(np.zeros((c.hidden_channels, *area)),) * 2 for c in network.encoder]
    for frame in frames:
        below = frame
        for layer, cell in enumerate(network.encoder):
            states[layer] = cell_step(cell, below, *states[layer])
            below = states[layer][0]
    readout = network.readout.weight.detach().numpy()[:, :, 0, 0]
    bias = network.readout.bias.detach().numpy()[:, None, None]
    result = []
    for _ in range(lead_times):
        below = None
        for layer, cell in enumerate(network.forecaster):
            states[layer] = cell_step(cell, below, *states[layer])
            below = states[layer][0]
        hidden = np.concatenate([state[0] for state in states])
        patches = np.einsum("oc,cyx->oyx", readout, hidden) + bias
        result.append(from_patches(patches, p)[:, :height, :width])
    return np.stack(result)


def randomised(module):
    """In double precision with every weight random: peepholes are zero when a network is new."""
    generator = torch.Generator().manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(
                0.4 * torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
            )
    return module


@pytest.mark.parametrize(("input_kernel", "state_kernel"), [(3, 3), (5, 1), (1, 3)])
@pytest.mark.parametrize("with_input", [True, False])
def test_a_cell_is_equation_3(input_kernel, state_kernel, with_input):
    cell = randomised(ConvLSTMLayer(2 if with_input else 0, 3, input_kernel, state_kernel))
    rng = np.random.default_rng(1)
    X = rng.normal(size=(2, 4, 5)) if with_input else None
    H, C = rng.normal(size=(2, 3, 4, 5))
    convolved = None
    if X is not None:
        convolved = cell.convolve_inputs(torch.from_numpy(X)[None, None])[:, 0]
    state = (torch.from_numpy(H)[None], torch.from_numpy(C)[None])
    got = cell.step(convolved, state)
    for ours, expected in zip(got, cell_step(cell, X, H, C), strict=True):
        np.testing.assert_allclose(ours.detach().numpy()[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"hidden_channels": (3,), "patch_size": 1}, (2, 1, 3, 4)),
        ({"hidden_channels": (3, 2), "patch_size": 2, "input_kernel": 5}, (3, 1, 4, 6)),
        ({"hidden_channels": (2, 2, 3), "patch_size": 2, "state_kernel": [1, 3, 3]}, (2, 2, 5, 3)),
    ],
)
def test_the_encoder_forecaster_is_the_papers(options, shape):
    network = randomised(ConvLSTM(in_channels=shape[1], **options))
    past = np.random.default_rng(2).normal(size=shape)
    got = network(torch.from_numpy(past)[None], 3).detach().numpy()[0]
    np.testing.assert_allclose(got, forecast(network, past, 3), rtol=1e-10, atol=1e-12)


def test_single_precision_stays_close():
    network = randomised(ConvLSTM(hidden_channels=(3, 2), patch_size=2))
    past = np.random.default_rng(3).normal(size=(4, 1, 6, 6))
    expected = forecast(network, past, 4)
    got = network.float()(torch.from_numpy(past).float()[None], 4).detach().numpy()[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)
