"""Ingest: whatever arrives, in any order and as often as you like, ends as the same archive."""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import shutil
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipelines import storage
from pipelines.archive import Archive, Status, open_archive
from pipelines.errors import GridMismatchError, NoFramesError, UnknownNameError
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, arrival, ingest
from pipelines.lock import BusyError, exclusive
from pipelines.manifest import read_manifest
from pipelines.quality import QualitySettings
from pipelines.regrid import RegridSettings
from pipelines.slot import give_up, ingest_slot, look
from pipelines.sources import get_source
from pipelines.sources.base import FrameFile
from pipelines.sources.odim import Odim
from pipelines.sources.synthetic import PROJECTION
from pipelines.units import pack

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
TIMES = pd.date_range(START, periods=6, freq=TIMESTEP)
ELSEWHERE = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), (8, 8))


@pytest.fixture
def place(tmp_path):
    """A provider's folder, an archive's URL and the settings to ingest one into the other."""

    class Place:
        folder = tmp_path / "radar"
        url = f"file://{tmp_path}/archive/test.zarr"
        settings = IngestSettings(
            source="odim", location=str(tmp_path / "radar"), timestep="5min", workers=1
        )

        def ingest(self, **options):
            return ingest(self.url, self.settings, **options)

        @property
        def archive(self):
            return Archive(self.url)

        def frame(self, time):
            return self.archive.read_frames(pd.DatetimeIndex([time])).values[0]

        def outcomes(self):
            """Outcome by file name."""
            return {row.key.rsplit("/", 1)[-1]: row.outcome for row in read_manifest(self.url)}

    return Place()


@pytest.fixture
def fields(grid):
    """A different field for every use."""
    return [np.full(grid.shape, 1.0 + number) for number in range(8)]


def contents(url):
    """Pixels and status, and the manifest but for the moment at which each row was made."""
    archive = open_archive(url)
    rows = [asdict(row) | {"ingested": None} for row in read_manifest(url)]
    return archive["rain_rate"].values, archive["status"].values, rows


def assert_same(one, other):
    for values, others in zip(one[:2], other[:2], strict=True):
        np.testing.assert_array_equal(values, others)
    assert one[2] == other[2]


# What becomes of a folder ------------------------------------------------------------------------


def test_every_fault_of_a_folder_ends_as_a_status_and_a_manifest_row(archive, radar, faults):
    status = archive.status()
    expected = pd.Series(int(Status.OK), index=radar.times)
    expected.iloc[faults.missing] = Status.MISSING
    expected.iloc[faults.truncated] = Status.BAD
    expected.iloc[faults.late] = Status.LATE
    assert status[radar.times].tolist() == expected.tolist()
    assert (status.drop(radar.times) == Status.MISSING).all()
    outcomes = pd.Series([row.outcome for row in read_manifest(archive.url)]).value_counts()
    assert outcomes.to_dict() == {"ok": 37, "late": 1, "bad": 1, "duplicate": 1}


def test_the_archive_holds_what_the_files_hold(archive, radar, faults):
    times = archive.usable_times()
    stored, _ = pack(radar.rain_rate())
    expected = stored[[list(radar.times).index(time) for time in times]]
    np.testing.assert_array_equal(pack(archive.read_frames(times).values)[0], expected)
    assert len(times) == radar.frames - 2
    assert archive.grid.matches(radar.grid)


def test_the_axis_has_whole_days(archive):
    assert archive.times[0] == START
    assert archive.times[-1] == START + pd.Timedelta("23h55min")


def test_a_new_archive_says_where_its_frames_are_from(archive):
    attrs = open_archive(archive.url).attrs
    assert attrs["source"] == get_source("odim").title
    assert attrs["license"] == get_source("odim").licence


def test_ingesting_twice_is_ingesting_once(place, send, fields):
    for number in (0, 1, 3):
        send(place.folder, TIMES[number], fields[number])
    send(place.folder, TIMES[4], fields[4], keep=0.5)
    send(place.folder, TIMES[1], fields[1], name="_again", after="2min")
    place.ingest()
    once = contents(place.url)
    report = place.ingest()
    assert_same(contents(place.url), once)
    assert (report.found, report.settled, report.frames) == (5, 5, [])


@pytest.fixture
def reading_here(monkeypatch):
    """Files are read in this process, where a test can see it and change how."""
    monkeypatch.setattr("pipelines.ingest.HUNG_S", None)


@pytest.mark.usefixtures("reading_here")
def test_what_is_settled_is_not_read_again(place, send, fields, monkeypatch):
    send(place.folder, TIMES[0], fields[0])
    send(place.folder, TIMES[1], fields[1], keep=0.5)
    place.ingest()
    send(place.folder, TIMES[2], fields[2])
    read = []
    own = storage.read_bytes

    def remember(url):
        read.extend([url] if url.endswith(".h5") else [])
        return own(url)

    monkeypatch.setattr(storage, "read_bytes", remember)
    place.ingest()
    assert [url.rsplit("/", 1)[-1] for url in read] == ["radar_202406010010.h5"]


def test_a_report_says_what_was_done(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    send(place.folder, TIMES[1], fields[1], after="15min")
    send(place.folder, TIMES[2], fields[2], keep=0.5)
    report = place.ingest()
    assert report.found == 3
    assert dict(report.outcomes) == {"ok": 1, "late": 1, "bad": 1}
    assert report.frames == [TIMES[0], TIMES[1]]
    assert len(report.errors) == 1
    assert report.errors[0].startswith("radar_202406010010.h5: unreadable HDF5 file")
    assert str(report) == "3 files: 1 bad, 1 late, 1 ok, 0 already settled"
    assert str(place.ingest()) == "3 files: nothing new, 3 already settled"


def test_a_period_may_be_named(place, send, fields):
    for number in range(4):
        send(place.folder, TIMES[number], fields[number])
    place.ingest(start=TIMES[1], end=TIMES[2])
    assert list(place.archive.usable_times()) == list(TIMES[1:3])


def test_the_axis_grows_with_the_frames(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    tomorrow = START + pd.Timedelta("1D10min")
    send(place.folder, tomorrow, fields[1])
    place.ingest()
    assert len(place.archive.times) == 2 * 288
    np.testing.assert_array_equal(place.frame(tomorrow), fields[1])
    np.testing.assert_array_equal(place.frame(START), fields[0])


def test_the_axis_grows_backwards_too(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    earlier = START - pd.Timedelta("3D") + 7 * TIMESTEP
    send(place.folder, earlier, fields[1])
    send(place.folder, TIMES[1], fields[2])
    assert dict(place.ingest().outcomes) == {"ok": 2}
    assert place.archive.times[0] == START - pd.Timedelta("3D")
    assert list(place.archive.usable_times()) == [earlier, TIMES[0], TIMES[1]]
    for time, field in zip([TIMES[0], earlier, TIMES[1]], fields, strict=False):
        np.testing.assert_array_equal(place.frame(time), field)
    assert place.ingest().outcomes == {}


@pytest.mark.parametrize("time", ["1970-01-01T00:00", "2099-01-01T00:00"])
def test_a_misdated_file_is_bad_and_does_not_stretch_the_axis(place, send, fields, time):
    send(place.folder, TIMES[0], fields[0])
    send(place.folder, pd.Timestamp(time), fields[1])
    report = place.ingest()
    assert dict(report.outcomes) == {"ok": 1, "bad": 1}
    assert "a frame from an impossible time" in report.errors[0]
    assert len(place.archive.times) == 288
    assert place.ingest().settled == 2


def test_misdated_files_alone_make_no_archive(place, send, fields):
    send(place.folder, pd.Timestamp("2099-01-01T00:00"), fields[0])
    with pytest.raises(NoFramesError, match="plausible time"):
        place.ingest()


def test_a_time_between_two_slots_is_bad(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    send(place.folder, TIMES[1] + pd.Timedelta("2min"), fields[1])
    report = place.ingest()
    assert dict(report.outcomes) == {"ok": 1, "bad": 1}
    assert "not on the archive's axis" in report.errors[0]


def test_an_empty_file_is_bad_and_stops_nothing(place, send, fields):
    send(place.folder, TIMES[0], fields[0], keep=0)
    send(place.folder, TIMES[1], fields[1])
    assert dict(place.ingest().outcomes) == {"ok": 1, "bad": 1}
    assert place.archive.status()[TIMES[0]] == Status.BAD


def test_a_file_that_vanishes_before_it_is_read_is_bad_until_it_comes_back(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    gone = send(place.folder, TIMES[1], fields[1])
    files = get_source("odim").find(str(place.folder))
    content, received = gone.read_bytes(), gone.stat().st_mtime
    gone.unlink()
    report = place.ingest(files=files)
    assert dict(report.outcomes) == {"ok": 1, "bad": 1}
    assert "listed and cannot be read" in report.errors[0]
    gone.write_bytes(content)
    os.utime(gone, (received, received))
    assert place.ingest().frames == [TIMES[1]]


@pytest.mark.usefixtures("reading_here")
def test_whatever_a_reader_stumbles_over_is_the_files_fault(place, send, fields, monkeypatch):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[1], fields[1])
    monkeypatch.setattr(get_source("odim"), "read", lambda content: 1 / 0, raising=False)
    report = place.ingest()
    assert dict(report.outcomes) == {"bad": 1}
    assert "ZeroDivisionError" in report.errors[0]


class Deadly(Odim):
    """Ends the process that reads a file of 2 mm/h."""

    def read(self, content):
        frame = super().read(content)
        if frame.max() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return frame


def deadly_slot(*task):
    get_source("odim").__class__ = Deadly
    return ingest_slot(*task)


@pytest.mark.slow
def test_a_file_that_kills_its_worker_is_bad_and_stops_nothing(place, send, fields, monkeypatch):
    for number in range(5):
        send(place.folder, TIMES[number], fields[number])
    monkeypatch.setattr("pipelines.ingest.ingest_slot", deadly_slot)
    report = ingest(place.url, place.settings.model_copy(update={"workers": 2}))
    assert dict(report.outcomes) == {"ok": 4, "bad": 1}
    assert place.archive.status()[TIMES[1]] == Status.BAD
    assert ingest(place.url, place.settings).settled == 5


def hold(url, held, release):
    with exclusive(url):
        held.set()
        release.wait(30)


def test_one_writer_at_a_time(tmp_path):
    url = str(tmp_path / "a.zarr")
    context = multiprocessing.get_context("forkserver")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(url, held, release))
    other.start()
    assert held.wait(30)
    with pytest.raises(BusyError, match="one writer at a time"), exclusive(url, wait_s=0.1):
        pass
    other.kill()  # and its lock goes with it
    other.join()
    with exclusive(url, wait_s=5):
        pass


@pytest.mark.slow
def test_dask_workers_make_the_same_archive(archive, synthetic, tmp_path):
    url = f"file://{tmp_path}/test.zarr"
    report = ingest(url, IngestSettings(source="odim", location=str(synthetic), workers=2))
    assert sum(report.outcomes.values()) == report.found == 40
    assert_same(contents(url), contents(archive.url))


# The order of arrival ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrivals(tmp_path_factory, send, grid):
    """Files of three times: copies, corrections, one that went back, late ones and broken ones."""
    folder = tmp_path_factory.mktemp("arrivals")
    one, other, third = (np.full(grid.shape, rain_rate) for rain_rate in (1.0, 2.0, 3.0))
    send(folder, TIMES[0], one, after="1min")
    send(folder, TIMES[0], one, name="_copy", after="2min")
    send(folder, TIMES[0], other, name="_corrected", after="3min")
    send(folder, TIMES[0], third, name="_broken", after="4min", keep=0.5)
    send(folder, TIMES[1], one, after="1min")
    send(folder, TIMES[1], other, name="_corrected", after="3min")
    send(folder, TIMES[1], one, name="_taken_back", after="20min")
    send(folder, TIMES[2], one, after="11min")
    send(folder, TIMES[2], one, name="_elsewhere", after="12min", grid=ELSEWHERE)
    return get_source("odim").find(str(folder))


@pytest.fixture(scope="module")
def reference(arrivals, tmp_path_factory):
    """An empty archive to begin with, and what it holds after all arrivals at once."""
    folder = tmp_path_factory.mktemp("reference")
    empty = folder / "empty.zarr"
    ingest(str(empty), in_process(), files=arrivals[:1])
    archive = Archive(str(empty))
    archive.commit([], {TIMES[0]: Status.MISSING})
    shutil.rmtree(folder / "empty.manifest")
    shutil.rmtree(empty / "rain_rate/c")
    shutil.copytree(empty, folder / "all.zarr")
    ingest(str(folder / "all.zarr"), in_process(), files=arrivals)
    return empty, contents(str(folder / "all.zarr"))


def in_process():
    return IngestSettings(source="odim", timestep="5min", workers=1)


def ingest_in_parts(empty: Path, parts: list[list[FrameFile]]):
    with tempfile.TemporaryDirectory() as folder:
        url = f"{folder}/test.zarr"
        shutil.copytree(empty, url)
        for part in parts:
            with contextlib.suppress(GridMismatchError):  # said of a part with nothing that fits
                ingest(url, in_process(), files=part)
        return contents(url)


def test_the_newest_readable_file_is_the_frame(reference):
    pixels, status, rows = reference[1]
    assert [float(frame[0, 0]) for frame in pixels[:3]] == [2.0, 1.0, 1.0]
    assert status[:3].tolist() == [Status.OK, Status.OK, Status.LATE]
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == [
        *("superseded", "bad", "superseded", "ok"),  # sorted by key: "", _broken, _copy, _corrected
        *("ok", "superseded", "duplicate"),
        *("late", "bad"),
    ]


@hypothesis_settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(parts=st.data())
def test_the_order_of_arrival_does_not_change_the_archive(reference, arrivals, parts):
    empty, expected = reference
    order = parts.draw(st.permutations(arrivals))
    cuts = sorted(parts.draw(st.sets(st.integers(1, len(order) - 1))))
    pieces = [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(order)])]
    assert_same(ingest_in_parts(empty, pieces), expected)


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0), (1, 2, 0)])
def test_a_correction_that_is_taken_back_counts_in_any_order(reference, arrivals, order):
    empty, (pixels, status, _) = reference
    files = [file for file in arrivals if file.valid_time == TIMES[1]]
    got = ingest_in_parts(empty, [[files[number]] for number in order])
    np.testing.assert_array_equal(got[0][1], pixels[1])
    assert got[1][1] == status[1]


def test_a_corrected_frame_replaces_the_first_one(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[0], fields[1], name="_corrected", after="3min")
    report = place.ingest()
    np.testing.assert_array_equal(place.frame(TIMES[0]), fields[1])
    assert report.frames == [TIMES[0]]
    assert list(place.outcomes().values()) == ["superseded", "ok"]


def test_a_frame_corrected_in_place_is_taken(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[0], fields[1], after="3min")
    place.ingest()
    np.testing.assert_array_equal(place.frame(TIMES[0]), fields[1])
    assert place.archive.status()[TIMES[0]] == Status.OK
    rows = read_manifest(place.url)
    assert sorted(row.outcome for row in rows) == ["ok", "superseded"]
    assert len({row.key for row in rows}) == 1


def test_a_file_that_is_only_touched_stays_the_frame(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[0], fields[0], after="3min")
    report = place.ingest()
    assert place.outcomes() == {"radar_202406010000.h5": "ok"}
    assert report.frames == []
    assert place.ingest().settled == 1


def test_a_copy_is_a_duplicate_and_no_new_frame(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[0], fields[0], name="_copy", after="2min")
    report = place.ingest()
    assert report.frames == []
    assert dict(report.outcomes) == {"duplicate": 1}


@pytest.mark.parametrize(
    ("after", "status"),
    [("10min", "OK"), ("11min", "LATE"), ("23h", "LATE"), ("2D", "OK")],
)
def test_a_late_frame_is_late_unless_it_is_history(place, send, fields, after, status):
    send(place.folder, TIMES[0], fields[0], after=after)
    place.ingest()
    assert place.archive.status()[TIMES[0]] == Status[status]


def test_history_was_known_at_its_valid_time():
    day = pd.Timedelta("1D")
    for delay, known in (("2min", "2min"), ("23h", "23h"), ("3D", "0min")):
        file = FrameFile(START, START + pd.Timedelta(delay), "file:///a.h5", 1)
        assert arrival(file, day) == START + pd.Timedelta(known)


# Bad files ---------------------------------------------------------------------------------------


def test_a_truncated_file_is_reported_and_stops_nothing(place, send, fields):
    send(place.folder, TIMES[0], fields[0], keep=0.5)
    send(place.folder, TIMES[1], fields[1])
    send(place.folder, TIMES[2], fields[2])
    place.ingest()
    assert place.archive.status()[TIMES[:3]].tolist() == [Status.BAD, Status.OK, Status.OK]
    bad = read_manifest(place.url)[0]
    assert bad.outcome == "bad"
    assert "unreadable HDF5 file" in bad.error
    assert "\n" not in bad.error
    assert np.isnan(place.frame(TIMES[0])).all()


@pytest.mark.parametrize("name", ["_again", ""], ids=["another file", "the same file overwritten"])
def test_a_bad_file_never_replaces_a_good_frame(place, send, fields, name):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[0], fields[1], name=name, after="3min", keep=0.5)
    report = place.ingest()
    assert dict(report.outcomes) == {"bad": 1}
    assert place.archive.status()[TIMES[0]] == Status.OK
    np.testing.assert_array_equal(place.frame(TIMES[0]), fields[0])
    # The frame's own file is still known: an older one that turns up now does not replace it.
    send(place.folder, TIMES[0], fields[2], name="_older", after="30s")
    place.ingest()
    np.testing.assert_array_equal(place.frame(TIMES[0]), fields[0])


def test_a_bad_file_leaves_a_good_frames_status_even_without_its_manifest(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    storage.remove(place.url.replace(".zarr", ".manifest"))
    (place.folder / "radar_202406010000.h5").unlink()
    send(place.folder, TIMES[0], fields[1], name="_again", after="3min", keep=0.5)
    place.ingest()
    assert place.archive.status()[TIMES[0]] == Status.OK


def test_a_good_file_replaces_a_bad_one(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    send(place.folder, TIMES[1], fields[1], keep=0.5)
    place.ingest()
    send(place.folder, TIMES[1], fields[1])
    place.ingest()
    assert place.archive.status()[TIMES[1]] == Status.OK
    np.testing.assert_array_equal(place.frame(TIMES[1]), fields[1])


def test_a_file_whose_content_is_of_another_time_is_bad(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    path = send(place.folder, TIMES[1], fields[1])
    path.rename(path.with_name("radar_202406010010.h5"))
    report = place.ingest()
    assert "name and content differ in time" in report.errors[0]
    assert place.archive.status()[TIMES[:3]].tolist() == [Status.OK, Status.MISSING, Status.BAD]


def test_a_file_in_another_grid_is_bad(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    send(place.folder, TIMES[1], fields[1], grid=ELSEWHERE)
    send(place.folder, TIMES[2], fields[2])
    report = place.ingest()
    assert dict(report.outcomes) == {"ok": 2, "bad": 1}
    assert "a grid that is not the archive's" in report.errors[0]
    assert place.archive.status()[TIMES[1]] == Status.BAD


def test_one_new_file_in_another_grid_is_bad_among_frames_that_fit(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[1], fields[1], grid=ELSEWHERE)
    report = place.ingest()
    assert dict(report.outcomes) == {"bad": 1}
    assert place.archive.status()[TIMES[1]] == Status.BAD


def test_an_archive_and_a_folder_of_another_grid_do_not_go_together(place, send, fields, tmp_path):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    before = place.frame(TIMES[0])
    for time in TIMES[:3]:
        send(tmp_path / "other", time, fields[1], grid=ELSEWHERE)
    other = place.settings.model_copy(update={"location": str(tmp_path / "other")})
    with pytest.raises(GridMismatchError, match="every frame has another grid than the archive"):
        ingest(place.url, other)
    np.testing.assert_array_equal(place.frame(TIMES[0]), before)
    assert place.archive.status()[TIMES[0]] == Status.OK


def test_pixels_above_the_largest_storable_are_clipped_and_counted(place, send, grid):
    # The synthetic files cannot hold them either, so the gain is made larger.
    import h5py

    path = send(place.folder, TIMES[0], np.where(np.arange(64).reshape(8, 8) < 3, 100.0, 1.0))
    with h5py.File(path, "r+") as file:
        file["dataset1/data1/what"].attrs["gain"] = 0.1
    place.ingest()
    (row,) = read_manifest(place.url)
    assert row.clipped == 3
    assert place.frame(TIMES[0]).max() == np.float32(655.34)


def test_the_manifest_says_how_much_was_observed(place, send, grid):
    field = np.zeros(grid.shape)
    field[:2] = np.nan
    send(place.folder, TIMES[0], field)
    place.ingest()
    (row,) = read_manifest(place.url)
    assert row.observed_fraction == 0.75
    assert row.source == "odim"
    assert row.decoder == get_source("odim").decoder
    assert row.received == "2024-06-01T00:01:00Z"
    assert row.size == os.path.getsize(place.folder / "radar_202406010000.h5")


# Crashes and upgrades ----------------------------------------------------------------------------


def test_a_commit_that_died_before_the_status_is_made_good(place, send, fields, monkeypatch):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    send(place.folder, TIMES[1], fields[1])
    with monkeypatch.context() as patch:
        array = type(place.archive.group["status"])

        def die(self, *args):
            raise KeyboardInterrupt

        own = array.__setitem__
        patch.setattr(
            array,
            "__setitem__",
            lambda self, *args: (die if self.name == "/status" else own)(self, *args),
        )
        with pytest.raises(KeyboardInterrupt):
            place.ingest()
    assert place.archive.status()[TIMES[1]] == Status.MISSING
    assert place.ingest().frames == [TIMES[1]]
    assert place.archive.status()[TIMES[1]] == Status.OK


@pytest.mark.usefixtures("reading_here")
def test_a_new_version_of_a_decoder_reads_everything_again(place, send, fields, monkeypatch):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    source = get_source("odim")
    monkeypatch.setattr(source, "decoder", "odim/2", raising=False)
    own = source.read
    monkeypatch.setattr(source, "read", lambda content: own(content) + 1, raising=False)
    report = place.ingest()
    np.testing.assert_array_equal(place.frame(TIMES[0]), fields[0] + 1)
    assert report.frames == [TIMES[0]]
    assert [row.decoder for row in read_manifest(place.url)] == ["odim/2"]


# Asking for what cannot be -----------------------------------------------------------------------


def test_no_frames_found_is_an_error(place):
    place.folder.mkdir()
    with pytest.raises(NoFramesError, match="expected names such as"):
        place.ingest()


def test_no_location_is_an_error(place):
    with pytest.raises(NoFramesError, match="no location to ingest from"):
        ingest(place.url, IngestSettings(source="odim"))


def test_no_readable_frame_makes_no_archive(place, send, fields):
    send(place.folder, TIMES[0], fields[0], keep=0.5)
    with pytest.raises(NoFramesError, match="no readable odim frame"):
        place.ingest()
    with pytest.raises(ValueError, match="no archive"):
        _ = place.archive


def test_an_unknown_source_is_answered_with_the_nearest(place):
    with pytest.raises(UnknownNameError, match="did you mean 'odim'"):
        ingest(place.url, IngestSettings(source="odin", location="."))


def test_one_frame_alone_does_not_say_its_timestep(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    with pytest.raises(NoFramesError, match="the timestep is unknown"):
        ingest(place.url, place.settings.model_copy(update={"timestep": None}))


def test_the_timestep_is_the_commonest_spacing(place, send, fields):
    for minutes in (0, 15, 45, 60):
        send(place.folder, START + pd.Timedelta(minutes=minutes), fields[0])
    ingest(place.url, place.settings.model_copy(update={"timestep": None}))
    assert place.archive.timestep == pd.Timedelta("15min")


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        IngestSettings(sauce="odim")


# Quality control and regridding ------------------------------------------------------------------


def test_what_quality_control_takes_out_is_counted_and_missing(place, send, grid):
    field = np.ones(grid.shape)
    field[2, 3], field[4:6, 4:6] = 500.0, 300.0
    send(place.folder, TIMES[0], field)
    quality = QualitySettings(largest_mm_h=200.0)
    ingest(place.url, place.settings.model_copy(update={"quality": quality}))
    (row,) = read_manifest(place.url)
    assert row.masked == {"largest": 5}
    assert row.observed == field.size - 5
    np.testing.assert_array_equal(np.isnan(place.frame(TIMES[0])), field > 200)


def test_other_settings_read_every_file_again_and_say_so(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    strict = place.settings.model_copy(update={"quality": QualitySettings(largest_mm_h=0.5)})
    assert ingest(place.url, strict).frames == [TIMES[0]]
    assert np.isnan(place.frame(TIMES[0])).all()
    assert ingest(place.url, strict).settled == 1
    assert place.ingest().frames == [TIMES[0]]
    np.testing.assert_array_equal(place.frame(TIMES[0]), fields[0])


def test_an_archive_may_be_coarser_than_its_files(place, send, grid):
    field = np.arange(64.0).reshape(8, 8)
    field[:2, :2] = np.nan
    send(place.folder, TIMES[0], field)
    coarse = place.settings.model_copy(update={"regrid": RegridSettings(coarsen=2)})
    assert dict(ingest(place.url, coarse).outcomes) == {"ok": 1}
    means = field.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(place.frame(TIMES[0]), means, atol=0.005)
    before = contents(place.url)
    with pytest.raises(GridMismatchError, match="another grid"):
        place.ingest()
    assert_same(contents(place.url), before)


def test_settings_that_do_not_fit_lose_nothing_that_was_read(place, send, fields, grid):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    before = contents(place.url)
    smaller = RegridSettings(crop=(-8000.0, -8000.0, 0.0, 8000.0))
    with pytest.raises(GridMismatchError):
        ingest(place.url, place.settings.model_copy(update={"regrid": smaller}))
    assert_same(contents(place.url), before)


def test_giving_up_on_files_of_which_one_has_gone_is_a_row_for_each(place, send, fields):
    send(place.folder, TIMES[0], fields[0])
    place.ingest()
    kept = send(place.folder, TIMES[1], fields[1])
    gone = send(place.folder, TIMES[1], fields[2], name="b")
    files = get_source("odim").find(str(place.folder), start=TIMES[1])
    gone.unlink()
    result = give_up(place.url, Archive(place.url).version, place.settings, files, [])
    assert [row.outcome for row in result.rows] == ["bad", "bad"]
    assert [bool(row.sha256) for row in result.rows] == [kept.name in f.url for f in files]


def hang_at_the_second(archive_url, version, settings, files, previous):
    if files[0].valid_time == TIMES[1]:
        ctypes.PyDLL(None).sleep(600)  # as some library does, with Python's lock
    return ingest_slot(archive_url, version, settings, files, previous)


def hang_at_the_first(file, settings):
    if file.valid_time == TIMES[0]:
        ctypes.PyDLL(None).sleep(600)
    return look(file, settings)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_nobody_comes_back_from_is_bad(place, send, fields, monkeypatch, workers):
    for time, field in zip(TIMES[:3], fields, strict=False):
        send(place.folder, time, field)
    place.settings = place.settings.model_copy(update={"workers": workers})
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.ingest.HUNG_S", 2.0)
        patch.setattr("pipelines.ingest.ingest_slot", hang_at_the_second)
        report = place.ingest()
    assert dict(report.outcomes) == {"ok": 2, "bad": 1}
    assert report.frames == [TIMES[0], TIMES[2]]
    assert "reading it ends the process" in report.errors[0]
    assert [*place.archive.status(TIMES[0], TIMES[2])] == [Status.OK, Status.BAD, Status.OK]
    assert place.ingest().settled == 3


def test_an_archive_is_begun_even_if_the_first_file_hangs_who_reads_it(
    place, send, fields, monkeypatch
):
    for time, field in zip(TIMES[:2], fields, strict=False):
        send(place.folder, time, field)
    monkeypatch.setattr("pipelines.ingest.HUNG_S", 2.0)
    monkeypatch.setattr("pipelines.ingest.look", hang_at_the_first)
    assert dict(place.ingest().outcomes) == {"ok": 2}


@pytest.mark.parametrize(
    ("source", "folder"),
    [("mrms", "mrms"), ("odim", "opera-cirrus"), ("fmi-pgm", "fmi-pgm"), ("knmi", "knmi")],
)
def test_real_files_become_the_frames_that_their_reader_reads(radar_data, tmp_path, source, folder):
    files = get_source(source).find(str(radar_data / folder))[:2]
    url = str(tmp_path / "a.zarr")
    settings = IngestSettings(source=source, workers=1)
    assert dict(ingest(url, settings, files=files).outcomes) == {"ok": 2}
    archive = Archive(url)
    expected = get_source(source).read(Path(files[0].url.removeprefix("file://")).read_bytes())
    slot = archive.slot(files[0].valid_time)
    stored = archive.read_stored(slice(slot, slot + 1))[0]
    np.testing.assert_array_equal(stored, pack(expected.values)[0])
    assert Grid.of(expected).matches(archive.grid)
