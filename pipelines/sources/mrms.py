"""NOAA's Multi-Radar/Multi-Sensor system: precipitation rate over the United States (GRIB2).

`PrecipRate`, mm/h, every 2 minutes on 3500×7000 pixels of 0.01° (the grid is read from each file).
−3 is "no coverage" and −1 "missing": every negative value is not observed.

The grid's coordinates are the file's own: geodetic latitude and longitude on the ellipsoid that
the message names (code 2, IAU 1965: 6378160 m, 6356775 m). No datum is named, and the NOAA tables
below give none, so none is claimed; PROJ then takes latitude and longitude over to WGS 84 as they
are.

Source: NOAA/NSSL, MRMS GRIB2 tables (discipline 209, category 6, number 1); NOAA Open Data
Dissemination, https://registry.opendata.aws/noaa-mrms-pds/.
"""

import re

import pandas as pd
import xarray as xr

from pipelines.errors import FrameError
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.grib2 import decoder, messages, unreadable

NAME = re.compile(r"PrecipRate_00\.00_(?P<time>\d{8}-\d{6})\.grib2(\.gz)?$")
PRECIPITATION_RATE = (209, 6, 1)
"""Discipline, category and number."""


class Mrms(FoundByName):
    """MRMS precipitation rate.

    The public bucket has a folder for each day: name one, such as ``…/20240601``, and only that is
    listed.
    """

    name = "mrms"
    title = "NOAA MRMS precipitation rate, United States"
    format = "GRIB2"
    variable = "PrecipRate"
    timestep: pd.Timedelta | None = pd.Timedelta("2min")
    licence = "public domain (NOAA Open Data Dissemination; attribution asked for)"
    location: str | None = "s3://noaa-mrms-pds/CONUS/PrecipRate_00.00"
    decoder = decoder("mrms", 1)
    pattern = NAME
    example = "MRMS_PrecipRate_00.00_20240601-000000.grib2.gz"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`.

        Of several messages the first precipitation rate is read.
        """
        found = list(messages(content))  # all, so that a file cut in its second message is told
        message = next((one for one in found if one.parameter == PRECIPITATION_RATE), None)
        if message is None:
            parameters = ", ".join("-".join(map(str, one.parameter)) for one in found) or "none"
            raise FrameError(
                "not a precipitation rate",
                found=f"GRIB2 parameter {parameters}",
                expected="-".join(map(str, PRECIPITATION_RATE)),
                remedy="use the PrecipRate product",
            )
        grid = message.grid()
        values = message.values()
        if values.size != grid.shape[0] * grid.shape[1]:
            raise unreadable(content, f"{values.size} values for {grid.shape} pixels")
        rain_rate = values.reshape(grid.shape)
        return frame(rain_rate, grid, message.reference_time, overwrite=True)
