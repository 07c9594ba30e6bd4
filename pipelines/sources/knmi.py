"""KNMI's 5-minute radar composites of the Netherlands (HDF5, KNMI's own layout).

Read here: the precipitation composite `RAD_NL25_RAP_5min`, an accumulation in mm over the five
minutes that *end* at the file's time, packed as ``GEO = 0.01·PV``. 65535 means both "missing" and
"outside the radars' range" (74 % of the area).

Source of the layout: KNMI HDF5 data format specification, v3.5.
"""

import re

import numpy as np
import pandas as pd
import xarray as xr

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.hdf5 import decoder, number, open_hdf5, read_array, text
from pipelines.units import rain_rate_from_accumulation

NAME = re.compile(r"^RAD_NL\d+_.*_(?P<time>\d{12})\.h5$")
FORMULA = re.compile(r"GEO\s*=\s*(?P<gain>[-+.\deE]+)\s*\*\s*PV\s*\+?\s*(?P<offset>[-+.\deE]+)?")
DATETIME_FORMAT = "%d-%b-%Y;%H:%M:%S.%f"


class Knmi(FoundByName):
    """KNMI radar composites."""

    name = "knmi"
    title = "KNMI 5-minute composites, Netherlands"
    format = "KNMI HDF5"
    variable = "accumulation over 5 min"
    timestep: pd.Timedelta | None = pd.Timedelta("5min")
    licence = "CC-BY-4.0 (KNMI Data Platform)"
    location: str | None = None
    decoder = decoder("knmi", 1)
    pattern = NAME
    example = "RAD_NL25_RAP_5min_201008260000.h5"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        with open_hdf5(content) as file:
            image = file["image1"]
            quantity = text(image.attrs["image_geo_parameter"])
            if not quantity.startswith("ACCUMULATED_PRECIPITATION"):
                raise FrameError(
                    "not a precipitation composite",
                    found=quantity,
                    expected="ACCUMULATED_PRECIPITATION_[MM]",
                    remedy="use the RAP/RAC accumulation files",
                )
            calibration = image["calibration"].attrs
            stored = read_array(image["image_data"])
            formula = FORMULA.search(text(calibration["calibration_formulas"]))
            if formula is None:
                raise ValueError(f"calibration {text(calibration['calibration_formulas'])!r}")
            accumulation_mm = stored * float(formula["gain"]) + float(formula["offset"] or 0)
            missing = [
                number(calibration[name])
                for name in ("calibration_missing_data", "calibration_out_of_image")
                if name in calibration
            ]
            overview = file["overview"].attrs
            interval_start = _time(overview["product_datetime_start"])
            interval_end = _time(overview["product_datetime_end"])
            grid = _grid(file)
            hours = (interval_end - interval_start).total_seconds() / 3600
            if hours <= 0:
                raise FrameError(
                    "accumulation over no time",
                    found=f"{interval_start} to {interval_end}",
                    expected="an end after the start",
                    remedy="fetch the file again; if it repeats, report it to the provider",
                )
            rain_rate = rain_rate_from_accumulation(accumulation_mm, hours)
            rain_rate[np.isin(stored, missing)] = np.nan
            return frame(
                rain_rate,
                grid,
                interval_end,
                cell_methods=f"time: mean (interval: {hours * 60:g} min, ends at time)",
            )


def _time(value: object) -> pd.Timestamp:
    return pd.to_datetime(text(value).title(), format=DATETIME_FORMAT).as_unit("ns")


def _grid(file: object) -> Grid:
    geographic = file["geographic"]  # type: ignore[index]
    attrs = geographic.attrs
    proj4 = text(geographic["map_projection"].attrs["projection_proj4_params"])
    # Shipped with the earth's axes in km, which PROJ reads as metres ("non-earth body").
    crs = re.sub(r"\+([ab])=(\d{4}\.\d+)", lambda m: f"+{m[1]}={float(m[2]) * 1000:.0f}", proj4)
    pixel_km = abs(number(attrs["geo_pixel_size_x"])), abs(number(attrs["geo_pixel_size_y"]))
    west_km = number(attrs["geo_column_offset"]) * pixel_km[0]
    north_km = -number(attrs["geo_row_offset"]) * pixel_km[1]
    shape = int(number(attrs["geo_number_rows"])), int(number(attrs["geo_number_columns"]))
    return Grid.from_corner(
        crs,
        west=west_km * 1000,
        north=north_km * 1000,
        pixel=(pixel_km[0] * 1000, pixel_km[1] * 1000),
        shape=shape,
    )
