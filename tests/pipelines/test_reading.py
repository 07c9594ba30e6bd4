"""Reading samples: the numbers of plain xarray, whatever the layout, the window and the reader."""

import functools
import importlib.util
import multiprocessing
import os
import pickle
import sys
import uuid

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archive import LIVE, TRAINING, Archive, Status, create
from pipelines.errors import NotFoundError, SquallError
from pipelines.grid import Grid
from pipelines.reading import SampleReader
from pipelines.sources.synthetic import PROJECTION
from pipelines.units import MISSING

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
SLOTS, ROWS, COLUMNS = 30, 300, 270
NOT_COMMITTED = {5: Status.MISSING, 6: Status.BAD, 29: Status.BAD}
NEVER_WRITTEN = (12, 13)

tensorstore = pytest.mark.skipif(
    importlib.util.find_spec("tensorstore") is None, reason="tensorstore is not installed"
)
FAST = pytest.mark.parametrize("fast", [pytest.param(True, marks=tensorstore), False])


def fill(url, layout):
    """Every pixel another number; slots that are late, bad, without a status, never written."""
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (ROWS, COLUMNS))
    archive = create(url, grid, START, START + TIMESTEP * (SLOTS - 1), TIMESTEP, layout=layout)
    stored = np.random.default_rng(0).integers(0, MISSING + 1, (SLOTS, ROWS, COLUMNS), np.uint16)
    stored[list(NEVER_WRITTEN)] = MISSING
    archive.group["rain_rate"][:] = stored
    status = dict.fromkeys(range(SLOTS), Status.OK) | NOT_COMMITTED | {3: Status.LATE}
    status |= dict.fromkeys(NEVER_WRITTEN, Status.MISSING)
    archive.commit([], {archive.times[slot]: status[slot] for slot in range(SLOTS)})
    return archive


@pytest.fixture(scope="module", params=[LIVE, TRAINING], ids=lambda layout: layout.name)
def stored_archive(request, tmp_path_factory):
    return fill(str(tmp_path_factory.mktemp("reading") / "a.zarr"), request.param)


@pytest.fixture(scope="module")
def reference(stored_archive):
    """By xarray alone: NaN in every slot that is not committed."""
    dataset = xr.open_zarr(stored_archive.url, chunks=None).load()
    committed = dataset["status"].isin([Status.OK, Status.LATE])
    return dataset["rain_rate"].where(committed)


def along(length):
    return st.tuples(st.integers(0, length), st.integers(1, length)).map(
        lambda pair: slice(pair[0], pair[0] + pair[1])  # some reach beyond the end
    )


@pytest.fixture(scope="module")
def reader_of(stored_archive):
    return functools.cache(lambda fast: SampleReader(stored_archive.url, fast))


@FAST
@settings(max_examples=25)
@given(slots=along(SLOTS), y=along(ROWS), x=along(COLUMNS))
def test_a_crop_is_what_xarray_reads(reference, reader_of, fast, slots, y, x):
    crop = reader_of(fast).read(slots, y, x)
    expected = reference.isel(time=slots, y=y, x=x).to_numpy().astype(np.float32)
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, expected)


@FAST
def test_a_slot_that_is_not_committed_is_missing_whatever_its_pixels_say(stored_archive, fast):
    reader = SampleReader(stored_archive.url, fast)
    for slot in (*NOT_COMMITTED, *NEVER_WRITTEN):
        assert (reader.read_stored(slice(slot, slot + 1)) == MISSING).all()
        assert np.isnan(reader.read(slice(slot, slot + 1))).all()
    assert (stored_archive.read_stored(slice(5, 7)) != MISSING).any()
    assert (reader.read_stored(slice(3, 4)) != MISSING).any(), "late is committed"


@FAST
def test_a_crop_is_the_readers_to_change(stored_archive, fast):
    reader = SampleReader(stored_archive.url, fast)
    window = slice(0, 2), slice(0, 5), slice(0, 5)
    stored = reader.read_stored(*window)
    before = stored.copy()
    stored[:] = 1
    np.testing.assert_array_equal(reader.read_stored(*window), before)


@FAST
def test_a_frame_that_is_committed_later_waits_for_a_new_reader(tmp_path, build_archive, fast):
    archive = build_archive(tmp_path / "a.zarr", {0: np.ones((8, 8))}, slots=2)
    reader = SampleReader(archive.url, fast)
    assert np.isnan(reader.read(slice(1, 2))).all()
    archive.write_frame(archive.times[1], np.full((8, 8), 200, np.uint16))
    archive.commit([], {archive.times[1]: Status.OK})
    assert np.isnan(reader.read(slice(1, 2))).all()
    np.testing.assert_array_equal(SampleReader(archive.url, fast).read(slice(1, 2)), 2.0)


@FAST
def test_a_reader_opens_anew_in_a_spawned_worker(stored_archive, fast):
    reader = SampleReader(stored_archive.url, fast)
    window = slice(4, 9), slice(200, 290), slice(10, 20)
    expected = reader.read(*window)
    copy = pickle.loads(pickle.dumps(reader))
    assert reader._opened
    assert copy._opened is None
    assert (copy.url, copy.fast) == (reader.url, fast)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(reader.read, window), expected)


def test_a_forked_reader_says_so(stored_archive, monkeypatch):
    reader = SampleReader(stored_archive.url)
    reader.read(slice(0, 1), slice(0, 1), slice(0, 1))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="start workers with spawn"):
        reader.read(slice(0, 1))


def test_an_archive_in_an_object_store_is_read_through_fsspec(stored_archive, reference):
    archive = fill(f"memory://{uuid.uuid4().hex}/a.zarr", stored_archive.layout)
    crop = SampleReader(archive.url).read(slice(2, 14), slice(250, 280), slice(200, 270))
    expected = reference.isel(time=slice(2, 14), y=slice(250, 280), x=slice(200, 270))
    np.testing.assert_array_equal(crop, expected.to_numpy().astype(np.float32))
    with pytest.raises(SquallError, match="tensorstore reads local archives only"):
        SampleReader(archive.url, fast=True)


def test_without_tensorstore_zarr_reads(stored_archive, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(SquallError, match=r"squall\[fast\]"):
        SampleReader(stored_archive.url, fast=True)
    calls = []
    monkeypatch.setattr(
        Archive, "read_stored", lambda self, *w: calls.append(w) or np.zeros((1, 1, 1), np.uint16)
    )
    SampleReader(stored_archive.url).read(slice(0, 1), slice(0, 1), slice(0, 1))
    assert calls == [(slice(0, 1), slice(0, 1), slice(0, 1))]


def test_no_archive_is_an_error_at_the_first_read(tmp_path):
    reader = SampleReader(str(tmp_path / "none.zarr"))
    with pytest.raises(NotFoundError, match="no archive"):
        reader.read(slice(0, 1))
