"""SEVIR storm events of the USA: vertically integrated liquid (VIL), as an estimate of rain rate.

One HDF5 file holds hundreds of events, each with 49 frames of 384×384 km at its own place. So a
location is one event, ``…/vil/2019/SEVIR_VIL_….h5#EVENT``, and an event is a product of its own.
Its times, corners and projection are in SEVIR's CATALOG.csv, which lies in a folder above.

VIL is not a rain rate and no relation between the two is general. The one used here is the liquid
water content of Greene and Clark (M = 3.44e-3·Z^(4/7) g/m³) in a uniform column of 5 km, then a
Z–R relation. That depth brings the six VIL levels by which SEVIR is scored (0.14 to 32 kg/m²) to
within 1.4 dB of the six VIP levels of reflectivity (18 to 57 dBZ). The relation is monotone: it
keeps the order of VIL, and each frame's attributes name it.

Sources: M. Veillette, S. Samsi and C. Mattioli, "SEVIR: a storm event imagery dataset", NeurIPS
2020, and its tutorial (catalog, VIL's encoding, rows from south to north); D. R. Greene and
R. A. Clark, Mon. Wea. Rev. 100, 548–552 (1972).
"""

import datetime as dt
import functools
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import FrameError, NoFramesError
from pipelines.grid import Grid
from pipelines.sources.base import FrameFile, frame, frame_file
from pipelines.sources.content import READING_ERRORS, reading
from pipelines.units import MARSHALL_PALMER, ZRRelation, rain_rate_from_reflectivity

import h5py  # isort: skip

CATALOG = "CATALOG.csv"
FOLDERS_UP = 4
MISSING = 255
COLUMN_M = 5000.0
TIME_FORMAT = "%Y-%m-%dT%H:%M"


@dataclass(frozen=True)
class Event:
    """What the catalog says of one event's VIL."""

    id: str
    index: int
    times: tuple[str, ...]
    shape: tuple[int, int]
    pixel_m: tuple[float, float]
    projection: str
    lower_left: tuple[float, float]

    @property
    def grid(self) -> Grid:
        """The event's own grid."""
        crs = pyproj.CRS(self.projection)
        to_projection = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
        west, south = to_projection.transform(*self.lower_left)
        north = south + self.shape[0] * self.pixel_m[1]
        return Grid.from_corner(crs, west, north, self.pixel_m, self.shape)


class Sevir:
    """SEVIR VIL events, one product each."""

    name = "sevir"
    title = "SEVIR storm events, USA: rain rate estimated from VIL"
    format = "HDF5 of many events; location FILE.h5#EVENT"
    variable = "vertically integrated liquid"
    timestep: pd.Timedelta | None = pd.Timedelta("5min")
    licence = "SEVIR's distribution statement (MIT Lincoln Laboratory)"
    location: str | None = "s3://sevir/data/vil"
    decoder = "sevir/1"
    zr: ZRRelation = MARSHALL_PALMER

    def find(
        self, location: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
    ) -> list[FrameFile]:
        """The event's frames. See `pipelines.sources.base.Source.find`."""
        path, _, event_id = location.partition("#")
        fs, inside = storage.filesystem(path)
        if not fs.exists(inside) or not event_id:
            raise NoFramesError(
                "no SEVIR event",
                found=storage.display(path) + (f"#{event_id}" if event_id else ", without #EVENT"),
                expected="an existing SEVIR_VIL_….h5 and an event of it",
                remedy="name both, as in SEVIR_VIL_STORMEVENTS_2019_0701_1231.h5#S858968",
            )
        event = _event(path, event_id)
        whole = frame_file(path, fs.info(inside), pd.Timestamp(event.times[0]))
        size = event.shape[0] * event.shape[1]
        frames = [
            replace(whole, valid_time=_utc(time), url=f"{whole.url}#{event_id}.{n:02d}", size=size)
            for n, time in enumerate(event.times)
        ]
        return [
            one
            for one in frames
            if (start is None or start <= one.valid_time) and (end is None or one.valid_time <= end)
        ]

    def fetch(self, file: FrameFile) -> bytes:
        """One frame: a line of JSON (the event and the time) and the stored bytes, row by row."""
        path, _, part = file.url.partition("#")
        event_id, _, number = part.rpartition(".")
        event = _event(path, event_id)
        fs, inside = storage.filesystem(path)
        try:
            with fs.open(inside, "rb") as raw, h5py.File(raw, "r") as hdf5:
                stored_id = hdf5["id"][event.index].decode()
                stored = hdf5["vil"][event.index, :, :, int(number)]
        except READING_ERRORS as error:
            raise FrameError(
                f"SEVIR event {event_id} cannot be read",
                found=f"{type(error).__name__}: {error}",
                expected="datasets `id` and `vil` with the event that the catalog says",
                remedy="fetch the file again; it may be truncated",
            ) from error
        if stored_id != event_id:
            raise FrameError(
                "catalog and file disagree",
                found=f"event {stored_id} at index {event.index}",
                expected=event_id,
                remedy="fetch CATALOG.csv and the file again",
            )
        head = asdict(event) | {"time": event.times[int(number)]}
        return json.dumps(head).encode() + b"\n" + stored.astype(np.uint8).tobytes()

    def read(self, content: bytes) -> xr.DataArray:
        """What `fetch` gives as a frame. See `pipelines.sources.base.Source.read`."""
        with reading(content, "a frame of SEVIR"):
            line, _, pixels = content.partition(b"\n")
            head = json.loads(line)
            time = _utc(head.pop("time"))
            event = Event(**{key: _tuple(value) for key, value in head.items()})
            stored = np.frombuffer(pixels, np.uint8).reshape(event.shape)[::-1]  # north first
            return frame(
                rain_rate_from_vil(vil_kg_m2(np.arange(256)), self.zr).astype(np.float32)[stored],
                event.grid,
                time,
                sevir_event=event.id,
                z_r_relation=str(self.zr),
                vil_relation=f"Greene and Clark 1972, uniform column of {COLUMN_M:g} m",
                comment="estimated from vertically integrated liquid, not a measured rain rate",
            )


def vil_kg_m2(stored: NDArray[np.integer]) -> NDArray[np.float64]:
    """VIL in kg/m² from SEVIR's bytes: 0 to 5, then linear to 18, then exponential; 255 is NaN."""
    linear, exponential = (stored - 2) / 90.66, np.exp((stored - 83.9) / 38.9)
    vil = np.select([stored <= 5, stored <= 18], [np.zeros(stored.shape), linear], exponential)
    return np.where(stored == MISSING, np.nan, vil)


def rain_rate_from_vil(vil: NDArray[np.floating], zr: ZRRelation) -> NDArray[np.floating]:
    """Rain rate in mm/h from VIL in kg/m²: Z = (VIL / (3.44e-6·5000 m))^(7/4), then Z–R."""
    with np.errstate(divide="ignore"):
        reflectivity_dbz = 17.5 * np.log10(
            vil / (3.44e-6 * COLUMN_M)
        )  # no liquid: −inf dBZ, 0 mm/h
    return rain_rate_from_reflectivity(reflectivity_dbz, zr)


def _tuple(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(value) if isinstance(value, list) else value


def _utc(time: str) -> pd.Timestamp:
    return pd.Timestamp(dt.datetime.strptime(time, TIME_FORMAT)).as_unit("ns")


@functools.lru_cache(maxsize=64)
def _event(path: str, event_id: str) -> Event:
    """The catalog's row of an event's VIL."""
    folder = path.rpartition("/")[0] or "."
    above = [folder + "/.." * up for up in range(FOLDERS_UP)]
    if "://" in path:  # object stores know no ".."
        above = [folder.rsplit("/", up)[0] for up in range(FOLDERS_UP)]
    catalog = next((f"{at}/{CATALOG}" for at in above if storage.exists(f"{at}/{CATALOG}")), None)
    if catalog is None:
        raise NoFramesError(
            "no catalog of SEVIR",
            found=f"no {CATALOG} in {storage.display(folder)} nor above it",
            expected=f"SEVIR's {CATALOG} in a folder above the file",
            remedy="fetch it: s3://sevir/CATALOG.csv",
        )
    fs, inside = storage.filesystem(catalog)
    with fs.open(inside, "rb") as file:
        rows = pd.read_csv(file, dtype={"id": str}, low_memory=False)
    rows = rows[(rows["img_type"] == "vil") & rows["file_name"].str.endswith(path.split("/")[-1])]
    chosen = rows[rows["id"] == event_id]
    if len(chosen) != 1:
        raise NoFramesError(
            "no such SEVIR event in this file",
            found=f"{event_id}, {len(chosen)} times among {len(rows)} events",
            expected="one, such as " + (", ".join(rows["id"][:3]) or "none"),
            remedy=f"choose an event by {storage.display(catalog)}",
        )
    row = chosen.iloc[0]
    centre = pd.Timestamp(row["time_utc"])
    times = [centre + pd.Timedelta(minutes=int(m)) for m in str(row["minute_offsets"]).split(":")]
    return Event(
        id=event_id,
        index=int(row["file_index"]),
        times=tuple(time.strftime(TIME_FORMAT) for time in times),
        shape=(int(row["size_y"]), int(row["size_x"])),
        pixel_m=(float(row["width_m"] / row["size_x"]), float(row["height_m"] / row["size_y"])),
        projection=str(row["proj"]).strip(),
        lower_left=(float(row["llcrnrlon"]), float(row["llcrnrlat"])),
    )
