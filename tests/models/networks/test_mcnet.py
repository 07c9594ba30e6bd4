"""MCNet: the published layers, motion as differences, forecasts fed back."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.networks import build_model
from models.networks.mcnet import unpool


def layers(module):
    """Kernel and channels of each convolution, in order."""
    return [
        (m.kernel_size[0], m.in_channels, m.out_channels)
        for m in module.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]


def small(**options):
    torch.manual_seed(0)
    return build_model("mcnet", widths=(3, 4, 5), **options)


def test_the_layers_are_those_of_villegas_2017():
    with torch.device("meta"):
        network = build_model("mcnet")
    assert layers(network.motion) == [(5, 1, 64), (5, 64, 128), (7, 128, 256)]
    assert layers(network.memory) == [(3, 256, 1024), (3, 256, 1024)]
    assert network.memory.peepholes is None
    assert layers(network.content) == [
        (3, 1, 64), (3, 64, 64),
        (3, 64, 128), (3, 128, 128),
        (3, 128, 256), (3, 256, 256), (3, 256, 256),
    ]  # fmt: skip
    assert layers(network.combination) == [(3, 512, 256), (3, 256, 128), (3, 128, 256)]
    assert layers(network.residuals) == [
        (3, 128, 64), (3, 64, 64),
        (3, 256, 128), (3, 128, 128),
        (3, 512, 256), (3, 256, 256),
    ]  # fmt: skip
    assert layers(network.decoder) == [
        (3, 256, 256), (3, 256, 256), (3, 256, 128),
        (3, 128, 128), (3, 128, 64),
        (3, 64, 64), (3, 64, 1),
    ]  # fmt: skip


def test_the_parameter_count_by_hand():
    with torch.device("meta"):
        network = build_model("mcnet")
    motion = 25 * 64 + 64 + 25 * 64 * 128 + 128 + 49 * 128 * 256 + 256
    memory = 2 * 9 * 256 * 1024 + 1024
    content = 9 * (64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 2 * 256**2)
    content += 2 * 64 + 2 * 128 + 3 * 256
    combination = 9 * (512 * 256 + 256 * 128 + 128 * 256) + 256 + 128 + 256
    residuals = sum(9 * (2 * c * c + c * c) + 2 * c for c in (64, 128, 256))
    decoder = 9 * (2 * 256**2 + 256 * 128 + 128**2 + 128 * 64 + 64**2 + 64)
    decoder += 2 * 256 + 2 * 128 + 2 * 64 + 1
    expected = motion + memory + content + combination + residuals + decoder
    assert sum(weights.numel() for weights in network.parameters()) == expected


def test_a_frame_is_what_the_papers_equations_make_of_it():
    """Equations 1 to 5, once through, in the paper's words."""
    network = small().double()
    past = torch.rand(1, 3, 1, 16, 8, dtype=torch.float64)

    def encode(encoder, frame):
        seen = []
        for group in encoder.groups:
            for conv in group:
                frame = F.relu(conv(frame))
            seen.append(frame)
            frame = F.max_pool2d(frame, 2)
        return frame, seen

    state = network.memory.zero_state(torch.zeros(1, 1, 5, 2, 1, dtype=torch.float64))
    for t in (1, 2):
        moved, motion_seen = encode(network.motion, past[:, t] - past[:, t - 1])
        state = network.memory.step(network.memory.convolve_inputs(moved[None])[0], state)
    content, content_seen = encode(network.content, past[:, -1])
    features = network.combination(torch.cat([state[0], content], dim=1))
    for scale, group in zip((2, 1, 0), network.decoder.groups, strict=True):
        both = torch.cat([motion_seen[scale], content_seen[scale]], dim=1)
        features = unpool(features) + network.residuals[scale](both)
        for deconv in group:
            features = deconv(features)
            if deconv is not network.decoder.groups[-1][-1]:
                features = F.relu(features)
    torch.testing.assert_close(network(past, 1)[:, 0], torch.tanh(features))


def test_unpooling_puts_each_value_in_the_upper_left_of_four():
    field = torch.tensor([[1.0, 2.0]])[None, None]
    expected = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(unpool(field)[0, 0], expected)


def test_a_forecast_frame_is_the_next_newest_frame_and_counts_as_observed():
    network = small(in_channels=2, out_channels=1)
    past = torch.rand(1, 3, 2, 16, 16)
    forecast = network(past, 3)
    fed_back = torch.cat([forecast[:, :1], torch.ones(1, 1, 1, 16, 16)], dim=2)
    again = network(torch.cat([past, fed_back], dim=1), 2)
    torch.testing.assert_close(forecast[:, 1:], again, rtol=1e-4, atol=1e-5)


def test_bounded_forecasts_lie_between_minus_one_and_one():
    past = 50 * torch.rand(1, 2, 1, 8, 8)
    assert small()(past, 2).abs().max() <= 1
    assert small(bounded=False)(past, 1).abs().max() > 1


def test_one_past_frame_has_no_motion():
    with pytest.raises(ValueError, match="at least two past frames"):
        small()(torch.rand(1, 1, 1, 8, 8), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"out_channels": 2}, "at most 1"), ({"widths": (3, 4)}, "widths must be 3 numbers")],
)
def test_sizes_that_do_not_fit_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        build_model("mcnet", **{"widths": (3, 4, 5)} | options)
