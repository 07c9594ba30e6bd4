"""Learning, without Ray: a network with all that changes while it learns, and its steps.

`models.ray_training` has many of them learn together. A step's batch is one, however many workers
share it: losses and gradients are those of all its observed pixels.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.adversary import Adversary
from models.data import CPU, Batch, TrainingData
from models.training import TrainSettings

ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4
"""Share of a run in which the rate rises, and what it starts and ends with (torch's own)."""


def learning_rate(settings: TrainSettings, progress: float) -> float:
    """The learning rate after that share of a run.

    cosine    half a cosine towards zero (Loshchilov and Hutter 2017, equation 5)
    onecycle  up along half a cosine, then down to nearly nothing (Smith and Topin 2019; as
              `torch.optim.lr_scheduler.OneCycleLR` has it)
    constant  the same

    With warm-up it first rises along a straight line, and the schedule has the rest of the run.
    """
    highest = settings.learning_rate
    if progress < settings.warm_up:
        return highest * progress / settings.warm_up
    progress = (progress - settings.warm_up) / (1 - settings.warm_up)
    if settings.schedule == "constant":
        return highest
    if settings.schedule == "cosine":
        return _half_cosine(highest, 0.0, progress)
    if progress < ONE_CYCLE_RISE:
        return _half_cosine(highest * ONE_CYCLE_START, highest, progress / ONE_CYCLE_RISE)
    rest = (progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)
    return _half_cosine(highest, highest * ONE_CYCLE_END, rest)


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def _together(module: nn.Module, world_size: int) -> nn.Module:
    """A module whose gradients are the mean over workers."""
    return DistributedDataParallel(module) if world_size > 1 else module


@dataclass(frozen=True)
class Step:
    """What a step was: the loss before it, this worker's part of it, and the gradient's norm.

    Still on the device: to read them is to wait for it. The whole loss is the sum over workers.
    """

    loss: Float[Tensor, ""]
    gradient_norm: Float[Tensor, ""]


class Learner:
    """A network, its optimiser, and the moving average of its weights.

    Parameters
    ----------
    network : on its device
    world_size : workers that learn together; with more than one, `torch.distributed` is set up
    adversary : learns beside it, where `settings.adversarial` says so

    Attributes
    ----------
    network : the network itself; its parameters are what is learnt
    average : the moving average of it; None where there is none
    loss : what it learns by
    """

    def __init__(
        self,
        settings: TrainSettings,
        network: nn.Module,
        world_size: int = 1,
        adversary: Adversary | None = None,
    ) -> None:
        self.settings, self.network, self.world_size = settings, network, world_size
        self.adversary = adversary
        self._wrapped = _together(network, world_size)
        self.optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate)
        self.average = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
            if settings.average
            else None
        )
        self.loss = settings.build_loss()

    @classmethod
    def start(
        cls,
        settings: TrainSettings,
        data: TrainingData,
        *,
        device: torch.device = CPU,
        world_size: int = 1,
        weights: dict[str, Tensor] | None = None,
    ) -> "Learner":
        """Before the first step: what is random follows from the seed.

        Parameters
        ----------
        weights : what the network begins with
        """
        torch.manual_seed(settings.seed)
        network = settings.build_network(data.in_channels)
        if weights is not None:
            network.load_state_dict(weights)
        adversary = None
        if settings.adversarial:
            channels = data.past_frames * data.in_channels + len(data.leads)
            adversary = Adversary(channels, lambda module: _together(module.to(device), world_size))
        return cls(settings, network.to(device), world_size, adversary)

    @property
    def best_network(self) -> nn.Module:
        """What is validated and registered: the moving average where there is one."""
        return self.network if self.average is None else self.average.module

    def step(self, batch: Batch, rate: float) -> Step:
        """Forward, loss, backward, update, on this worker's share of a batch.

        Nothing in it waits for a value, so that a GPU never idles and a CUDA graph can hold it.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self._wrapped.train()
        self.optimiser.zero_grad(set_to_none=True)
        pieces = batch.split(self.settings.accumulate)
        counts = torch.stack([self.loss.counts(piece.observed) for piece in pieces])
        total = counts.sum(0)
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        shares = counts / total.clamp(min=1)
        loss = torch.zeros((), device=batch.past.device)
        for number, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
            with self._exchanging(number == len(pieces) - 1):
                value = self._of_piece(piece, share)
                (value * self.world_size).backward()  # workers' gradients are averaged
            loss = loss + value.detach()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return Step(loss, norm.detach())

    def _of_piece(self, piece: Batch, share: Float[Tensor, " part"]) -> Float[Tensor, ""]:
        """The loss of a piece, as its share of the whole batch's."""
        with torch.autocast(piece.past.device.type, torch.bfloat16, enabled=self.settings.autocast):
            output = self._wrapped(piece.past, piece.future.shape[1])
        output = output.to(piece.future.dtype)
        loss = self.loss(output, piece.future, piece.observed, share)
        if self.adversary is None:
            return loss
        rain = self.loss.to_rain(output)
        self.adversary.learn(piece.past, piece.future, rain, piece.observed)
        term = self.adversary.term(piece.past, rain, piece.observed)
        of_batch = len(piece.past) / self.settings.batch_size
        return loss + self.settings.adversarial * of_batch * term

    def _exchanging(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged with the last piece only."""
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """All that changes: weights, optimiser, average, random numbers."""
        device = next(self.network.parameters()).device
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    @staticmethod
    def weights_of(state: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of `best_network` in a state."""
        if state["average"] is None:
            return dict(state["network"])
        average = state["average"].items()
        return {n.removeprefix("module."): w for n, w in average if n.startswith("module.")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        torch.set_rng_state(state["rng"].cpu())
        device = next(self.network.parameters()).device
        if state["rng_cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"].cpu(), device)
