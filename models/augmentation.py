"""Sequences turned, mirrored and made stronger or weaker, so that few teach more.

What happens to a sequence follows from its key alone: not from the worker that has it, nor from
what else is in its batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from pipelines.section import Section


class AugmentSettings(Section):
    """What is done to the sequences of a training batch."""

    flip: bool = Field(False, description="Mirror half of the sequences, in each direction.")
    rotate: bool = Field(False, description="Turn sequences by 0°, 90°, 180° or 270°.")
    jitter: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Multiply rain rates by e^(jitter·z), z normally distributed, one a sequence.",
    )


def augment(
    sequences_mm_h: Float[Tensor, "B T H W"],
    keys: Sequence[tuple[int, ...]],
    settings: AugmentSettings,
) -> Float[Tensor, "B T H W"]:
    """Each sequence as its key says; square frames, mm/h, NaN where not observed.

    Parameters
    ----------
    keys : (B,) of each sequence what its random numbers follow from
    """
    draws = [np.random.default_rng(key).random(3) for key in keys]
    mirrored_y, mirrored_x, turned = torch.from_numpy(np.array(draws) < 0.5).T
    result = sequences_mm_h
    if settings.flip or settings.rotate:
        # All eight ways to lay a square on itself: mirrored along y, along x, transposed. Turns
        # alone are those of them that are mirrored an even number of times.
        if not settings.rotate:
            turned = torch.zeros_like(turned)
        elif not settings.flip:
            mirrored_x = mirrored_y ^ turned
        for chosen, mirror in (
            (mirrored_y, lambda frames: frames.flip(-2)),
            (mirrored_x, lambda frames: frames.flip(-1)),
            (turned, lambda frames: frames.transpose(-2, -1)),
        ):
            result = _where(chosen, mirror(result), result)
    if settings.jitter:
        strength = [np.random.default_rng((*key, 1)).normal() for key in keys]
        factor = torch.exp(settings.jitter * torch.tensor(strength, dtype=result.dtype))
        result = result * factor.to(result.device)[:, None, None, None]
    return result


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.to(one.device)[:, None, None, None], one, other)
