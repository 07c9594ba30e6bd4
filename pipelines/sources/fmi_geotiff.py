"""FMI's reflectivity composites of Finland as GeoTIFF (8 bits, 250 m, ETRS-TM35FIN).

Time, quantity, gain, offset and the codes of nodata and undetect are XML text in an item called
GDAL_METADATA; GDAL's own scale, offset and nodata are not set.
"""

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pandas as pd
import pyproj
import xarray as xr

from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.content import check_size, formats_library, reading
from pipelines.sources.fmi import LICENCE, rain_rate_table
from pipelines.units import FINLAND_RAIN, ZRRelation

NAME = re.compile(r"^(?P<time>\d{12})_.*\.tiff?$")


class FmiGeotiff(FoundByName):
    """FMI reflectivity composites, GeoTIFF."""

    name = "fmi-geotiff"
    title = "FMI composites, Finland (GeoTIFF)"
    format = "GeoTIFF"
    variable = "reflectivity"
    timestep: pd.Timedelta | None = pd.Timedelta("5min")
    licence = LICENCE
    location: str | None = None
    decoder = "fmi-geotiff/1"
    zr: ZRRelation = FINLAND_RAIN
    pattern = NAME
    example = "201609281605_FINUTM.tif"

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        rasterio = formats_library("rasterio", f"the source {self.name}")
        with reading(content, "a GeoTIFF composite of FMI"):
            if content[:4] not in (b"II*\0", b"MM\0*"):
                raise ValueError(f"starts with {content[:4]!r}, no TIFF")
            try:
                with rasterio.MemoryFile(content) as memory, memory.open(driver="GTiff") as file:
                    items = _items(file.tags()["GDAL_METADATA"])
                    grid = _grid(file)
                    for shape in file.block_shapes:
                        check_size(*shape)
                    stored = file.read(1)
            except rasterio.errors.RasterioError as error:
                raise OSError(str(error)) from error
            if items["Quantity", "unit"] != "dBZ" or stored.dtype != "uint8":
                raise FrameError(
                    "not a reflectivity composite of bytes",
                    found=f"unit {items['Quantity', 'unit']!r}, {stored.dtype}",
                    expected="dBZ, uint8",
                    remedy="use the reflectivity product",
                )
            table = rain_rate_table(
                float(items["Gain", ""]),
                float(items["Offset", ""]),
                undetect=int(items["Undetect", ""]),
                nodata=int(items["Nodata", ""]),
                zr=self.zr,
            )
            time = pd.to_datetime(items["Observation time", ""], format="%Y%m%d%H%M").as_unit("ns")
            return frame(table[stored], grid, time, z_r_relation=str(self.zr))


def _items(xml: str) -> dict[tuple[str, str], str]:
    """Each item's text by (name, ""), and its attributes by (name, attribute)."""
    items: dict[tuple[str, str], str] = {}
    for item in ElementTree.fromstring(xml):
        items[item.attrib["name"], ""] = (item.text or "").strip()
        items |= {(item.attrib["name"], key): value for key, value in item.attrib.items()}
    return items


def _grid(file: Any) -> Grid:
    transform = file.transform
    if transform.b or transform.d or transform.e >= 0 or file.crs is None:
        raise ValueError(f"no north-up georeferencing: {transform}, {file.crs}")
    epsg = file.crs.to_epsg()
    return Grid.from_corner(
        pyproj.CRS.from_epsg(epsg) if epsg else pyproj.CRS(file.crs.to_wkt()),
        west=transform.c,
        north=transform.f,
        pixel=(transform.a, -transform.e),
        shape=(file.height, file.width),
    )
