"""Compaction: the training layout holds what the live one holds, and nothing is lost on the way."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.archive import TRAINING, Archive, Status, open_archive
from pipelines.compact import VerificationError, compact, training_url
from pipelines.errors import NotFoundError
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, ingest
from pipelines.manifest import ManifestRow, frame_rows
from pipelines.sources.synthetic import PROJECTION
from pipelines.times import time_text
from pipelines.units import count, pack

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
TIMES = pd.date_range(START, periods=60, freq=TIMESTEP)
SLOTS = [0, 1, 5, 23, 24, 30, 59]
"""In three blocks of 24."""


@pytest.fixture
def place(tmp_path, send, grid):
    """An archive of frames in three blocks, one of them late, ingested from files."""

    class Place:
        folder = tmp_path / "radar"
        url = f"file://{tmp_path}/test.zarr"
        training = training_url(f"file://{tmp_path}/test.zarr")

        def send(self, slot, rain_rate, **how):
            send(self.folder, TIMES[slot], np.full(grid.shape, rain_rate), **how)

        def ingest(self):
            settings = IngestSettings(location=str(self.folder), timestep="5min", workers=1)
            return ingest(self.url, settings)

        def compact(self, **options):
            return compact(self.url, workers=1, **options)

    place = Place()
    for slot in SLOTS:
        place.send(slot, 1.0 + slot, after="20min" if slot == 5 else "1min")
    place.ingest()
    return place


def as_read(url):
    return open_archive(url)["rain_rate"].load()


def test_the_training_archive_holds_the_same_frames_and_statuses(place):
    report = place.compact()
    assert (report.written, report.current, report.frames, report.dropped) == (3, 0, 7, 0)
    xr.testing.assert_identical(as_read(place.training), as_read(place.url))
    assert Archive(place.training).layout is TRAINING
    assert Archive(place.training).status()[TIMES[5]] == Status.LATE
    assert frame_rows(place.training) == frame_rows(place.url)
    attrs = open_archive(place.training).attrs
    assert attrs == open_archive(place.url).attrs
    assert attrs["odim_quantity"] == "RATE"


def test_what_is_up_to_date_is_not_written_again(place):
    place.compact()
    report = place.compact()
    assert (report.written, report.current) == (0, 3)


def test_a_new_and_a_corrected_frame_rewrite_their_blocks_alone(place):
    place.compact()
    place.send(2, 50.0)
    place.send(30, 60.0, name="_corrected", after="30min")
    place.ingest()
    report = place.compact()
    assert (report.written, report.current, report.frames) == (2, 1, 8)
    xr.testing.assert_identical(as_read(place.training), as_read(place.url))
    assert frame_rows(place.training) == frame_rows(place.url)


def test_an_axis_that_grew_both_ways_is_followed(place, send, grid):
    place.compact()
    for days in (-3, 2):
        send(place.folder, START + pd.Timedelta(days=days), np.full(grid.shape, 7.0 + days))
    place.ingest()
    assert place.compact().written == 2
    xr.testing.assert_identical(as_read(place.training), as_read(place.url))


def test_dropped_frames_are_moved_and_their_objects_gone(place, tmp_path):
    before = as_read(place.url)
    report = place.compact(drop_before=TIMES[24])
    assert report.dropped == 4
    live, training = Archive(place.url), Archive(place.training)
    assert (live.status()[TIMES[[0, 1, 5, 23]]] == Status.MOVED).all()
    assert list(live.usable_times()) == list(TIMES[[24, 30, 59]])
    assert as_read(place.url).sel(time=TIMES[:24]).isnull().all()
    xr.testing.assert_identical(as_read(place.training), before)
    assert list(training.usable_times()) == list(TIMES[SLOTS])
    objects = [path for path in (tmp_path / "test.zarr/rain_rate/c").rglob("*") if path.is_file()]
    assert len(objects) == 3


def test_moved_frames_are_settled_and_stay_where_they_are(place):
    place.compact(drop_before=TIMES[24])
    before = as_read(place.training)
    assert place.ingest().settled == len(SLOTS)
    assert place.compact(drop_before=TIMES[24]).written == 0
    xr.testing.assert_identical(as_read(place.training), before)


def test_a_correction_of_a_moved_frame_reaches_its_block(place):
    place.compact(drop_before=TIMES[24])
    before = as_read(place.training)
    place.send(1, 99.0, name="_corrected", after="30min")
    place.ingest()
    assert Archive(place.url).status()[TIMES[1]] == Status.LATE
    place.compact(drop_before=TIMES[24])
    after = as_read(place.training)
    assert (after.sel(time=TIMES[1]) == 99.0).all()
    others = TIMES.delete(1)
    xr.testing.assert_identical(after.sel(time=others), before.sel(time=others))
    assert Archive(place.url).status()[TIMES[1]] == Status.MOVED


def test_nothing_is_dropped_where_the_block_does_not_read_back(place, monkeypatch):
    before = as_read(place.url)
    own = Archive.write_block

    def flip(self, slots, y, x, stored):
        stored = stored.copy()
        stored[0, 0, 0] ^= 1
        own(self, slots, y, x, stored)

    monkeypatch.setattr(Archive, "write_block", flip)
    with pytest.raises(VerificationError, match="does not read back"):
        place.compact(drop_before=TIMES[59])
    xr.testing.assert_identical(as_read(place.url), before)
    assert len(Archive(place.training).usable_times()) == 0


def test_nothing_is_dropped_where_a_frame_is_not_what_the_manifest_says(place):
    live = Archive(place.url)
    live.write_frame(TIMES[1], np.ones(live.grid.shape, np.uint16))
    with pytest.raises(VerificationError, match="not what the manifest says"):
        place.compact(drop_before=TIMES[59])
    assert len(Archive(place.url).usable_times()) == len(SLOTS)


def test_an_uncommitted_frame_is_not_compacted(place):
    live = Archive(place.url)
    live.write_frame(TIMES[3], np.ones(live.grid.shape, np.uint16))
    live.commit([], {TIMES[30]: Status.MISSING})
    assert place.compact().frames == len(SLOTS) - 1
    assert as_read(place.training).sel(time=TIMES[[3, 30]]).isnull().all()
    assert place.compact().written == 0


def test_a_large_field_is_compacted_column_by_column(tmp_path, build_archive):
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (520, 1030))
    fields = {slot: np.random.default_rng(slot).uniform(0, 50, grid.shape) for slot in (0, 25)}
    archive = build_archive(tmp_path / "a.zarr", fields, slots=48, grid=grid)
    rows = [
        ManifestRow(
            time_text(TIMES[slot]), "ok", f"file {slot}", 1, "", str(slot), "odim", "odim/1", "",
            **count(pack(field)[0])._asdict(),
        )
        for slot, field in fields.items()
    ]  # fmt: skip
    archive.commit(rows, {})
    assert compact(archive.url, workers=1).frames == 2
    xr.testing.assert_identical(as_read(training_url(archive.url)), as_read(archive.url))


def test_no_archive_is_an_error(tmp_path):
    with pytest.raises(NotFoundError, match="no archive"):
        compact(str(tmp_path / "none.zarr"))
