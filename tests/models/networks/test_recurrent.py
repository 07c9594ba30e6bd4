"""Laws that every network obeys, and the sizes that the papers give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.networks import NETWORKS, build_model
from pipelines.errors import SquallError
from tests.models.ddp_worker import SMALL


def small(name, **options):
    torch.manual_seed(0)
    return build_model(name, **SMALL[name] | options)


def frames(batch=1, past=3, channels=1, size=(16, 16)):
    return torch.rand(batch, past, channels, *size, generator=torch.Generator().manual_seed(1))


ANY_SIZE = [name for name in NETWORKS if name != "fclstm"]


@pytest.mark.parametrize("name", ANY_SIZE)
@settings(max_examples=8)
@given(
    batch=st.integers(1, 2),
    past=st.integers(2, 4),
    lead_times=st.integers(1, 4),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
)
def test_forecasts_have_the_shape_of_their_frames(name, batch, past, lead_times, height, width):
    past_frames = frames(batch, past, 2, (height, width))
    forecast = small(name, in_channels=2, out_channels=1)(past_frames, lead_times)
    assert forecast.shape == (batch, lead_times, 1, height, width)
    assert forecast.dtype == torch.float32
    assert forecast.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other(name):
    network, past = small(name), frames(batch=3)
    together = network(past, 2)
    for number in range(3):
        alone = network(past[number : number + 1], 2)[0]
        torch.testing.assert_close(alone, together[number], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_lead_time_does_not_depend_on_how_far_the_forecast_goes(name):
    network, past = small(name), frames()
    further, nearer = network(past, 5)[:, :2], network(past, 2)
    torch.testing.assert_close(further, nearer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_past_frame_and_its_place_count(name):
    network, past = small(name), frames()
    forecast = network(past, 1)
    for number in range(3):
        changed = past.clone()
        changed[:, number] += 1 + past[:, number]
        assert not torch.equal(network(changed, 1), forecast), number
    assert not torch.equal(network(past.flip(1), 1), forecast)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lead_times", [1, 3])
def test_every_weight_is_trained(name, lead_times):
    network = small(name)
    network(frames(past=4), lead_times).square().mean().backward()
    for weight, values in network.named_parameters():
        assert values.grad is not None, weight
        if lead_times > 1:  # a single step from a zero state leaves state weights without gradient
            assert values.grad.abs().sum() > 0, weight


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dry_past_gives_a_finite_forecast(name):
    assert small(name)(torch.zeros(1, 3, 1, 16, 16), 2).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_says_where_it_is_from(name):
    assert NETWORKS[name].paper


def parameters(name, **options):
    with torch.device("meta"):
        network = build_model(name, **options)
    return sum(weights.numel() for weights in network.parameters())


def test_the_parameter_count_of_fclstm_is_that_of_shi_2015_table_1():
    assert parameters("fclstm") == 142_667_776


def test_the_parameter_count_of_predrnn_is_the_published_23_8_million():
    assert round(parameters("predrnn") / 1e6, 1) == 23.8


def test_convgru_has_the_hko_7_networks_layers():
    with torch.device("meta"):
        network = build_model("convgru")
    assert [
        (c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in network.down
    ] == [
        (1, 8, 7, 5),
        (64, 192, 5, 3),
        (192, 192, 3, 2),
    ]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in network.up] == [
        (64, 8, 7, 5),
        (192, 64, 5, 3),
        (192, 192, 4, 2),
    ]
    assert [layer.hidden_channels for layer in network.encoder] == [64, 192, 192]
    assert network.forecaster[-1].input_conv is None


def test_a_480_pixel_frame_has_states_of_96_32_and_16_pixels():
    with torch.device("meta"):
        network, past = build_model("trajgru"), torch.empty(1, 2, 1, 480, 480)
        sizes = []
        for layer in network.encoder:
            layer.register_forward_hook(lambda m, a, result: sizes.append(result[0].shape[-1]))
        assert network(past, 3).shape == (1, 3, 1, 480, 480)
    assert sizes == [96, 32, 16]


def test_strides_make_the_states_of_upper_layers_cost_less():
    from models.catalogue import saved_bytes

    with torch.device("meta"):
        past = torch.empty(1, 6, 1, 128, 128)
        flat = build_model("convlstm", hidden_channels=(64, 64, 64))
        strided = build_model("convlstm-strided", hidden_channels=(64, 64, 64))
    kept = [saved_bytes(network, lambda n=network: n(past, 12)) for network in (flat, strided)]
    assert kept[1] < 0.8 * kept[0]


def test_fclstm_takes_frames_of_its_size_only():
    with pytest.raises(SquallError, match=r"found 16×12; expected 16×16.*frame_size"):
        small("fclstm")(frames(size=(16, 12)), 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convgru", {"state_kernel": 4}, "kernel must be odd"),
        ("trajgru", {"links": (3,)}, "links needs one value for each of 2 layers"),
        ("convlstm-strided", {"strides": (2,)}, "strides needs one value for each of 2 layers"),
        ("predrnn", {"hidden_channels": (4, 3)}, "all be alike"),
        ("predrnn", {"out_channels": 2}, "2 channels cannot be fed back into 1"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        small(name, **options)
