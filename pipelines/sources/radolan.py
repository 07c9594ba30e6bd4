"""DWD's RADOLAN composites of Germany in binary form: RW, RY, YW and RV.

RW is an accumulation over an hour, RY and YW over five minutes, and RV the analysis (+000) of the
five-minute forecasts; each ends at the header's time. Precision, interval, size and format version
are the header's. Pixels marked as nodata or clutter are not observed. The grid is DWD's polar
stereographic one, on a sphere (R = 6370.04 km) or, from format version 5, on the WGS 84 ellipsoid.
Name one product's folder: RW and RY are not one series. RADOLAN in HDF5 is ODIM: source `odim`.

Source of the format: DWD, "RADOLAN/RADVOR: Hoch aufgelöste Niederschlagsanalyse und -vorhersage,
Kompositformat"; of the grids: "Radarkomposits: Projektionen und Gitter", both through wradlib.
"""

import io
import re
import tarfile
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.content import bounded, decompressed, formats_library, reading
from pipelines.units import rain_rate_from_accumulation

NAME = re.compile(
    r"^(raa01-(rw|ry|yw)_10000-|DE1200_RV)(?P<time>\d{10})"
    r"(-dwd---bin(\.gz|\.bz2)?|_000(\.gz|\.bz2)?|\.tar(\.gz|\.bz2)?)$"
)
PRODUCTS = ("RW", "RY", "YW", "RV")
PIXEL_M = 1000.0
PROJECTION = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +x_0=0 +y_0=0 +units=m"
SPHERE, ELLIPSOID = "+R=6370040", "+ellps=WGS84"
FIRST_VERSION_ON_ELLIPSOID = 5


class Radolan(FoundByName):
    """RADOLAN composites."""

    name = "radolan"
    title = "DWD RADOLAN composites, Germany (RW, RY, YW, RV)"
    format = "RADOLAN binary"
    variable = "accumulation over 5 or 60 min"
    timestep: pd.Timedelta | None = None
    licence = "CC-BY-4.0 (DWD open data)"
    location: str | None = "https://opendata.dwd.de/weather/radar/radolan"
    decoder = "radolan/1"
    pattern = NAME
    example = "raa01-ry_10000-2406010050-dwd---bin.bz2"
    time_format = "%y%m%d%H%M"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        radolan = formats_library("wradlib.io.radolan", f"the source {self.name}")
        with reading(content, "a RADOLAN composite"):
            plain = _analysis(decompressed(content))
            if plain[:2].decode("latin-1") not in PRODUCTS:
                raise FrameError(
                    "not a RADOLAN product that is read here",
                    found=repr(plain[:2]),
                    expected=", ".join(PRODUCTS),
                    remedy="fetch the file again, or use one of those products",
                )
            accumulation_mm, header = radolan.read_radolan_composite(
                io.BytesIO(plain), missing=np.nan
            )
            if header.get("predictiontime", 0) != 0:
                raise FrameError(
                    "a forecast, not an analysis",
                    found=f"+{header['predictiontime']:03d} min",
                    expected="the analysis, +000",
                    remedy="use the files that end in _000",
                )
            accumulation_mm.flat[header["cluttermask"]] = np.nan
            hours = header["intervalseconds"] / 3600
            return frame(
                rain_rate_from_accumulation(accumulation_mm[::-1], hours),  # south to north inside
                _grid(header),
                pd.Timestamp(header["datetime"]).tz_localize(None).as_unit("ns"),
                cell_methods=f"time: mean (interval: {hours * 60:g} min, ends at time)",
                radolan_product=header["producttype"],
            )


def _analysis(plain: bytes) -> bytes:
    """The file itself, or the member +000 of a tar file of forecasts."""
    if plain[257:262] != b"ustar":
        return plain
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        name = next(name for name in archive.getnames() if name.endswith("_000"))
        member = archive.extractfile(name)
        return bounded(member) if member else b""


def _grid(header: dict[str, Any]) -> Grid:
    on_ellipsoid = header.get("formatversion", 0) >= FIRST_VERSION_ON_ELLIPSOID
    crs = pyproj.CRS(f"{PROJECTION} {ELLIPSOID if on_ellipsoid else SPHERE}")
    shape = header["nrow"], header["ncol"]
    # wradlib places the grid by the composite's reference point, 9°E 51°N.
    georef = formats_library("wradlib.georef.rect", f"the source {Radolan.name}")
    x, y = georef.get_radolan_coordinates(*shape, crs=crs, mode="center")
    west, north = x[0] - PIXEL_M / 2, y[-1] + PIXEL_M / 2
    return Grid.from_corner(crs, west, north, (PIXEL_M, PIXEL_M), shape)
