"""Rain rate, accumulation, reflectivity, and the packing in which rain rate is stored.

Shapes are free: every function is elementwise and keeps NaN, which means "not observed".
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SCALE_MM_H = 0.01
"""Stored integer 1 is 0.01 mm/h."""
MISSING = 65535
"""Stored integer for "not observed"."""
LARGEST_MM_H = (MISSING - 1) * SCALE_MM_H
"""655.34 mm/h: the largest rain rate that can be stored; larger ones are clipped and counted."""
BLOCK = 1 << 17
"""Pixels packed at a time."""
DRY_MM_H = 0.1
"""Below this a pixel counts as dry, as in the pysteps and HKO-7 conventions."""
WET = round(DRY_MM_H / SCALE_MM_H)
"""The least stored integer that is not dry."""

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ZRRelation:
    """Z = a·R^b with Z in mm⁶/m³ and R in mm/h."""

    name: str
    a: float
    b: float

    def __str__(self) -> str:
        return f"{self.name}: a={self.a:g}, b={self.b:g}"


MARSHALL_PALMER = ZRRelation("Marshall–Palmer 1948", a=200.0, b=1.6)
FINLAND_RAIN = ZRRelation("Leinonen et al. 2012, Finland", a=223.0, b=1.53)
"""doi:10.1175/JAMC-D-11-056.1; what FMI uses for rain."""


def rain_rate_from_reflectivity(reflectivity_dbz: Floats, zr: ZRRelation) -> Floats:
    """Rain rate in mm/h from reflectivity in dBZ: R = (10^(dBZ/10) / a)^(1/b)."""
    return (10.0 ** (reflectivity_dbz / 10.0) / zr.a) ** (1.0 / zr.b)


def reflectivity_from_rain_rate(rain_rate_mm_h: Floats, zr: ZRRelation) -> Floats:
    """Reflectivity in dBZ from rain rate in mm/h; no rain is −inf."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(zr.a * rain_rate_mm_h**zr.b)


def rain_rate_from_accumulation(accumulation_mm: Floats, hours: float) -> Floats:
    """Mean rain rate in mm/h over the interval in which `accumulation_mm` fell."""
    return accumulation_mm / hours


def pack(rain_rate_mm_h: Floats) -> tuple[NDArray[np.uint16], int]:
    """Stored integers (0.01 mm/h, 65535 = not observed) and how many pixels had to be clipped.

    Negative rain rates are no rain rates: they are stored as not observed. A block at a time, so
    that what is worked on stays in the processor's cache.
    """
    stored = np.empty(rain_rate_mm_h.shape, np.uint16)
    flat, flat_stored = rain_rate_mm_h.reshape(-1), stored.reshape(-1)
    steps_of_a_block = np.empty(min(BLOCK, flat.size), flat.dtype)
    clipped = 0
    for start in range(0, flat.size, BLOCK):
        rain_rate = flat[start : start + BLOCK]
        steps = steps_of_a_block[: rain_rate.size]
        with np.errstate(invalid="ignore", over="ignore"):
            np.multiply(rain_rate, 1 / SCALE_MM_H, out=steps)
            np.rint(steps, out=steps)
            if np.fmax.reduce(steps) > MISSING - 1:
                over = steps > MISSING - 1
                steps[over] = MISSING - 1
                clipped += int(np.count_nonzero(over))
            if np.fmin.reduce(rain_rate) < 0:
                steps[rain_rate < 0] = np.nan
            np.fmin(steps, MISSING, out=steps)  # of NaN and a number it takes the number
        flat_stored[start : start + BLOCK] = steps
    return stored, clipped


class Counts(NamedTuple):
    """What tells one field's stored integers from another's.

    Parameters
    ----------
    observed, wet : pixels observed, and those of them with 0.1 mm/h or more
    total : the sum of the observed pixels' integers, hundredths of mm/h
    """

    observed: int
    wet: int
    total: int


def count(stored: NDArray[np.uint16]) -> Counts:
    """The counts of a field's stored integers."""
    flat, missing, wet, total = stored.reshape(-1), 0, 0, 0
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        missing += int(np.count_nonzero(block == MISSING))
        wet += int(np.count_nonzero(block >= WET))
        total += int(block.sum(dtype=np.uint64))
    return Counts(flat.size - missing, wet - missing, total - missing * MISSING)


def unpack(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Rain rate in mm/h (float32, NaN = not observed) from stored integers."""
    rain_rate = stored.astype(np.float32) / np.float32(1 / SCALE_MM_H)  # exact to the last bit
    rain_rate[stored == MISSING] = np.nan
    return rain_rate
