"""ConvLSTM: the paper's parameter counts, any size of frame, and no weight that never learns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.networks import build_model
from models.networks.convlstm import ConvLSTM
from pipelines.errors import UnknownNameError


def small(**options):
    torch.manual_seed(0)
    return ConvLSTM(**{"hidden_channels": (3, 2), "patch_size": 2} | options)


@pytest.mark.parametrize(
    ("hidden_channels", "input_kernel", "state_kernel", "parameters"),
    [
        ((256,), 5, 5, 13_524_496),
        ((128, 128), 5, 5, 10_042_896),
        ((128, 64, 64), 5, 5, 7_585_296),
        ((128, 128), 9, 1, 11_550_224),
        ((128, 64, 64), 9, 1, 8_830_480),
    ],
)
def test_parameter_counts_are_those_of_shi_2015_table_1(
    hidden_channels, input_kernel, state_kernel, parameters
):
    with torch.device("meta"):
        network = ConvLSTM(
            hidden_channels=hidden_channels,
            input_kernel=input_kernel,
            state_kernel=state_kernel,
            patch_size=4,
        )
    assert sum(weights.numel() for weights in network.parameters()) == parameters


@settings(max_examples=12)
@given(
    batch=st.integers(1, 2),
    past=st.integers(1, 3),
    lead_times=st.integers(1, 4),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    channels=st.integers(1, 2),
    patch_size=st.integers(1, 4),
)
def test_forecasts_have_the_shape_of_their_frames(
    batch, past, lead_times, height, width, channels, patch_size
):
    network = small(in_channels=channels, patch_size=patch_size, out_channels=1)
    frames = torch.rand(batch, past, channels, height, width)
    assert network(frames, lead_times).shape == (batch, lead_times, 1, height, width)


def test_as_many_channels_come_out_as_go_in_unless_said_otherwise():
    frames = torch.rand(1, 2, 3, 4, 4)
    assert small(in_channels=3)(frames, 1).shape[2] == 3
    assert small(in_channels=3, out_channels=1)(frames, 1).shape[2] == 1


@torch.no_grad()
def test_a_size_that_the_patch_does_not_divide_is_padded_with_zeros_below_and_to_the_right():
    network = small(patch_size=4)
    frames = torch.rand(1, 2, 1, 6, 9)
    padded = torch.zeros(1, 2, 1, 8, 12)
    padded[..., :6, :9] = frames
    torch.testing.assert_close(network(frames, 2), network(padded, 2)[..., :6, :9])


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other():
    network, frames = small(), torch.rand(3, 2, 1, 4, 4)
    together = network(frames, 2)
    for number in range(3):
        torch.testing.assert_close(network(frames[number : number + 1], 2)[0], together[number])


@torch.no_grad()
def test_a_lead_time_does_not_depend_on_how_far_the_forecast_goes():
    network, frames = small(), torch.rand(1, 3, 1, 4, 4)
    torch.testing.assert_close(network(frames, 5)[:, :2], network(frames, 2))


@torch.no_grad()
def test_every_past_frame_and_its_place_count():
    network, frames = small(), torch.rand(1, 3, 1, 4, 4)
    forecast = network(frames, 1)
    for number in range(3):
        changed = frames.clone()
        changed[:, number] += 1
        assert not torch.equal(network(changed, 1), forecast), number
    assert not torch.equal(network(frames.flip(1), 1), forecast)


def test_every_weight_is_trained():
    network = small(hidden_channels=(3, 2, 2))
    network(torch.rand(1, 2, 1, 4, 4), 2).square().mean().backward()
    for name, weights in network.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name


def test_the_forecasters_first_layer_has_no_input():
    network = small()
    assert network.forecaster[0].input_conv is None
    assert all(cell.input_conv is not None for cell in network.encoder)
    assert network.forecaster[1].input_conv is not None


def test_each_layer_may_have_its_own_kernels():
    network = small(input_kernel=[5, 3], state_kernel=[1, 3])
    assert [cell.input_conv.kernel_size[0] for cell in network.encoder] == [5, 3]
    assert [cell.state_conv.kernel_size[0] for cell in network.forecaster] == [1, 3]
    assert network(torch.rand(1, 2, 1, 7, 5), 2).shape == (1, 2, 1, 7, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_kernel": 4}, "kernel must be odd"),
        ({"state_kernel": 2}, "kernel must be odd"),
        ({"input_kernel": [3, 3, 3]}, "one value for each of 2 layers"),
    ],
)
def test_kernels_that_would_change_the_size_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_a_network_is_built_by_name():
    network = build_model("convlstm", hidden_channels=[4], patch_size=2)
    assert isinstance(network, ConvLSTM)
    assert network.patch_size == 2


def test_an_unknown_network_or_option_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'convlstm'"):
        build_model("convltsm")
    with pytest.raises(UnknownNameError, match="did you mean 'patch_size'"):
        build_model("convlstm", patchsize=4)
