"""The archive: slots, frames, status, manifest, and an axis that grows under its readers."""

import subprocess
import sys
import textwrap
import uuid

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines import storage
from pipelines.archive import (
    LIVE,
    TRAINING,
    Archive,
    Status,
    archive_url,
    create,
    open_archive,
)
from pipelines.axis import remove_leftovers
from pipelines.errors import ExistsError, NotFoundError, SquallError
from pipelines.grid import Grid
from pipelines.manifest import ManifestRow, read_manifest, write_manifest
from pipelines.sources.synthetic import PROJECTION
from pipelines.units import MISSING, pack, unpack

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")


@pytest.fixture
def field(grid):
    """Rain, dry and missing pixels."""
    rain_rate = np.arange(64.0).reshape(grid.shape) / 10
    rain_rate[0] = 0.0
    rain_rate[-1] = np.nan
    return rain_rate


def row(**changes):
    values = {
        "valid_time": "2024-06-01T00:05:00Z",
        "outcome": "ok",
        "key": "file:///radar/a.h5",
        "size": 10,
        "received": "2024-06-01T00:06:00Z",
        "sha256": "ab",
        "source": "odim",
        "decoder": "odim/1",
        "ingested": "2024-06-01T00:07:00Z",
    }
    return ManifestRow(**(values | changes))


def test_the_archive_of_a_product_has_its_place(tmp_path):
    assert archive_url(str(tmp_path), "knmi") == f"file://{tmp_path}/archive/knmi.zarr"


def test_a_new_archive_is_all_missing_and_holds_no_frame_object(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {})
    assert (archive.status() == Status.MISSING).all()
    assert len(archive.usable_times()) == 0
    assert open_archive(archive.url)["rain_rate"].isnull().all()
    assert not (tmp_path / "a.zarr/rain_rate/c").exists()


def test_the_axis_has_a_slot_for_every_timestep(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {}, slots=5)
    assert list(archive.times) == list(pd.date_range(START, periods=5, freq="5min"))
    assert archive.timestep == TIMESTEP
    assert archive.slot(START + 3 * TIMESTEP) == 3


@pytest.mark.parametrize("off", ["1min", "-5min", "25min"])
def test_a_time_off_the_axis_is_an_error(tmp_path, build_archive, off):
    archive = build_archive(tmp_path / "a.zarr", {}, slots=5)
    with pytest.raises(SquallError, match="no such time in the archive"):
        archive.slot(START + pd.Timedelta(off))


def test_no_archive_is_an_error_that_says_where(tmp_path):
    with pytest.raises(NotFoundError, match=f"nothing at {tmp_path}/nothing.zarr"):
        Archive(str(tmp_path / "nothing.zarr"))


def test_an_archive_is_never_created_over_another(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {0: field})
    with pytest.raises(ExistsError, match="there is an archive already"):
        build_archive(tmp_path / "a.zarr", {})
    assert len(Archive(archive.url).usable_times()) == 1


def test_a_frame_comes_back_from_its_slot(tmp_path, build_archive, field, grid):
    archive = build_archive(tmp_path / "a.zarr", {3: field})
    frames = archive.read_frames(archive.times[3:4])
    assert frames.dims == ("time", "y", "x")
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames[0], field, atol=1e-6)
    assert Grid.of(frames).matches(grid)
    assert list(frames["time"].values) == [archive.times[3]]


def test_a_frame_that_was_written_but_not_committed_is_not_there(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {0: field})
    archive.write_frame(archive.times[1], pack(field)[0])
    frames = archive.read_frames(archive.times[:2])
    assert frames[0].notnull().any()
    assert frames[1].isnull().all()
    assert list(archive.usable_times()) == [START]


@pytest.mark.parametrize("status", Status)
def test_only_ok_and_late_frames_are_usable(tmp_path, build_archive, field, status):
    archive = build_archive(tmp_path / "a.zarr", {0: field})
    archive.commit([], {START: status})
    assert (len(archive.usable_times()) == 1) is (status in (Status.OK, Status.LATE))


def test_a_commit_touches_no_other_status(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {}, slots=600)  # three status chunks
    given = {1: Status.OK, 287: Status.BAD, 288: Status.LATE, 599: Status.OK}
    for slot, status in given.items():
        archive.commit([], {archive.times[slot]: status})
    archive.commit([], {archive.times[2]: Status.OK, archive.times[598]: Status.BAD})
    given |= {2: Status.OK, 598: Status.BAD}
    expected = [given.get(slot, Status.MISSING) for slot in range(600)]
    assert archive.status().tolist() == expected


@pytest.mark.parametrize("start", [None, 0, 3, 290, 900])
@pytest.mark.parametrize("end", [None, 0, 2, 290, 900])
def test_a_part_of_the_status_is_that_part_of_all(tmp_path, build_archive, field, start, end):
    archive = build_archive(tmp_path / "a.zarr", {0: field, 2: field, 290: field}, slots=600)
    first, last = (None if n is None else START + n * TIMESTEP for n in (start, end))
    times = archive.times[archive.times.slice_indexer(first, last)]
    pd.testing.assert_series_equal(
        archive.status(first, last), archive.status().loc[times], check_freq=False
    )
    usable = archive.usable_times()
    assert list(archive.usable_times(first, last)) == [time for time in usable if time in times]


@pytest.mark.parametrize("slots", [[], [0], [7], [3, 290], [599]])
def test_the_newest_usable_time_wherever_it_is(tmp_path, build_archive, field, slots):
    archive = build_archive(tmp_path / "a.zarr", dict.fromkeys(slots, field), slots=600)
    assert archive.newest_usable() == (START + slots[-1] * TIMESTEP if slots else None)


def test_a_crop_is_the_same_part_of_every_frame(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {1: field, 2: field + 1})
    crop = unpack(archive.read_stored(slice(1, 4), slice(2, 5), slice(0, 4)))
    assert crop.shape == (3, 3, 4)
    np.testing.assert_allclose(crop[0], field[2:5, :4], atol=1e-6)
    np.testing.assert_allclose(crop[1], field[2:5, :4] + 1, atol=1e-6)
    assert np.isnan(crop[2]).all()


@pytest.mark.parametrize("shape", [(8, 8), (300, 257)])
def test_a_grid_that_chunks_do_not_divide_is_stored_whole(tmp_path, build_archive, shape):
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), shape)
    field = np.random.default_rng(0).integers(0, 1000, shape) / 100
    archive = build_archive(tmp_path / "a.zarr", {0: field}, grid=grid)
    np.testing.assert_allclose(archive.read_frames(archive.times[:1])[0], field, atol=1e-5)
    np.testing.assert_allclose(open_archive(archive.url)["rain_rate"][0], field, atol=1e-9)
    shard_files = [p for p in (tmp_path / "a.zarr/rain_rate/c").rglob("*") if p.is_file()]
    assert len(shard_files) == 1


# Readers -----------------------------------------------------------------------------------------

STOCK_READER = """
    import sys
    import numpy as np
    import xarray as xr

    dataset = xr.open_zarr(sys.argv[1])
    ours = {name.partition(".")[0] for name in sys.modules} & {"pipelines", "models", "flows"}
    assert not ours, ours

    rain_rate = dataset["rain_rate"]
    assert rain_rate.dims == ("time", "y", "x"), rain_rate.dims
    assert rain_rate.attrs["units"] == "mm h-1"
    assert rain_rate.attrs["standard_name"] == "rainfall_rate"
    assert rain_rate.attrs["grid_mapping"] == "crs"
    assert dataset["crs"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    assert {"crs_wkt", "spatial_ref"} <= set(dataset["crs"].attrs)
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        assert dataset[name].dims == ("y", "x")
        assert dataset[name].attrs["units"] == units
    assert dataset["time"].dtype.kind == "M"
    assert dataset["time"].attrs["standard_name"] == "time"
    assert set(dataset.data_vars) == {"rain_rate"}
    assert dataset.attrs["Conventions"].startswith("CF-")
    assert dataset["status"].values.tolist() == [0, 0, 1, 0]
    assert dataset["status"].attrs["flag_meanings"] == "missing ok late bad moved"

    frame = rain_rate.isel(time=2).values
    np.testing.assert_allclose(frame[1, :3], [0.8, 0.9, 1.0], atol=1e-9)
    assert (frame[0] == 0).all(), "dry is 0"
    assert np.isnan(frame[-1]).all(), "not observed is NaN"
    assert np.isnan(rain_rate.isel(time=0)).all(), "a slot without a frame is NaN"
    print("read")
"""


def test_stock_xarray_opens_the_archive_elsewhere_and_without_us(
    tmp_path, build_archive, field, monkeypatch
):
    build_archive(tmp_path / "a.zarr", {2: field}, slots=4)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(STOCK_READER), str(tmp_path / "a.zarr")],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "read\n", done.stderr


def test_an_archive_lives_on_any_file_system(build_archive, field):
    url = f"memory://{uuid.uuid4().hex}/archive/a.zarr"
    archive = build_archive(url, {2: field}, slots=4)
    archive.commit([row()], {START: Status.BAD})
    archive.extend(end=START + 5 * TIMESTEP)
    again = Archive(url)
    assert again.status().tolist() == [3, 0, 1, 0, 0, 0]
    np.testing.assert_allclose(again.read_frames(again.times[2:3])[0], field, atol=1e-6)
    np.testing.assert_allclose(xr.open_zarr(url)["rain_rate"][2], field, atol=1e-6)
    assert read_manifest(url) == [row()]


# Extending ---------------------------------------------------------------------------------------


def as_read(url):
    """What a stock reader gets, loaded."""
    return xr.open_zarr(storage.zarr_store(url)).load()


def die_at_the_root(url, content, write=storage.write_json):
    """All documents are written but the last, the root's metadata."""
    if url.endswith("a.zarr/zarr.json"):
        raise KeyboardInterrupt
    write(url, content)


def test_an_extended_archive_has_the_old_slots_and_the_new_ones(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    before = as_read(archive.url)
    archive.extend(end=START + 9 * TIMESTEP)
    after = as_read(archive.url)
    xr.testing.assert_identical(after.isel(time=slice(5)), before)
    assert list(after["time"].values) == list(pd.date_range(START, periods=10, freq="5min"))
    assert after["rain_rate"][5:].isnull().all()
    assert (after["status"][5:] == Status.MISSING).all()
    assert list(archive.times) == list(Archive(archive.url).times) == list(after["time"].values)


def test_an_extended_archive_takes_frames_in_its_new_slots(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {}, slots=5)
    archive.extend(end=START + 9 * TIMESTEP)
    archive.write_frame(archive.times[8], pack(field)[0])
    archive.commit([], {archive.times[8]: Status.OK})
    np.testing.assert_allclose(as_read(archive.url)["rain_rate"][8], field, atol=1e-6)


@pytest.mark.parametrize("slot", [0, 3, 4])
def test_extending_to_a_time_that_has_a_slot_changes_nothing(tmp_path, build_archive, slot):
    archive = build_archive(tmp_path / "a.zarr", {}, slots=5)
    before = {p: p.read_bytes() for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()}
    archive.extend(archive.times[slot], archive.times[slot] + pd.Timedelta("4min"))
    assert {p: p.read_bytes() for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()} == before


def test_a_reader_that_was_open_before_an_extension_reads_on(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    reader = xr.open_zarr(storage.zarr_store(archive.url))
    archive.extend(end=START + 999 * TIMESTEP)
    assert reader.sizes["time"] == 5
    np.testing.assert_allclose(reader["rain_rate"][3], field, atol=1e-6)
    np.testing.assert_array_equal(reader["status"], [0, 0, 0, 1, 0])


@pytest.mark.parametrize("until", [7, 9, 12])
def test_an_extension_that_dies_half_way_is_not_seen_and_the_next_one_completes_it(
    tmp_path, build_archive, field, monkeypatch, until
):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    before = as_read(archive.url)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", die_at_the_root)
        with pytest.raises(KeyboardInterrupt):
            archive.extend(end=START + 9 * TIMESTEP)
    xr.testing.assert_identical(as_read(archive.url), before)
    again = Archive(archive.url)
    assert len(again.times) == len(again.status()) == 5
    again.commit([], {again.times[4]: Status.BAD})  # work goes on in between

    again.extend(end=START + until * TIMESTEP)
    after = as_read(archive.url)
    assert list(after["time"].values) == list(pd.date_range(START, periods=until + 1, freq="5min"))
    assert after["status"].values.tolist() == [0, 0, 0, 1, 3] + [0] * (until - 4)
    np.testing.assert_allclose(after["rain_rate"][3], field, atol=1e-6)


@pytest.mark.parametrize("layout", [LIVE, TRAINING], ids=lambda layout: layout.name)
@pytest.mark.parametrize("prependings", [1, 2, 3, 4, 5])
def test_earlier_slots_shift_no_frame(tmp_path, build_archive, field, layout, prependings):
    archive = build_archive(tmp_path / "a.zarr", {3: field, 30: 2 * field}, slots=40, layout=layout)
    before = as_read(archive.url)
    for n in range(1, prependings + 1):
        archive.extend(start=START - n * 24 * TIMESTEP)
    assert archive.times[0] == START - prependings * 24 * TIMESTEP
    assert list(archive.times) == list(Archive(archive.url).times)
    after = as_read(archive.url)
    xr.testing.assert_identical(after.sel(time=before["time"]), before)
    earlier = after.sel(time=slice(None, START - TIMESTEP))
    assert earlier["rain_rate"].isnull().all()
    assert (earlier["status"] == Status.MISSING).all()


def test_an_axis_grows_both_ways_at_once_and_takes_frames_there(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    archive.extend(START - 3 * TIMESTEP, START + 9 * TIMESTEP)
    for slot in (0, 12):
        archive.write_frame(archive.times[slot], pack(field)[0])
        archive.commit([], {archive.times[slot]: Status.OK})
    after = as_read(archive.url)
    assert np.nonzero(after["status"].values)[0].tolist() == [0, 6, 12]
    for slot in (0, 6, 12):
        np.testing.assert_allclose(after["rain_rate"][slot], field, atol=1e-6)


def test_the_training_layout_gains_earlier_slots_by_whole_chunks(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {}, slots=40, layout=TRAINING)
    archive.extend(start=START - TIMESTEP)
    assert archive.times[0] == START - 24 * TIMESTEP


def test_a_reader_that_was_open_before_a_prepending_reads_what_it_read(
    tmp_path, build_archive, field
):
    archive = build_archive(tmp_path / "a.zarr", {3: field, 4: 2 * field}, slots=5)
    readers = []
    for _ in range(2):
        readers.append(xr.open_zarr(storage.zarr_store(archive.url)))
        archive.extend(start=archive.times[0] - TIMESTEP)
    newest = readers[-1]
    np.testing.assert_allclose(newest["rain_rate"].sel(time=START + 3 * TIMESTEP), field, atol=1e-6)
    # Its chunks went with the second prepending: missing, and no other frame.
    assert readers[0]["rain_rate"].sel(time=START + 3 * TIMESTEP).isnull().all()


def test_a_prepending_that_dies_half_way_is_not_seen_and_the_next_one_completes_it(
    tmp_path, build_archive, field, monkeypatch
):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    before = as_read(archive.url)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", die_at_the_root)
        with pytest.raises(KeyboardInterrupt):
            archive.extend(start=START - 2 * TIMESTEP)
    xr.testing.assert_identical(as_read(archive.url), before)
    again = Archive(archive.url)
    again.write_frame(again.times[4], pack(2 * field)[0])  # work goes on in between
    again.commit([], {again.times[4]: Status.OK})

    again.extend(start=START - 5 * TIMESTEP)
    after = as_read(archive.url)
    assert np.nonzero(after["status"].values)[0].tolist() == [8, 9]
    np.testing.assert_allclose(after["rain_rate"][8], field, atol=1e-6)
    np.testing.assert_allclose(after["rain_rate"][9], 2 * field, atol=1e-6)
    assert after["rain_rate"][:8].isnull().all()


def test_leftovers_of_an_older_axis_can_be_removed(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    archive.extend(start=START - TIMESTEP)
    before = as_read(archive.url)
    assert remove_leftovers(archive.url, archive.root_metadata) > 0
    assert remove_leftovers(archive.url, archive.root_metadata) == 0
    xr.testing.assert_identical(as_read(archive.url), before)


# Fast arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [LIVE, TRAINING], ids=lambda layout: layout.name)
def test_tensorstore_and_zarr_write_the_same_values(tmp_path, build_archive, monkeypatch, layout):
    pytest.importorskip("tensorstore")
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (300, 530))
    stored = np.random.default_rng(0).integers(0, 65536, (3, *grid.shape)).astype(np.uint16)
    stored[2] = MISSING

    def written(name):
        archive = build_archive(tmp_path / name, {}, slots=30, grid=grid, layout=layout)
        for slot, frame in enumerate(stored):
            archive.write_frame(archive.times[slot], frame)
        archive.commit([], dict.fromkeys(archive.times[:3], Status.OK))
        return as_read(archive.url)

    fast = written("fast.zarr")
    monkeypatch.setattr("pipelines.archive.fast_array", lambda url, metadata: None)
    xr.testing.assert_identical(fast, written("plain.zarr"))
    np.testing.assert_array_equal(fast["rain_rate"][:3].astype("f4"), unpack(stored))


def test_a_flipped_bit_is_an_error_and_no_rain(tmp_path, build_archive, field):
    archive = build_archive(tmp_path / "a.zarr", {3: field}, slots=5)
    (chunk,) = [p for p in (tmp_path / "a.zarr/rain_rate/c").rglob("*") if p.is_file()]
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        as_read(archive.url)


# Manifest ----------------------------------------------------------------------------------------


def test_the_manifest_has_a_row_for_every_file_by_day(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {})
    rows = [
        row(key="b"),
        row(key="a"),
        row(key="c", valid_time="2024-06-02T00:00:00Z", outcome="bad", error="broken"),
    ]
    write_manifest(archive.url, rows)
    assert read_manifest(archive.url) == [rows[1], rows[0], rows[2]]
    assert read_manifest(archive.url, ["2024-06-02"]) == [rows[2]]
    assert read_manifest(archive.url, ["2024-06-03"]) == []
    assert storage.names(str(tmp_path / "a.manifest")) == ["2024-06-01.json", "2024-06-02.json"]


def test_a_row_of_the_same_file_replaces_the_older_one(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {})
    write_manifest(archive.url, [row(), row(key="other")])
    write_manifest(archive.url, [row(outcome="superseded")])
    assert read_manifest(archive.url) == [row(outcome="superseded"), row(key="other")]


def test_a_manifest_of_a_newer_version_is_read_without_what_is_unknown(tmp_path, build_archive):
    archive = build_archive(tmp_path / "a.zarr", {})
    write_manifest(archive.url, [row()])
    url = storage.join(str(tmp_path), "a.manifest", "2024-06-01.json")
    storage.write_json(url, [{**storage.read_json(url)[0], "mood": "sunny"}])
    assert read_manifest(archive.url) == [row()]


def test_the_manifest_is_written_before_the_status(tmp_path, build_archive, monkeypatch):
    archive = build_archive(tmp_path / "a.zarr", {})

    def die(url, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.archive.write_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        archive.commit([row()], {START: Status.OK})
    assert (archive.status() == Status.MISSING).all()


def test_an_archives_own_attributes_are_kept(tmp_path, grid):
    create(
        str(tmp_path / "a.zarr"), grid, START, START, TIMESTEP, {"source": "here", "license": "MIT"}
    )
    attrs = xr.open_zarr(tmp_path / "a.zarr").attrs
    assert (attrs["source"], attrs["license"]) == ("here", "MIT")
    assert attrs["timestep_seconds"] == 300
