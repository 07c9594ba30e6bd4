"""FMI's reflectivity composites of Finland as PGM (8 bits, usually gzipped).

The header's comment lines hold time, projection and corners. Pixels hold dBZ = (byte − 64)/2;
0 is undetect (dry) and 255 is not observed. The header names neither the earth's radius nor false
easting and northing: these are the constants below, with which the lower left corner is (0, 0).

Sources: FMI's open data; `pysteps.io.importers.import_fmi_pgm` for the constants of projection.
"""

import io
import re

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from PIL import Image

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.content import check_size, decompressed, reading
from pipelines.sources.fmi import LICENCE, rain_rate_table
from pipelines.units import FINLAND_RAIN, ZRRelation

NAME = re.compile(r"^(?P<time>\d{12})_.*\.pgm(\.gz)?$")
COMMENT = re.compile(rb"^#[ \t]*(\S+)[ \t]+(.*)$", re.MULTILINE)
GAIN_DBZ, OFFSET_DBZ, UNDETECT, NODATA = 0.5, -32.0, 0, 255
EARTH_RADIUS_M, FALSE_EASTING_M, FALSE_NORTHING_M = 6371288, 380886.310, 3395677.920


class FmiPgm(FoundByName):
    """FMI reflectivity composites, PGM."""

    name = "fmi-pgm"
    title = "FMI composites, Finland (PGM)"
    format = "PGM, gzipped or not"
    variable = "reflectivity"
    timestep: pd.Timedelta | None = pd.Timedelta("5min")
    licence = LICENCE
    location: str | None = None
    decoder = "fmi-pgm/1"
    zr: ZRRelation = FINLAND_RAIN
    pattern = NAME
    example = "201609281600_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        with reading(content, "a PGM composite of FMI"):
            plain = decompressed(content)
            if not plain.startswith(b"P5"):
                raise ValueError(f"starts with {plain[:8]!r}, a PGM with b'P5'")
            with Image.open(io.BytesIO(plain), formats=("PPM",)) as picture:
                check_size(*picture.size)
                stored = np.asarray(picture)
            header = _header(plain)
            if "reflectivity" not in header["param"].lower():
                raise FrameError(
                    "not a reflectivity composite",
                    found=header["param"],
                    expected="CorrectedReflectivity",
                    remedy="use the reflectivity product",
                )
            table = rain_rate_table(
                GAIN_DBZ, OFFSET_DBZ, undetect=UNDETECT, nodata=NODATA, zr=self.zr
            )
            return frame(
                table[stored],
                _grid(header, (stored.shape[0], stored.shape[1])),
                pd.to_datetime(header["obstime"], format="%Y%m%d%H%M").as_unit("ns"),
                z_r_relation=str(self.zr),
            )


def _header(plain: bytes) -> dict[str, str]:
    """The comment lines that precede the pixels, by their first word."""
    size = re.search(rb"^\d+ +\d+\s", plain, re.MULTILINE)
    comments = COMMENT.findall(plain, 0, size.start() if size else len(plain))
    return {name.decode("ascii"): value.decode("ascii").strip() for name, value in comments}


def _grid(header: dict[str, str], shape: tuple[int, int]) -> Grid:
    if header["type"] != "stereographic":
        raise ValueError(f"projection {header['type']!r}, not stereographic")
    crs = pyproj.CRS(
        f"+proj=stere +lat_0={float(header['centrallatitude'])} "
        f"+lon_0={float(header['centrallongitude'])} +lat_ts={float(header['truelatitude'])} "
        f"+R={EARTH_RADIUS_M} +x_0={FALSE_EASTING_M} +y_0={FALSE_NORTHING_M} +units=m"
    )
    to_projection = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    lons, lats = zip(
        *(map(float, header[corner].split()) for corner in ("bottomleft", "topright")), strict=True
    )
    (west, east), (south, north) = to_projection.transform(lons, lats)
    dx, dy = float(header["metersperpixel_x"]), float(header["metersperpixel_y"])
    own = shape[1] * dx, shape[0] * dy
    if abs(east - west - own[0]) > dx / 2 or abs(north - south - own[1]) > dy / 2:
        raise FrameError(
            "corners and pixels disagree",
            found=f"{own[0]:.0f}×{own[1]:.0f} m of pixels",
            expected=f"{east - west:.0f}×{north - south:.0f} m between the header's corners",
            remedy="use a composite of FMI's area FIN; other areas have other offsets",
        )
    return Grid.from_corner(crs, west, north, (dx, dy), shape)
