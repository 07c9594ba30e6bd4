"""A synthetic radar archive: rain cells that move, grow and decay, written as ODIM HDF5 composites.

It looks like a provider's folder, faults included: one frame missing, one late, one sent twice and
one truncated. Everything follows from the seed; files of the same settings have the same rain.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.grid import Grid

import h5py  # isort: skip

GAIN_MM_H = 0.01
UNDETECT, NODATA = 0, 65535
PROJECTION = "+proj=laea +lat_0=52 +lon_0=5 +x_0=0 +y_0=0 +ellps=WGS84 +units=m"
TRANSMISSION = pd.Timedelta("70s")
"""How long after its valid time a file usually arrives."""


@dataclass(frozen=True)
class SyntheticRadar:
    """What to make.

    Parameters
    ----------
    start, frames, timestep : the period
    size : rows and columns of the square grid, 2 km pixels
    cells : rain cells alive at a time, on average
    drift_m_s : eastward and northward motion of all cells
    """

    start: pd.Timestamp = pd.Timestamp("2024-06-01T00:00")
    frames: int = 84
    timestep: pd.Timedelta = pd.Timedelta("5min")
    size: int = 128
    cells: int = 14
    drift_m_s: tuple[float, float] = (11.0, 5.0)
    seed: int = 7

    @property
    def times(self) -> pd.DatetimeIndex:
        """The valid times of all frames, missing one included."""
        return pd.date_range(self.start, periods=self.frames, freq=self.timestep)

    @property
    def grid(self) -> Grid:
        """A Lambert azimuthal equal-area grid around 52°N 5°E."""
        half = self.size * 1000.0
        return Grid.from_corner(PROJECTION, -half, half, (2000.0, 2000.0), (self.size, self.size))

    def rain_rate(self) -> NDArray[np.float32]:
        """(time, y, x) mm/h, NaN beyond the radar's range.

        Each cell is a Gaussian that drifts with the mean wind and a little of its own motion,
        grows to its peak and decays: R = peak · sin²(π·age/life) · exp(−r²/2σ²).
        """
        rng = np.random.default_rng(self.seed)
        seconds = np.arange(self.frames) * self.timestep.total_seconds()
        lives_s = rng.uniform(3600, 3 * 3600, size=self._cell_count())
        births_s = rng.uniform(-3 * 3600, seconds[-1], size=lives_s.size)
        half = self.size * 1000.0
        x0, y0 = rng.uniform(-1.6 * half, 1.6 * half, size=(2, lives_s.size))
        u, v = np.array(self.drift_m_s)[:, None] + rng.normal(0, 1.0, size=(2, lives_s.size))
        peaks = rng.gamma(2.0, 6.0, size=lives_s.size)
        sigmas = rng.uniform(5e3, 14e3, size=lives_s.size)
        x, y = np.meshgrid(self.grid.x, self.grid.y)
        field = np.zeros((self.frames, self.size, self.size), np.float32)
        for k in range(lives_s.size):
            age = seconds - births_s[k]
            for i in np.flatnonzero((age > 0) & (age < lives_s[k])):
                strength = peaks[k] * np.sin(np.pi * age[i] / lives_s[k]) ** 2
                dx = x - (x0[k] + u[k] * age[i])
                dy = y - (y0[k] + v[k] * age[i])
                field[i] += strength * np.exp(-(dx**2 + dy**2) / (2 * sigmas[k] ** 2))
        field[field < 0.1] = 0.0
        field[:, np.hypot(x, y) > half] = np.nan
        return field

    def _cell_count(self) -> int:
        """Cells over the whole period, spread over an area 1.6² times the grid's."""
        hours = self.frames * self.timestep.total_seconds() / 3600
        return round(self.cells * 1.6**2 * (hours + 3) / 2)


@dataclass(frozen=True)
class Faults:
    """Which frames (by number) go wrong, as every real archive's do."""

    missing: int
    truncated: int
    late: int
    duplicate: int
    late_by: pd.Timedelta = pd.Timedelta("13min")

    @classmethod
    def of(cls, frames: int) -> "Faults":
        """Missing and truncated frames in the history, late and duplicate ones in the last hour."""
        return cls(
            missing=frames // 4, truncated=frames // 2, late=frames - 8, duplicate=frames - 4
        )


def write_archive(
    folder: Path, radar: SyntheticRadar | None = None, faults: Faults | None = None
) -> Faults:
    """Write one ODIM HDF5 composite per frame into `folder`; the faults that were built in."""
    radar = radar or SyntheticRadar()
    faults = faults or Faults.of(radar.frames)
    folder.mkdir(parents=True, exist_ok=True)
    fields = radar.rain_rate()
    for number, (valid_time, field) in enumerate(zip(radar.times, fields, strict=True)):
        if number == faults.missing:
            continue
        content = odim_composite(field, radar.grid, valid_time)
        if number == faults.truncated:
            content = content[: len(content) // 2]
        received = valid_time + TRANSMISSION
        if number == faults.late:
            received += faults.late_by
        _write(folder, f"squall_{valid_time:%Y%m%d%H%M%S}.h5", content, received)
        if number == faults.duplicate:
            again = received + pd.Timedelta("30s")
            _write(folder, f"squall_{valid_time:%Y%m%d%H%M%S}_again.h5", content, again)
    return faults


def odim_composite(
    field: NDArray[np.floating],
    grid: Grid,
    valid_time: pd.Timestamp,
    projection: str = PROJECTION,
) -> bytes:
    """A rain-rate field (y, x; mm/h; NaN = nodata) as the bytes of an ODIM HDF5 composite.

    `projection` is the grid's as a PROJ string, which is how ODIM writes it.
    """
    stored = np.full(field.shape, NODATA, np.uint16)
    observed = np.isfinite(field)
    stored[observed] = np.minimum(np.rint(field[observed] / GAIN_MM_H), NODATA - 1)
    date, time = np.bytes_(f"{valid_time:%Y%m%d}"), np.bytes_(f"{valid_time:%H%M%S}")
    corners = {
        f"{corner}_{axis}": value
        for corner, lonlat in grid.corners_lonlat().items()
        for axis, value in zip(("lon", "lat"), lonlat, strict=True)
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_4")
        file.create_group("what").attrs.update(
            {
                "object": np.bytes_("COMP"),
                "version": np.bytes_("H5rad 2.4"),
                "date": date,
                "time": time,
                "source": np.bytes_("ORG:0,CMT:squall synthetic"),
            }
        )
        dx, dy = grid.pixel
        file.create_group("where").attrs.update(
            {
                "projdef": np.bytes_(projection),
                "xsize": np.int64(grid.shape[1]),
                "ysize": np.int64(grid.shape[0]),
                "xscale": dx,
                "yscale": dy,
                **corners,
            }
        )
        dataset = file.create_group("dataset1")
        dataset.create_group("what").attrs.update(
            {
                "product": np.bytes_("COMP"),
                "startdate": date,
                "starttime": time,
                "enddate": date,
                "endtime": time,
            }
        )
        array = dataset.create_group("data1")
        array.create_group("what").attrs.update(
            {
                "quantity": np.bytes_("RATE"),
                "gain": GAIN_MM_H,
                "offset": 0.0,
                "nodata": float(NODATA),
                "undetect": float(UNDETECT),
            }
        )
        array.create_dataset("data", data=stored, compression="gzip", compression_opts=6)
    return buffer.getvalue()


def _write(folder: Path, name: str, content: bytes, received: pd.Timestamp) -> None:
    path = folder / name
    path.write_bytes(content)
    seconds = received.tz_localize("UTC").timestamp()
    os.utime(path, (seconds, seconds))
