"""What can forecast, and what it costs: `squall models`.

Networks are built as published on torch's meta device, where tensors have shapes and no numbers, so
counting takes neither memory nor time.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.baselines import BASELINES, build_baseline
from models.networks import NETWORKS, build_model


@dataclass(frozen=True)
class Entry:
    """A network or a baseline.

    Attributes
    ----------
    frame : pixels a side of the frames that costs are for
    parameters : weights that are trained
    flops : of one forecast, a multiplication and an addition counted as two
    training_bytes : kept for the backward pass of one sequence
    """

    name: str
    kind: str
    paper: str
    frame: int | None = None
    parameters: int | None = None
    flops: int | None = None
    training_bytes: int | None = None


def catalogue(frame: int = 256, past: int = 6, lead_times: int = 12) -> list[Entry]:
    """All networks and baselines; costs for square frames of one channel."""
    return [
        *(network_entry(name, frame, past, lead_times) for name in NETWORKS),
        *(Entry(name, "baseline", build_baseline(name).paper) for name in BASELINES),
    ]


def network_entry(name: str, frame: int, past: int, lead_times: int) -> Entry:
    """A network as published, and what it costs."""
    with torch.device("meta"):
        network = build_model(name)
        own_size = inspect.signature(NETWORKS[name]).parameters.get("frame_size")
        if own_size is not None:  # built for one size
            frame = own_size.default[0]
        frames = torch.empty(1, past, 1, frame, frame)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(frames, lead_times)
    return Entry(
        name,
        "network",
        str(network.paper),
        frame,
        sum(weights.numel() for weights in network.parameters()),
        counter.get_total_flops(),
        saved_bytes(network, lambda: network(frames, lead_times)),
    )


def saved_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Memory that a forward pass keeps for the backward pass, weights aside, each piece once."""
    weights = {weights.untyped_storage()._cdata for weights in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total
