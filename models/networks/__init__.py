"""Networks by name: one file each, one line here.

Each takes past frames (batch, time, channel, y, x) and how many lead times to forecast, and gives
(batch, lead_time, channel, y, x). `paper` says where it is from.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from models.networks.c3d import C3D
from models.networks.convgru import ConvGRU, TrajGRU
from models.networks.convlstm import ConvLSTM, StridedConvLSTM
from models.networks.fclstm import FCLSTM
from models.networks.mcnet import MCNet
from models.networks.predrnn import PredRNN
from pipelines.errors import UnknownNameError

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "convlstm": ConvLSTM,
    "convlstm-strided": StridedConvLSTM,
    "fclstm": FCLSTM,
    "convgru": ConvGRU,
    "trajgru": TrajGRU,
    "predrnn": PredRNN,
    "mcnet": MCNet,
    "c3d": C3D,
}


def build_model(name: str, **config: Any) -> nn.Module:
    """The network called `name`; an unknown name or option is an error that names the nearest.

    >>> network = build_model("convlstm", hidden_channels=[128, 64, 64], input_kernel=5,
    ...                       state_kernel=5, patch_size=4)
    >>> sum(weights.numel() for weights in network.parameters())
    7585296
    """
    check_options(name, config)
    return NETWORKS[name](**config)


def check_options(name: str, config: Mapping[str, Any]) -> None:
    """Raise `UnknownNameError` where there is no such network, or it has no such option."""
    if name not in NETWORKS:
        raise UnknownNameError.of("model", name, NETWORKS)
    options = inspect.signature(NETWORKS[name]).parameters
    for option in config:
        if option not in options:
            raise UnknownNameError.of(f"option of model {name}", option, options)
