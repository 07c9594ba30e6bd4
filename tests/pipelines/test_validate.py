"""Validation: every kind of damage is found, named and, where files are still there, mended."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.archive import Archive, Status, open_archive
from pipelines.ingest import IngestSettings, ingest
from pipelines.manifest import manifest_url
from pipelines.validate import validate

START = pd.Timestamp("2024-06-01T00:00")
TIMES = pd.date_range(START, periods=6, freq="5min")


@pytest.fixture
def place(tmp_path, send, grid):
    class Place:
        folder = tmp_path / "radar"
        url = f"file://{tmp_path}/test.zarr"

        def ingest(self):
            settings = IngestSettings(location=str(self.folder), timestep="5min", workers=1)
            return ingest(self.url, settings)

        def validate(self, **options):
            return validate(self.url, workers=1, **options)

        @property
        def archive(self):
            return Archive(self.url)

    place = Place()
    for number, time in enumerate(TIMES):
        send(place.folder, time, np.full(grid.shape, 1.0 + number))
    place.ingest()
    return place


def frame_object(place, slot) -> Path:
    return Path(place.url.removeprefix("file://")) / f"rain_rate/c/{slot}/0/0"


def flip_a_bit(place):
    content = bytearray(frame_object(place, 2).read_bytes())
    content[12] ^= 1
    frame_object(place, 2).write_bytes(content)


def lose_an_object(place):
    frame_object(place, 2).unlink()


def mix_up_two_frames(place):
    frame_object(place, 2).write_bytes(frame_object(place, 3).read_bytes())


def forget_a_row(place):
    (day,) = Path(manifest_url(place.url).removeprefix("file://")).iterdir()
    rows = [row for row in json.loads(day.read_text()) if "00:10" not in row["valid_time"]]
    day.write_text(json.dumps(rows))


def forget_a_status(place):
    place.archive.commit([], {TIMES[2]: Status.MISSING})


DAMAGES = {
    flip_a_bit: "damaged",
    lose_an_object: "other pixels",
    mix_up_two_frames: "other pixels",
    forget_a_row: "no row",
    forget_a_status: "status missing",
}


def test_a_sound_archive_is_sound(place):
    report = place.validate()
    assert report.ok
    assert report.frames == len(TIMES)
    assert "0 with a problem" in str(report)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_named_and_mended(place, damage):
    before = open_archive(place.url)["rain_rate"].load()
    damage(place)
    report = place.validate()
    assert list(report.problems) == [TIMES[2]]
    assert DAMAGES[damage] in report.problems[TIMES[2]]

    place.validate(repair=True)
    assert place.archive.status()[TIMES[2]] == Status.MISSING
    assert place.ingest().frames == [TIMES[2]]
    assert place.validate().ok
    xr.testing.assert_identical(open_archive(place.url)["rain_rate"].load(), before)


def test_chunks_of_an_older_axis_are_counted_and_go_with_repair(place, send, grid):
    send(place.folder, START - pd.Timedelta("1D"), np.full(grid.shape, 9.0))
    place.ingest()
    report = place.validate()
    assert report.ok
    assert report.leftovers > len(TIMES)
    place.validate(repair=True)
    assert place.validate().leftovers == 0
    assert len(place.archive.usable_times()) == len(TIMES) + 1
