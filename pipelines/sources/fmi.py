"""What the formats of the Finnish Meteorological Institute share."""

import numpy as np
from numpy.typing import NDArray

from pipelines.units import ZRRelation, rain_rate_from_reflectivity

LICENCE = "CC-BY-4.0 (FMI open data)"


def rain_rate_table(
    gain: float, offset: float, *, undetect: int, nodata: int, zr: ZRRelation
) -> NDArray[np.float32]:
    """(256,) rain rate in mm/h for each byte, which holds reflectivity: dBZ = gain·byte + offset.

    The code `undetect` is 0 mm/h, `nodata` is NaN.
    """
    table = rain_rate_from_reflectivity(np.arange(256) * gain + offset, zr).astype(np.float32)
    table[undetect] = 0.0
    table[nodata] = np.nan
    return table
