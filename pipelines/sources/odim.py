"""ODIM HDF5 composites: OPERA (ODYSSEY, CIRRUS, NIMBUS) and any national service that writes them.

Quantities: RATE (mm/h), ACRR (mm over an interval) and DBZH (dBZ, through a named Z–R relation).
Attributes may sit at the data, the dataset or the root level; the nearest one counts. Gain, offset,
nodata and undetect may be left out (then 1, 0, NaN, none). `nodata` is not observed; `undetect` is
observed and dry. The frame's time is the root's ``what/date`` and ``what/time``.

Source of the layout: EUMETNET OPERA, "OPERA weather radar information model for implementation
with the HDF5 file format", version 2.4.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from numpy.typing import NDArray

from pipelines.errors import FrameError
from pipelines.grid import Grid, snap
from pipelines.sources.base import FrameFile, find_by_name, frame
from pipelines.sources.hdf5 import decoder, number, open_hdf5, text
from pipelines.units import (
    MARSHALL_PALMER,
    ZRRelation,
    rain_rate_from_accumulation,
    rain_rate_from_reflectivity,
)

NAME = re.compile(
    r"(?P<time>(19|20)\d{2}[01]\d[0-3]\d[T_-]?[0-2]\d[0-5]\d(\d{2})?).*\.(h5|hdf|hdf5)$"
)
QUANTITIES = ("RATE", "ACRR", "DBZH", "TH")


class Odim:
    """ODIM HDF5 composites."""

    name = "odim"
    title = "ODIM HDF5 composites (OPERA and national)"
    format = "ODIM HDF5"
    variable = "RATE, ACRR or DBZH"
    timestep: pd.Timedelta | None = None
    licence = "by provider; OPERA: CC-BY-4.0"
    location: str | None = None
    decoder = decoder("odim", 1)
    zr: ZRRelation = MARSHALL_PALMER

    def find(
        self, location: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
    ) -> list[FrameFile]:
        """See `pipelines.sources.base.Source.find`."""
        return find_by_name(
            location,
            NAME,
            start,
            end,
            source=self.name,
            example="T_PAAH22_C_EUOC_20241126010000.hdf (a time and .h5 or .hdf)",
        )

    def read(self, content: bytes) -> xr.DataArray:
        """See `pipelines.sources.base.Source.read`."""
        with open_hdf5(content) as file:
            kind = text(file["what"].attrs["object"])
            if kind not in ("COMP", "IMAGE"):
                raise FrameError(
                    "not a composite",
                    found=f"ODIM object {kind}",
                    expected="COMP or IMAGE",
                    remedy="use the composite product, not single-radar volumes",
                )
            what = file["what"].attrs
            valid_time = pd.to_datetime(
                text(what["date"]) + text(what["time"])[:6], format="%Y%m%d%H%M%S"
            ).as_unit("ns")
            dataset, array = _first_quantity(file)
            attrs = _attributes(file, dataset, array)
            grid = _grid(attrs)
            stored = np.asarray(array["data"][()])
            rain_rate, provenance = self._rain_rate(stored, attrs)
            return frame(rain_rate, grid, valid_time, **provenance)

    def _rain_rate(
        self, stored: NDArray[Any], attrs: dict[str, Any]
    ) -> tuple[NDArray[np.floating], dict[str, str]]:
        """Rain rate in mm/h, NaN where not observed, 0 where nothing was detected."""
        values = stored * number(attrs.get("gain", 1.0)) + number(attrs.get("offset", 0.0))
        missing = stored == number(attrs.get("nodata", np.nan))  # NaN equals nothing
        undetected = stored == number(attrs.get("undetect", np.nan))
        values[missing] = np.nan
        rain_rate: NDArray[np.floating]
        quantity = text(attrs["quantity"])
        provenance: dict[str, str] = {"odim_quantity": quantity}
        if quantity == "RATE":
            rain_rate = values
        elif quantity == "ACRR":
            hours = _interval(attrs).total_seconds() / 3600
            rain_rate = rain_rate_from_accumulation(values, hours)
            provenance["cell_methods"] = f"time: mean (interval: {hours * 60:g} min, ends at time)"
        else:
            rain_rate = rain_rate_from_reflectivity(values, self.zr)
            provenance["z_r_relation"] = f"{self.zr.name}: a={self.zr.a:g}, b={self.zr.b:g}"
        rain_rate[undetected & ~missing] = 0.0
        return rain_rate, provenance


def _first_quantity(file: Any) -> tuple[Any, Any]:
    """The first dataset/data group that holds a precipitation quantity."""
    found = []
    for dataset in _numbered(file, "dataset"):
        for array in _numbered(dataset, "data"):
            quantity = _attributes(file, dataset, array).get("quantity")
            found.append(text(quantity) if quantity is not None else "none")
            if found[-1] in QUANTITIES:
                return dataset, array
    raise FrameError(
        "no precipitation quantity",
        found=", ".join(found) or "no data",
        expected=" or ".join(QUANTITIES),
        remedy="use a composite of rain rate, accumulation or reflectivity",
    )


def _numbered(group: Any, prefix: str) -> list[Any]:
    pattern = re.compile(rf"^{prefix}(\d+)$")
    numbered = [(int(m[1]), name) for name in group if (m := pattern.match(name))]
    return [group[name] for _, name in sorted(numbered)]


def _attributes(*levels: Any) -> dict[str, Any]:
    """What and where of root, dataset and data merged; the innermost one counts."""
    merged: dict[str, Any] = {}
    for level in levels:
        for name in ("where", "what"):
            if name in level:
                merged |= dict(level[name].attrs)
    return merged


def _interval(attrs: dict[str, Any]) -> pd.Timedelta:
    start, end = (
        pd.to_datetime(
            text(attrs[f"{name}date"]) + text(attrs[f"{name}time"]), format="%Y%m%d%H%M%S"
        )
        for name in ("start", "end")
    )
    interval = end - start
    if interval <= pd.Timedelta(0):
        raise FrameError(
            "accumulation over no time",
            found=f"start {start}, end {end}",
            expected="startdate/starttime before enddate/endtime",
            remedy="fetch the file again; if it repeats, report it to the provider",
        )
    return interval


def _grid(attrs: dict[str, Any]) -> Grid:
    crs = pyproj.CRS(text(attrs["projdef"]))
    to_projection = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    west, north = to_projection.transform(number(attrs["UL_lon"]), number(attrs["UL_lat"]))
    pixel_m = number(attrs["xscale"]), number(attrs["yscale"])
    return Grid.from_corner(
        crs,
        west=snap(west, pixel_m[0]),
        north=snap(north, pixel_m[1]),
        pixel=pixel_m,
        shape=(int(number(attrs["ysize"])), int(number(attrs["xsize"]))),
    )
