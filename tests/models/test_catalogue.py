"""What a forecast costs, against arithmetic."""

import pytest
import torch

from models.baselines import BASELINES
from models.catalogue import catalogue, network_entry, saved_bytes
from models.networks import NETWORKS, build_model


def test_every_network_and_baseline_is_listed_once_with_its_paper():
    entries = catalogue(frame=64, past=2, lead_times=2)
    assert [entry.name for entry in entries] == [*NETWORKS, *BASELINES]
    assert all(entry.paper for entry in entries)
    for entry in entries:
        costs = (entry.frame, entry.parameters, entry.flops, entry.training_bytes)
        assert all(costs) if entry.kind == "network" else costs == (None,) * 4


def test_the_cost_of_convlstm_by_hand():
    """Two layers of 64 channels, 3×3, on 64/4 = 16 patches a side; 2 past frames, 3 lead times."""
    entry = network_entry("convlstm", frame=64, past=2, lead_times=3)
    gates, pixels = 4 * 64, 16 * 16
    state = 64 * gates * 9  # multiplications of a state convolution, per patch
    encoder = 2 * 16 * gates * 9 + state  # a zero state is not convolved
    encoder += 2 * state + state
    forecaster = 3 * state + 3 * 2 * state
    readout = 3 * 128 * 16
    assert entry.flops == 2 * pixels * (encoder + forecaster + readout)
    layer = gates * 64 * 9 + gates + 3 * 64
    assert entry.parameters == (4 * layer + gates * 16 * 9 + 2 * gates * 64 * 9 + 128 * 16 + 16)


def test_costs_grow_with_frames_and_lead_times():
    def flops(**size):
        return network_entry("convlstm", **size).flops

    assert flops(frame=64, past=2, lead_times=4) > flops(frame=64, past=2, lead_times=2)
    assert flops(frame=128, past=2, lead_times=2) == 4 * flops(frame=64, past=2, lead_times=2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_kept_is_counted_once_wherever_it_lies(device):
    frames = torch.rand(2, 3, 4, 4, device=device)
    convolution = torch.nn.Conv2d(3, 5, 3, device=device)

    def forward():  # keeps the frames, and what the two sines share
        middle = convolution(frames)
        return middle.sin() + middle.cos()

    assert saved_bytes(convolution, forward) == frames.nbytes + 2 * 5 * 2 * 2 * 4


def test_rematerialising_keeps_less():
    def kept(compute):
        with torch.device("meta"):
            network, frames = build_model("convlstm", compute=compute), torch.empty(1, 4, 1, 64, 64)
        return saved_bytes(network, lambda: network(frames, 4))

    assert kept("bf16-remat") < kept("bf16") < kept("exact")
