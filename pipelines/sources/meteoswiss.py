"""MeteoSwiss' 5-minute composites AQC and CPC (CombiPrecip) as GIF.

A pixel's palette index i is an accumulation in mm over five minutes, by the radars' reflectivity
scale and Z = 316·R^1.5: (10^((i − 71.5)/20)/316)^(1/1.5). Below 2 it is dry; 255 is not observed.
The other indices that are no measurement (251–254) are not observed either. The file holds neither
time nor georeferencing: the time is the name's (year, day of year, hour, minute) and the grid is
the fixed Swiss radar domain CCS4.

Source of formula and domain: `pysteps.io.importers.import_mch_gif`.
"""

import io
import re

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.content import reading
from pipelines.units import ZRRelation, rain_rate_from_accumulation

NAME = re.compile(r"^(AQC|CPC)(?P<time>\d{9})\w?_00005\.801\.gif$")
SWISS = ZRRelation("Swiss radars (MeteoSwiss)", a=316.0, b=1.5)
MINUTES = 5
LV03 = "EPSG:21781"
WEST_M, NORTH_M, PIXEL_M, SHAPE = 255000.0, 480000.0, 1000.0, (640, 710)
FIRST_WET, LAST_WET = 2, 250


class MeteoSwiss(FoundByName):
    """MeteoSwiss radar composites, GIF."""

    name = "meteoswiss"
    title = "MeteoSwiss 5-minute composites, Switzerland (AQC, CPC)"
    format = "GIF"
    variable = "accumulation over 5 min"
    timestep: pd.Timedelta | None = pd.Timedelta("5min")
    licence = "by agreement with MeteoSwiss"
    location: str | None = None
    decoder = "meteoswiss/1"
    pattern = NAME
    example = "AQC161321200_00005.801.gif"
    time_format = "%y%j%H%M"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`. The frame's time is NaT: the name has it."""
        with reading(content, "a GIF composite of MeteoSwiss"):
            with Image.open(io.BytesIO(content), formats=("GIF",)) as picture:
                if picture.mode not in ("P", "L"):
                    raise ValueError(f"pixels of mode {picture.mode}, not palette indices")
                if (picture.height, picture.width) != SHAPE:
                    raise ValueError(f"{picture.height}×{picture.width} pixels, not {SHAPE}")
                index = np.asarray(picture)
            grid = Grid.from_corner(LV03, WEST_M, NORTH_M, (PIXEL_M, PIXEL_M), SHAPE)
            return frame(
                _rain_rate_table()[index],
                grid,
                valid_time=None,
                z_r_relation=str(SWISS),
                cell_methods=f"time: mean (interval: {MINUTES} min, ends at time)",
            )


def _rain_rate_table() -> NDArray[np.float32]:
    """(256,) mm/h for each palette index."""
    index = np.arange(256)
    accumulation_mm = (10.0 ** ((index - 71.5) / 20.0) / SWISS.a) ** (1.0 / SWISS.b)
    accumulation_mm[:FIRST_WET] = 0.0
    accumulation_mm[LAST_WET + 1 :] = np.nan
    return rain_rate_from_accumulation(accumulation_mm, MINUTES / 60).astype(np.float32)
