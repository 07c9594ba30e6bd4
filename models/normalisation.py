"""Rain rate to network input and back.

Rain rate spans four decades and most pixels are dry; networks learn it on a logarithmic scale in
[0, 1]. Two are offered:

log   u = ln(1 + R/r0) / ln(1 + R_max/r0), r0 = 0.1 mm/h, R_max = 128 mm/h; exact both ways
dbz   u = (Z_dB − 5) / (60 − 5) with Z = a·R^b (Marshall–Palmer), clipped to [0, 1]; below 5 dBZ
      (0.07 mm/h) is dry, as in HKO-7 (Shi et al. 2017)
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.units import MARSHALL_PALMER

Kind = Literal["log", "dbz"]
R0_MM_H, R_MAX_MM_H = 0.1, 128.0
DRY_DBZ, MAX_DBZ = 5.0, 60.0


@dataclass(frozen=True)
class RainNormalisation:
    """A scale for rain rates. Elementwise; any shape."""

    kind: Kind = "log"

    def encode(self, rain_rate_mm_h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Rain rate in mm/h (no NaN) to [0, 1], 0 for dry."""
        if self.kind == "log":
            return torch.log1p(rain_rate_mm_h / R0_MM_H) / math.log1p(R_MAX_MM_H / R0_MM_H)
        z = MARSHALL_PALMER.a * rain_rate_mm_h.clamp(min=1e-6) ** MARSHALL_PALMER.b
        return ((10 * torch.log10(z) - DRY_DBZ) / (MAX_DBZ - DRY_DBZ)).clamp(0, 1)

    def decode(self, normalised: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inverse: [0, 1] to rain rate in mm/h. Values outside are taken as the nearest end."""
        normalised = normalised.clamp(0, 1)
        if self.kind == "log":
            return torch.expm1(normalised * math.log1p(R_MAX_MM_H / R0_MM_H)) * R0_MM_H
        z = 10 ** ((normalised * (MAX_DBZ - DRY_DBZ) + DRY_DBZ) / 10)
        rain_rate = (z / MARSHALL_PALMER.a) ** (1 / MARSHALL_PALMER.b)
        return torch.where(normalised > 0, rain_rate, 0.0)
