"""C3D: the published stack, its mirror image, and clips of frames."""

import pytest
import torch
from torch import nn

from models.networks import build_model
from models.networks.c3d import pooling


def layers(module):
    return [
        (type(m).__name__, *m.kernel_size, m.in_channels, m.out_channels)
        for m in module.modules()
        if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)
    ]


def small(**options):
    torch.manual_seed(0)
    return build_model("c3d", **{"widths": (3, 4, 5)} | options)


def test_the_encoder_is_that_of_tran_2015():
    with torch.device("meta"):
        network = build_model("c3d")
    channels = [(1, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    channels += [(512, 512), (512, 512)]
    assert layers(network.encoder) == [("Conv3d", 3, 3, 3, *pair) for pair in channels]
    assert [pooling(place) for place in range(5)] == [(1, 2, 2), *[(2, 2, 2)] * 4]
    published = 27 * sum(a * b for a, b in channels) + sum(b for _, b in channels)
    assert sum(weights.numel() for weights in network.encoder.parameters()) == published
    assert published == 27_655_936 - 2 * 27 * 64  # the paper's first layer sees three colours


def test_the_decoder_is_its_mirror_image():
    with torch.device("meta"):
        network = build_model("c3d")
    decoder = layers(network.decoder)
    convolved = [layer[-2:] for layer in decoder if layer[0] == "Conv3d"]
    assert convolved == [
        (512, 512), (512, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 64), (64, 1),
    ]  # fmt: skip
    unpooled = [layer[1:4] for layer in decoder if layer[0] == "ConvTranspose3d"]
    assert unpooled == [*[(2, 2, 2)] * 4, (1, 2, 2)]
    assert network.frames_a_pass == 16


def test_a_pass_is_a_clip_and_the_next_one_starts_from_it():
    network = small(in_channels=2, out_channels=1)  # three groups: four frames a pass
    past = torch.rand(1, 3, 2, 8, 8)
    forecast = network(past, 6)
    torch.testing.assert_close(network(past, 4), forecast[:, :4])
    fed_back = torch.cat([forecast[:, :4], torch.ones(1, 4, 1, 8, 8)], dim=2)
    newest = torch.cat([past, fed_back], dim=1)[:, -3:]
    torch.testing.assert_close(network(newest, 2), forecast[:, 4:])


@pytest.mark.parametrize("past", [1, 2, 5, 16, 20])
def test_any_number_of_past_frames_will_do(past):
    assert small()(torch.rand(1, past, 1, 9, 7), 3).shape == (1, 3, 1, 9, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"out_channels": 2}, "at most 1"), ({"widths": ()}, "at least one group")],
)
def test_sizes_that_do_not_fit_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
