"""One of two gloo workers that train every network with plain DistributedDataParallel, and an
adversary.

Run as ``python -m tests.models.ddp_worker RANK STORE``; raises where a parameter is unused, or
where the gradient is not the mean of the two workers' own.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from models.adversary import Adversary, joined
from models.networks import NETWORKS, build_model

SMALL: dict[str, dict[str, Any]] = {
    "convlstm": {"hidden_channels": (4, 3), "patch_size": 2},
    "convlstm-strided": {"hidden_channels": (4, 3), "strides": (2, 2), "sampled_channels": (2, 3)},
    "fclstm": {"frame_size": (16, 16), "hidden_channels": (5, 4)},
    "convgru": {
        "hidden_channels": (4, 3),
        "strides": (3, 2),
        "sampled_channels": (2, 3),
        "state_kernel": 3,
    },
    "trajgru": {
        "hidden_channels": (4, 3),
        "strides": (2, 1),
        "sampled_channels": (2, 3),
        "links": (3, 2),
    },
    "predrnn": {"hidden_channels": (4, 4), "kernel": 3},
    "mcnet": {"widths": (4, 4, 4)},
    "c3d": {"widths": (4, 4, 4)},
}
COMPUTES = ("exact", "exact-remat", "bf16", "bf16-remat", "reference")


def train(name: str, config: dict[str, Any], rank: int) -> None:
    torch.manual_seed(0)
    network = build_model(name, in_channels=2, out_channels=1, **config)
    alone = build_model(name, in_channels=2, out_channels=1, **config)
    alone.load_state_dict(network.state_dict())
    together = DistributedDataParallel(network)
    generator = torch.Generator().manual_seed(1)
    for lead_times in (1, 3):  # a second forward pass finds what the first one left unused
        frames = torch.rand(2, 2, 3, 2, 16, 16, generator=generator)
        network.zero_grad()
        together(frames[rank], lead_times).square().mean().backward()
        alone.zero_grad()
        sum(alone(half, lead_times).square().mean() / 2 for half in frames).backward()
        for (weight, got), expected in zip(
            network.named_parameters(), alone.parameters(), strict=True
        ):
            assert got.grad is not None, f"{name}: {weight} is unused"
            torch.testing.assert_close(
                got.grad, expected.grad, rtol=2e-2, atol=1e-4, msg=f"{name} {config}: {weight}"
            )


def train_adversary(rank: int) -> None:
    """The network's term goes past DistributedDataParallel, which would wait for gradients."""
    torch.manual_seed(rank)  # the first worker's weights are everyone's
    together, alone = Adversary(3, DistributedDataParallel), Adversary(3).discriminator
    generator = torch.Generator().manual_seed(1)
    observed = torch.ones(2, 1, 1, 12, 12, dtype=torch.bool)
    for _ in range(2):
        past = torch.rand(2, 2, 2, 1, 12, 12, generator=generator)
        future, forecast = torch.rand(2, 2, 2, 1, 1, 12, 12, generator=generator)
        together.term(past[rank], forecast[rank].requires_grad_(), observed).backward()
        alone.load_state_dict(together.discriminator.state_dict())
        alone.zero_grad()
        for worker in range(2):
            of_observed = alone(joined(past[worker], future[worker], observed))
            of_forecast = alone(joined(past[worker], forecast[worker].detach(), observed))
            ((F.softplus(-of_observed) + F.softplus(of_forecast)).mean() / 2).backward()
        together.learn(past[rank], future[rank], forecast[rank], observed)
        for got, expected in zip(
            together.discriminator.parameters(), alone.parameters(), strict=True
        ):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-5)


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    assert set(SMALL) == set(NETWORKS), "a small config for every network"
    for name, config in SMALL.items():
        train(name, config, rank)
    for compute in COMPUTES:
        train("convlstm", SMALL["convlstm"] | {"compute": compute}, rank)
    train_adversary(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
