"""Writes the golden stores beside this file: what Squall published must open for ever.

When the format changes on purpose, raise FORMAT and run it; stores of older formats stay as they
are:

    python -m tests.golden.make
"""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from models.nowcasting import Nowcaster, NowcastSettings
from pipelines import publishing, storage
from pipelines.archive import Archive, Status, archive_url, create
from pipelines.grid import Grid
from pipelines.manifest import ManifestRow
from pipelines.sources.synthetic import PROJECTION
from pipelines.times import time_text
from pipelines.units import count, pack

FORMAT = "4"
"""1: as first published. 2: checksums in the archive, status ``moved``, counts in the manifest.
3: forecasts in revisions, which say what they were made from and how long that took.
4: forecasts tell the recent skill of their model."""
PRODUCT = "golden"
START = pd.Timestamp("2024-06-01T05:00")
TIMESTEP = pd.Timedelta("5min")
MADE = pd.Timestamp("2024-06-01T05:10")


def field(slot: int) -> np.ndarray:
    """(8, 8) mm/h: (100·slot + 8·y + x) / 100, the first pixel not observed, the last the most."""
    values = (100.0 * slot + np.arange(64)) / 100
    values[0], values[-1] = np.nan, 655.34
    return values.reshape(8, 8)


def facts(slot: int) -> dict:
    """What the manifest says of a frame."""
    counts = count(pack(field(slot))[0])._asdict()
    return {"observed_fraction": 0.9844, "masked": {"speckle": 3}, **counts}


def make(root: str) -> Archive:
    """An archive with an ok, a late, a missing and a bad slot, and a forecast of the late one."""
    grid = Grid.from_corner(PROJECTION, -8000.0, 8000.0, (2000.0, 2000.0), (8, 8))
    url = archive_url(root, PRODUCT)
    attrs = {"source": "golden", "license": "CC0-1.0"}
    archive = create(url, grid, START, START + 3 * TIMESTEP, TIMESTEP, attrs)
    outcomes = {0: Status.OK, 1: Status.LATE, 3: Status.BAD}
    for slot in (0, 1):
        archive.write_frame(archive.times[slot], pack(field(slot))[0])
    rows = [
        ManifestRow(
            valid_time=f"{archive.times[slot].isoformat()}Z",
            outcome=status.name.lower(),
            key=f"file:///radar/{slot}.h5",
            size=100 + slot,
            received="2024-06-01T05:10:00Z",
            sha256=f"{slot:064x}",
            source="odim",
            decoder="odim/1 h5py/3.11.0",
            ingested="2024-06-01T05:10:01Z",
            **({} if status == Status.BAD else facts(slot)),
            error="unreadable HDF5 file" if status == Status.BAD else None,
        )
        for slot, status in outcomes.items()
    ]
    archive.commit(rows, {archive.times[slot]: status for slot, status in outcomes.items()})
    with Nowcaster(root, "persistence", NowcastSettings(lead_time="15min")) as nowcaster:
        forecast = nowcaster.nowcast(archive, archive.times[1])
    measured = dict.fromkeys((name for name in forecast.attrs if "seconds_" in name), 0.5)
    ages = {"radar_age_seconds": 300.0, "input_age_seconds": [600.0, 300.0]}
    history = {"history": f"{time_text(MADE)} forecast by squall"}
    with (
        patch.object(publishing, "now", lambda _: MADE),
        patch.object(publishing.time, "perf_counter", lambda: 0.0),
    ):
        publishing.publish(root, PRODUCT, forecast.assign_attrs(measured | ages | history))
    return archive


if __name__ == "__main__":
    folder = Path(__file__).parent / FORMAT
    for name in ("archive", "forecasts"):
        storage.remove(str(folder / name))
    make(str(folder))
    for lock in folder.rglob("*.lock"):
        lock.unlink()
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    sys.stdout.write(f"{len(files)} files, {size} bytes\n")
