"""ODIM HDF5 composites: OPERA (ODYSSEY, CIRRUS, NIMBUS) and any national service that writes them.

Quantities: RATE (mm/h), ACRR (mm over an interval), DBZH and TH (dBZ, through a named Z–R
relation). Of a file's several the one to read is chosen by `Odim.quantities`, never by the order
in the file; of several arrays of that quantity it is the first by number of dataset, then of data.

Attributes may sit at the data, the dataset or the root level; the nearest one counts. Gain, offset,
nodata and undetect may be left out (then 1, 0, NaN, none). `nodata` is not observed; `undetect` is
observed and dry. The frame's time is the root's ``what/date`` and ``what/time``. The grid follows
from one outer corner: the upper left one or, where that is not given, another.

Source of the layout: EUMETNET OPERA, "OPERA weather radar information model for implementation
with the HDF5 file format", version 2.4.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from numpy.typing import NDArray

from pipelines.errors import FrameError
from pipelines.grid import Grid, snap
from pipelines.sources.base import FoundByName, frame
from pipelines.sources.hdf5 import decoder, number, open_hdf5, read_array, text
from pipelines.units import (
    MARSHALL_PALMER,
    Floats,
    ZRRelation,
    rain_rate_from_accumulation,
    rain_rate_from_reflectivity,
)

NAME = re.compile(
    r"(?P<time>(19|20)\d{2}[01]\d[0-3]\d[T_-]?[0-2]\d[0-5]\d(\d{2})?).*\.(h5|hdf|hdf5)$"
)
QUANTITIES = ("RATE", "ACRR", "DBZH", "TH")
CORNERS = {"UL": (0, 0), "LL": (0, 1), "UR": (1, 0), "LR": (1, 1)}
"""Outer corners, the preferred one first: how many widths and heights right of and below UL."""
BLOCK = 1 << 16
"""Pixels decoded at a time."""


class Odim(FoundByName):
    """ODIM HDF5 composites.

    Attributes
    ----------
    quantities : what to read, in order of preference: a rain rate before a mean over an hour,
        both before reflectivity, which is rain rate only through a relation
    zr : the relation for reflectivity
    """

    name = "odim"
    title = "ODIM HDF5 composites (OPERA and national)"
    format = "ODIM HDF5"
    variable = "RATE, ACRR, DBZH or TH"
    timestep: pd.Timedelta | None = None
    licence = "by provider; OPERA: CC-BY-4.0"
    location: str | None = None
    decoder = decoder("odim", 2)
    quantities: tuple[str, ...] = QUANTITIES
    zr: ZRRelation = MARSHALL_PALMER
    pattern = NAME
    example = "T_PAAH22_C_EUOC_20241126010000.hdf (a time and .h5 or .hdf)"

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
            valid_time = _time(file["what"].attrs)
            dataset, array = _choose(file, self.quantities)
            attrs = _attributes(file, dataset, array)
            grid = _grid(attrs)
            stored = read_array(array["data"])
            convert, provenance = self._conversion(attrs)
            return frame(
                _decode(stored, attrs, convert), grid, valid_time, overwrite=True, **provenance
            )

    def _conversion(
        self, attrs: dict[str, Any]
    ) -> tuple[Callable[[Floats], Floats], dict[str, str]]:
        """What turns the file's physical values into mm/h, and a frame's attributes about it."""
        quantity = text(attrs["quantity"])
        provenance: dict[str, str] = {"odim_quantity": quantity}
        if quantity == "RATE":
            return lambda rain_rate_mm_h: rain_rate_mm_h, provenance
        if quantity == "ACRR":
            hours = _interval(attrs).total_seconds() / 3600
            provenance["cell_methods"] = f"time: mean (interval: {hours * 60:g} min, ends at time)"
            return lambda mm: rain_rate_from_accumulation(mm, hours), provenance
        provenance["z_r_relation"] = f"{self.zr.name}: a={self.zr.a:g}, b={self.zr.b:g}"
        return lambda dbz: rain_rate_from_reflectivity(dbz, self.zr), provenance


def _decode(
    stored: NDArray[Any], attrs: dict[str, Any], convert: Callable[[Floats], Floats]
) -> NDArray[np.float32]:
    """Rain rate in mm/h, NaN where not observed, 0 where nothing was detected.

    Integers of up to 16 bits go through a table of all of them, other numbers a block at a time;
    both compute in float64 and only where something was measured.
    """
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        code = np.dtype(f"u{stored.dtype.itemsize}")
        every = np.arange(1 << 8 * code.itemsize).astype(code)
        return _decode_numbers(every.view(stored.dtype), attrs, convert).take(stored.view(code))
    return _decode_numbers(stored, attrs, convert)


def _decode_numbers(
    stored: NDArray[Any], attrs: dict[str, Any], convert: Callable[[Floats], Floats]
) -> NDArray[np.float32]:
    gain, offset = number(attrs.get("gain", 1.0)), number(attrs.get("offset", 0.0))
    nodata = number(attrs.get("nodata", np.nan))  # NaN equals nothing
    undetect = number(attrs.get("undetect", np.nan))
    rain_rate = np.zeros(stored.shape, np.float32)
    flat, flat_stored = rain_rate.reshape(-1), stored.reshape(-1)
    with np.errstate(over="ignore"):  # codes that no pixel has, or should have
        for start in range(0, flat.size, BLOCK):
            part, values = flat[start : start + BLOCK], flat_stored[start : start + BLOCK]
            missing = values == nodata
            part[missing] = np.nan
            measured = ~(missing | (values == undetect))
            part[measured] = convert(values[measured] * np.float64(gain) + offset)
    return rain_rate


def _choose(file: Any, quantities: tuple[str, ...]) -> tuple[Any, Any]:
    """The dataset and data groups that hold the most preferred quantity."""
    found: dict[str, tuple[Any, Any]] = {}
    for dataset in _numbered(file, "dataset"):
        for array in _numbered(dataset, "data"):
            quantity = _attributes(file, dataset, array).get("quantity")
            found.setdefault("none" if quantity is None else text(quantity), (dataset, array))
    for quantity in quantities:
        if quantity in found:
            return found[quantity]
    raise FrameError(
        "no precipitation quantity",
        found=", ".join(found) or "no data",
        expected=" or ".join(quantities),
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


def _time(attrs: Any, which: str = "") -> pd.Timestamp:
    """A date and a time of day, UTC; some producers leave out the seconds, some write fractions."""
    clock = text(attrs[f"{which}time"])[:6].ljust(6, "0")
    return pd.to_datetime(text(attrs[f"{which}date"]) + clock, format="%Y%m%d%H%M%S").as_unit("ns")


def _interval(attrs: dict[str, Any]) -> pd.Timedelta:
    start, end = _time(attrs, "start"), _time(attrs, "end")
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
    if crs.is_projected and any(axis.unit_conversion_factor != 1 for axis in crs.axis_info):
        raise FrameError(
            "a projection in another unit than metres",
            found=text(attrs["projdef"]),
            expected="+units=m",
            remedy="report it to the provider: ODIM's xscale is in metres",
        )
    shape = int(number(attrs["ysize"])), int(number(attrs["xsize"]))
    pixel = number(attrs["xscale"]), number(attrs["yscale"])
    corner = next((name for name in CORNERS if f"{name}_lon" in attrs), "UL")
    to_projection = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    x, y = to_projection.transform(number(attrs[f"{corner}_lon"]), number(attrs[f"{corner}_lat"]))
    right, below = CORNERS[corner]
    return Grid.from_corner(
        crs,
        west=snap(x - right * shape[1] * pixel[0], pixel[0]),
        north=snap(y + below * shape[0] * pixel[1], pixel[1]),
        pixel=pixel,
        shape=shape,
    )
