"""A past period as if its frames arrived now: the same forecasts as then, from what was known."""

import time
from dataclasses import replace

import pandas as pd
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from models import replay as replaying
from models.nowcasting import Nowcaster, NowcastSettings
from models.replay import Outage, ReplaySettings, replay, simulate
from models.rounds import Outcome, Service
from pipelines.errors import NoFramesError
from pipelines.forecasts import open_forecast, open_forecasts, revisions
from pipelines.ingest import IngestSettings
from pipelines.sources import FrameFile, get_source
from pipelines.sources.synthetic import SyntheticRadar
from pipelines.times import now, utc

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
RADAR = SyntheticRadar(size=48, frames=14, cells=12)


def at(slot):
    return START + slot * TIMESTEP


@pytest.fixture(scope="module")
def folder(tmp_path_factory, send):
    """A provider's folder with frames 0 … 13, and a correction of frame 6, half an hour later."""
    folder = tmp_path_factory.mktemp("provider")
    for valid_time, field in zip(RADAR.times, RADAR.rain_rate(), strict=True):
        send(folder, valid_time, field, grid=RADAR.grid)
    corrected = RADAR.rain_rate()[6] * 2
    send(folder, at(6), corrected, grid=RADAR.grid, name="_corrected", after="31min")
    return folder


@pytest.fixture(scope="module")
def files(folder):
    """The files of `folder`, without the correction, on time."""
    found = get_source("odim").find(str(folder))
    return on_time([file for file in found if "corrected" not in file.name])


@pytest.fixture(scope="module")
def correction(folder):
    (file,) = (file for file in get_source("odim").find(str(folder)) if "corrected" in file.name)
    return file


def on_time(files):
    return simulate(files, ReplaySettings()).files


def arriving(files, **late_by):
    """The files in order of arrival, some later: ``s5="20min"`` for that of slot 5."""
    delays = {at(int(name[1:])): pd.Timedelta(delay) for name, delay in late_by.items()}
    none = pd.Timedelta(0)
    later = [replace(f, received=f.received + delays.get(f.valid_time, none)) for f in files]
    return sorted(later, key=lambda file: (file.received, file))


def without(files, *slots):
    return [file for file in files if file.valid_time not in [at(slot) for slot in slots]]


def service(root, model="persistence", **values):
    nowcast = NowcastSettings(lead_time="10min", **values)
    ingest = IngestSettings(source="odim", timestep="5min", workers=1)
    return Service(str(root), "test", ingest, Nowcaster(str(root), model, nowcast))


def publications(root, files, model="persistence", **values):
    """What a replay into `root` published, in order."""
    done = replay(service(root, model, **values), files)
    return [made for one in done for made in one.outcomes if made.state == "published"]


def slots_and_revisions(outcomes):
    return [(round((one.init_time - START) / TIMESTEP), one.revision) for one in outcomes]


def told(root, slot, revision=None):
    return open_forecast(str(root), "test", at(slot), revision).attrs


# Arrivals ----------------------------------------------------------------------------------------


def listed(*times, name="a"):
    moments = [pd.Timestamp(f"2024-06-01T{time}") for time in times]
    return [FrameFile(moment, moment, f"file:///{name}/{moment}", 1) for moment in moments]


def received(arrivals):
    return [f"{file.valid_time:%H:%M} {file.received:%H:%M}" for file in arrivals.files]


def test_frames_arrive_when_they_should():
    files = listed("00:00", "00:05", "00:10")
    assert received(simulate(files, ReplaySettings(delay="2min"))) == [
        "00:00 00:02",
        "00:05 00:07",
        "00:10 00:12",
    ]


def test_late_frames_come_so_much_later():
    files = listed("00:00", "00:05")
    arrivals = simulate(files, ReplaySettings(delay="2min", late=1.0, late_by="9min"))
    assert received(arrivals) == ["00:00 00:11", "00:05 00:16"]
    assert arrivals.late == arrivals.files


def test_missing_frames_never_come():
    files = listed("00:00", "00:05")
    arrivals = simulate(files, ReplaySettings(missing=1.0))
    assert (arrivals.files, arrivals.lost) == ([], files)


def test_what_falls_into_an_outage_comes_at_its_end():
    """The second outage begins when the first ends; the frame due at its end is not held."""
    outages = (
        Outage(begin="2024-06-01T00:10", length="6min"),
        Outage(begin="2024-06-01T00:06", length="4min"),
    )
    files = listed("00:00", "00:05", "00:10", "00:15")
    assert received(simulate(files, ReplaySettings(outages=outages))) == [
        "00:00 00:01",
        "00:05 00:16",
        "00:10 00:16",
        "00:15 00:16",
    ]


def test_a_correction_comes_as_long_after_the_frame_as_it_did_and_shares_its_fate():
    (first,) = listed("00:00")
    correction = replace(first, received=first.received + pd.Timedelta("31min"), url="file:///b")
    arrivals = simulate([first, correction], ReplaySettings(late=1.0, late_by="9min"))
    assert received(arrivals) == ["00:00 00:10", "00:00 00:41"]
    assert simulate([first, correction], ReplaySettings(missing=1.0)).files == []
    copied = replace(first, received=first.received + pd.Timedelta("900D"), url="file:///b")
    assert received(simulate([first, copied], ReplaySettings())) == ["00:00 00:01"] * 2


MONTH = [
    FrameFile(time, time, f"file:///{time}", 1)
    for time in pd.date_range(START, periods=8640, freq="5min")
]
PART = MONTH[401:501]
BAD = ReplaySettings(late=0.1, missing=0.02, seed=3)


def test_as_many_frames_are_late_and_missing_as_was_said():
    arrivals = simulate(MONTH, BAD)
    assert len(arrivals.late) / len(arrivals.files) == pytest.approx(0.1, abs=0.01)
    assert len(arrivals.lost) / len(MONTH) == pytest.approx(0.02, abs=0.005)
    assert len(arrivals.files) + len(arrivals.lost) == len(MONTH)


def test_arrivals_follow_from_settings_and_valid_time_not_from_period_or_order():
    whole, part = simulate(MONTH, BAD), simulate(MONTH[500:400:-1], BAD)
    assert part == simulate(PART, BAD)
    assert set(part.lost) == set(whole.lost) & set(PART)
    times = {file.valid_time for file in PART}
    assert part.files == [file for file in whole.files if file.valid_time in times]
    assert simulate(MONTH, BAD.model_copy(update={"seed": 4})).lost != whole.lost


# What comes of it --------------------------------------------------------------------------------


def test_every_frame_has_its_forecast_within_seconds_of_its_arrival(tmp_path, files):
    made = publications(tmp_path, files[:4])
    assert slots_and_revisions(made) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [one.backfill for one in made] == [False] * 4
    for one in made[1:]:
        attributes = told(tmp_path, slots_and_revisions([one])[0][0])
        arrival = one.init_time + pd.Timedelta("1min")
        assert utc(attributes["frame_received_time"]) == arrival
        waited = utc(attributes["publish_time"]) - arrival
        assert pd.Timedelta(0) < waited < pd.Timedelta("1min")
        assert attributes["quality"] == "good"
    assert now() > START + pd.Timedelta("100D"), "the clock is as it was"


def test_a_late_frame_supersedes_the_forecasts_whose_window_it_is_in_and_no_other(tmp_path, files):
    """Advection sees three frames. Frame 4 comes with frame 8 there: in the windows of 4, 5, 6."""
    made = publications(tmp_path, arriving(files[:10], s4="22min"), "advection")
    assert slots_and_revisions(made) == [
        *[(slot, 1) for slot in (0, 1, 2, 3, 5, 6, 7, 8)],
        *[(6, 2), (5, 2), (4, 1)],
        (9, 1),
    ]
    for slot in (5, 6):
        old, new = told(tmp_path, slot, 1), told(tmp_path, slot, 2)
        assert (old["quality"], new["quality"]) == ("degraded", "good")
        assert old["bridged_times"] == ["2024-06-01T00:20:00Z"]
        assert new["bridged_times"] == []
        assert old["superseded_by"] == f"{at(slot):%Y%m%dT%H%MZ}.r2.zarr"
        assert new["backfill"] == 1
    for slot in (3, 7, 8, 9):
        assert len(revisions(str(tmp_path), "test", at(slot))) == 1
        assert "superseded_by" not in told(tmp_path, slot)


def test_a_corrected_frame_supersedes_the_forecasts_that_were_made_from_it(
    tmp_path, files, correction
):
    """Frame 6 is corrected at 01:01 + 30 min, when frame 12 is there."""
    came = replace(correction, received=at(6) + pd.Timedelta("31min"))
    made = publications(tmp_path, arriving([*files, came]))
    assert slots_and_revisions(made)[:13] == [(slot, 1) for slot in range(13)]
    assert slots_and_revisions(made)[13:] == [(7, 2), (6, 2), (13, 1)]
    old, new = (open_forecast(str(tmp_path), "test", at(6), revision) for revision in (1, 2))
    assert float(new["rain_rate"].sum() / old["rain_rate"].sum()) == pytest.approx(2.0, rel=0.01)


def test_after_an_outage_the_newest_comes_first_then_the_gap_as_far_as_to_catch_up(tmp_path, files):
    """Nothing from 00:12 to 01:02: frames 3 to 12 come at once; half an hour of them is made up."""
    outage = Outage(begin="2024-06-01T00:12", length="50min")
    arrivals = simulate(files, ReplaySettings(outages=(outage,)))
    made = publications(tmp_path, arrivals.files, catch_up="30min")
    assert slots_and_revisions(made) == [
        *[(slot, 1) for slot in (0, 1, 2)],
        *[(slot, 1) for slot in (12, 11, 10, 9, 8, 7)],
        (13, 1),
    ]
    assert [one.backfill for one in made] == [False] * 4 + [True] * 5 + [False]


def test_a_missing_frame_is_bridged_and_said_so(tmp_path, files):
    made = publications(tmp_path, without(files[:6], 3), "advection")
    qualities = {slots_and_revisions([one])[0][0]: one.quality for one in made}
    assert qualities == {0: "degraded", 1: "degraded", 2: "good", 4: "degraded", 5: "degraded"}
    assert told(tmp_path, 5)["quality_note"] == "1 of 3 past frames missing, bridged by advection"
    assert told(tmp_path, 5)["model"] == told(tmp_path, 5)["requested_model"] == "advection"


def test_with_more_missing_than_may_be_advection_forecasts_and_says_why(tmp_path, files):
    made = publications(tmp_path, without(files[:6], 3), "persistence", most_missing=0)
    fallbacks = {slots_and_revisions([one])[0][0]: one.fallback_reason for one in made}
    assert [slot for slot, reason in fallbacks.items() if reason] == [4]
    assert "too few past frames" in fallbacks[4]
    assert "missing 2024-06-01T00:15:00Z" in fallbacks[4]
    attributes = told(tmp_path, 4)
    assert (attributes["model"], attributes["requested_model"], attributes["quality"]) == (
        "advection",
        "persistence",
        "fallback",
    )


def test_without_a_model_advection_forecasts_and_says_why(tmp_path, files):
    made = publications(tmp_path, files[:4], "nobody")
    assert {one.model for one in made} == {"advection"}
    assert all("nobody" in one.fallback_reason for one in made)
    assert told(tmp_path, 3)["requested_model"] == "nobody"


# What was known ----------------------------------------------------------------------------------


def known(root, **when):
    """What a reader had: rain, and what tells forecasts apart, but not how long they took."""
    there = open_forecasts(str(root), "test", **when)
    return there.drop_vars("publish_time").compute()


@pytest.mark.parametrize("minutes", [8.5, 28.5, 33.5, 43.5, 63.5])
def test_what_was_known_at_a_time_is_what_a_replay_that_ends_then_knows(
    tmp_path, minutes, whole_replay, troubled
):
    end = START + pd.Timedelta(minutes=minutes)
    arrived = [file for file in troubled if file.received <= end]
    publications(tmp_path, arrived, "advection")
    xr.testing.assert_identical(known(whole_replay, known_at=end), known(tmp_path))


@pytest.fixture(scope="module")
def troubled(files, correction):
    """Late, lost and corrected frames, and an outage."""
    outage = Outage(begin="2024-06-01T00:41", length="12min")
    given = simulate([*files, correction], ReplaySettings(outages=(outage,))).files
    return arriving(without(given, 2), s4="10min", s11="7min")


@pytest.fixture(scope="module")
def whole_replay(tmp_path_factory, troubled):
    root = tmp_path_factory.mktemp("whole")
    made = publications(root, troubled, "advection")
    assert max(one.revision for one in made) > 1
    return root


@pytest.mark.slow
@settings(max_examples=6, phases=[Phase.generate])  # each takes seconds
@given(delays=st.lists(st.integers(0, 40), min_size=8, max_size=8))
def test_the_order_of_arrival_does_not_change_what_counts_in_the_end(
    tmp_path_factory, files, delays
):
    """As long as everything comes in time to be made up for."""
    late = {f"s{slot}": f"{minutes}min" for slot, minutes in enumerate(delays)}
    in_order, in_disorder = (tmp_path_factory.mktemp(name) for name in ("order", "disorder"))
    publications(in_order, files[:8], "persistence", catch_up="2h")
    publications(in_disorder, arriving(files[:8], **late), "persistence", catch_up="2h")
    rain = [known(root)["rain_rate"].drop_vars("revision") for root in (in_order, in_disorder)]
    xr.testing.assert_equal(*rain)


# Rounds ------------------------------------------------------------------------------------------


def test_a_round_that_fails_leaves_its_files_to_the_next(tmp_path, files, folder, send):
    """The first file is truncated: there is no archive yet, and nothing to say its grid by."""
    broken = send(tmp_path / "in", at(0), RADAR.rain_rate()[0], grid=RADAR.grid, keep=0.5)
    first = replace(files[0], url=f"file://{broken}", size=broken.stat().st_size)
    rounds = list(replay(service(tmp_path), [first, *files[1:4]]))
    assert isinstance(rounds[0].trouble, NoFramesError)
    assert [len(one.files) for one in rounds] == [1, 2, 1, 1]
    assert all(one.trouble is None for one in rounds[1:])
    made = [outcome for one in rounds for outcome in one.outcomes if outcome.state == "published"]
    assert [slot for slot, _ in slots_and_revisions(made)][-2:] == [2, 3]


@pytest.fixture
def rounds_of(monkeypatch, tmp_path):
    """Replay with rounds that take so many seconds each, and leave work so many times."""

    def run(files, *, takes_s=0.0, busy=0, poll="100ms", speed=None):
        left = [busy]

        def run_round(service, batch):
            time.sleep(takes_s)
            if left[0] > 0:
                left[0] -= 1
                yield Outcome(START, "published")

        monkeypatch.setattr(replaying, "run_round", run_round)
        return list(replay(service(tmp_path, poll=poll), files, speed=speed))

    return run


def spaced(seconds, count=3):
    return [
        FrameFile(START, START + pd.Timedelta(seconds=seconds) * k, f"file:///{k}", 1)
        for k in range(count)
    ]


def test_the_service_looks_at_whole_polls(rounds_of):
    rounds = rounds_of(spaced(7), poll="5s")
    assert [f"{one.began:%M:%S}" for one in rounds] == ["00:00", "00:10", "00:15"]


def test_frames_that_arrive_during_a_round_wait_for_the_next(rounds_of):
    rounds = rounds_of(spaced(0.1, count=5), takes_s=0.5, poll="1ms")
    assert [len(one.files) for one in rounds] == [1, 4]
    assert rounds[1].began == rounds[0].ended


def test_after_a_long_round_it_looks_again_until_nothing_is_left(rounds_of):
    rounds = rounds_of(spaced(600, count=2), takes_s=0.2, busy=3)
    assert [len(one.files) for one in rounds] == [1, 0, 0, 0, 1]
    assert rounds[1].began == rounds[0].ended + pd.Timedelta("100ms")


def test_at_a_given_speed_it_takes_so_much_time(rounds_of):
    began = time.monotonic()
    rounds_of(spaced(60), speed=240.0)
    assert time.monotonic() - began > 0.4
    began = time.monotonic()
    rounds_of(spaced(6000))
    assert time.monotonic() - began < 0.4
