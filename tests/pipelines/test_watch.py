"""The state of a service: ages, gaps, forecasts, the model, its skill, and the limits crossed."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import pytest

from pipelines import storage, watch
from pipelines.archive import Status, archive_url
from pipelines.errors import NotFoundError
from pipelines.score_store import write_scores
from pipelines.skill import SkillSettings, skill_url, update_skill
from pipelines.watch import WatchSettings, age_text, as_dict, crossed, look, recent_status
from tests.service import PRODUCT, publish_by_hand
from tests.verified import verified

STEP = pd.Timedelta("5min")
START = pd.Timestamp("2024-06-01T00:00")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


@pytest.fixture
def archive_of(root, build_archive):
    """An archive of the product with frames at some slots from midnight."""

    def build(frames, slots=288, **options):
        field = np.ones((8, 8))
        fields = dict.fromkeys(frames, field)
        return build_archive(archive_url(root, PRODUCT), fields, slots=slots, **options)

    return build


def at(*slots):
    return [START + slot * STEP for slot in slots]


def test_newest_frame_and_forecast_and_their_ages(root, grid, archive_of):
    archive_of(range(10))
    publish_by_hand(root, grid, at(7)[0])
    publish_by_hand(root, grid, at(8)[0], model="advection", quality="fallback")
    publish_by_hand(root, grid, at(8)[0], 2, model="net/1", quality="good")
    status = look(root, PRODUCT, time=at(9)[0] + pd.Timedelta("3min"))
    assert status.newest_frame == at(9)[0]
    assert status.frame_age == pd.Timedelta("3min")
    assert status.newest_forecast.revision == 2
    assert status.newest_forecast.attributes["model"] == "net/1"
    assert status.forecast_age == pd.Timedelta("8min")
    assert status.qualities == {"good": 2}, "a revision counts instead of what it supersedes"


def test_gaps_are_the_timesteps_without_a_usable_frame_up_to_the_newest_one(root, archive_of):
    archive = archive_of([2, 3, 5, 8])
    archive.commit([], {at(6)[0]: Status.BAD, at(5)[0]: Status.LATE})
    status = look(root, PRODUCT, time=at(20)[0])
    assert status.gaps == dict(zip(at(4, 6, 7), ["missing", "bad", "missing"], strict=True))


def test_frames_that_were_moved_into_the_training_layout_are_no_gaps(root, archive_of):
    archive = archive_of([1, 2, 3, 4])
    archive.commit([], dict.fromkeys(at(1, 2), Status.MOVED))
    assert look(root, PRODUCT).gaps == {}


def test_the_day_is_the_24_hours_up_to_the_newest_frame(root, grid, archive_of):
    frames = set(range(600)) - {100, 311, 312, 400}
    archive = archive_of(frames, slots=2 * 288 + 288)
    publish_by_hand(root, grid, at(100)[0])
    day = recent_status(archive)
    assert (day.index[0], day.index[-1]) == (at(312)[0], at(599)[0])
    status = look(root, PRODUCT)
    assert list(status.gaps) == at(312, 400)
    assert sum(status.qualities.values()) == 0, "the one forecast is older"
    assert status.waiting == [time for time in at(*range(312, 600)) if time not in status.gaps]


@pytest.mark.parametrize("newest", [0, 286, 287, 288, 575, 576, 900])
def test_the_newest_frame_is_found_whatever_lies_behind_it(archive_of, newest):
    archive = archive_of([0, newest], slots=1440)
    day = recent_status(archive)
    assert day.index[-1] == at(newest)[0]
    assert day.index[0] == at(max(0, newest - 287))[0]


def test_no_status_before_the_last_days_is_read(archive_of, monkeypatch):
    archive = archive_of([0, 2000], slots=2160)
    assert len(archive.times) == 2160
    read = []

    class Watched:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, slots):
            read.append(slots)
            return self.array[slots]

    monkeypatch.setattr(archive, "_array", lambda name: Watched(archive.group[name]))
    assert len(recent_status(archive)) == 288
    assert min(slots.start for slots in read) >= 2000 - 288


def test_an_archive_without_a_frame_has_no_day(root, archive_of):
    archive = archive_of([])
    assert len(recent_status(archive)) == 0
    status = look(root, PRODUCT)
    assert crossed(status, WatchSettings()) == ["no frame", "no forecast"]
    assert as_dict(status, [])["newest_frame"] is None


def test_no_archive_is_an_error(root):
    with pytest.raises(NotFoundError, match="no archive"):
        look(root, PRODUCT)


def test_frames_without_a_forecast_from_the_oldest_there_is_to_the_newest(root, grid, archive_of):
    archive_of(range(10))
    for time in at(3, 5, 7):
        publish_by_hand(root, grid, time)
    status = look(root, PRODUCT)
    assert status.unforecast == at(4, 6)
    assert status.waiting == at(8, 9)


def test_no_listing_is_made_where_every_frame_has_its_forecast(root, grid, archive_of, monkeypatch):
    archive_of(range(3))
    for time in at(0, 1, 2):
        publish_by_hand(root, grid, time)
    monkeypatch.setattr(watch, "published_names", None)  # which would be called
    assert look(root, PRODUCT).unforecast == []


def test_the_champion_of_the_model_that_was_asked_for(root, grid, archive_of):
    archive_of([0])
    assert look(root, PRODUCT).champion is None
    for name, version in ((PRODUCT, "v1"), ("rain", "v9")):
        storage.write_json(
            storage.join(root, "models", name, "champion.json"), {"version": version}
        )
    assert look(root, PRODUCT).champion == f"{PRODUCT}/v1"
    publish_by_hand(root, grid, at(0)[0], model="advection", requested_model="rain/v9")
    assert look(root, PRODUCT).champion == "rain/v9"


def skilled(root, hours=30, model=f"{PRODUCT}/v1", net=0.4):
    """Verified up to slot 0: hours of forecasts by a model, behind advection unless told else."""
    times = pd.date_range(end=START, periods=hours, freq="h")
    csi = {"served": [(net, 0.2)], "persistence": [(0.3, 0.3)], "advection": [(0.6, 0.6)]}
    write_scores(root, PRODUCT, [verified(times, csi, served=model)])
    update_skill(root, PRODUCT, SkillSettings())


def test_the_skill_is_that_of_the_last_verification(root, archive_of):
    archive_of([0])
    assert look(root, PRODUCT).skill is None
    skilled(root)
    skill = look(root, PRODUCT).skill
    assert skill.threshold_mm_h == 0.5
    assert skill.of("persistence").csi == pytest.approx((0.3, 0.3))
    told = json.loads(json.dumps(as_dict(look(root, PRODUCT), []), allow_nan=False))["skill"]
    assert told["csi"]["test/v1"] == {"5min": pytest.approx(0.4), "10min": pytest.approx(0.2)}
    assert told["trust_horizon"]["test/v1"] == {
        "seconds": 300,
        "reached": True,
        "interval_seconds": [300, 300],
    }
    assert told["behind_advection_since"]["test/v1"] == "2024-05-30T19:00:00Z"
    assert told["behind_advection_since"]["advection"] is None
    assert (told["since"], told["until"]) == ("2024-05-30T19:00:00Z", "2024-06-01T00:00:00Z")


def test_a_skill_that_cannot_be_read_is_none(root, archive_of):
    archive_of([0])
    skilled(root)
    storage.write_bytes(skill_url(root, PRODUCT), b"{")
    assert look(root, PRODUCT).skill is None


def test_a_champion_behind_advection_is_a_line(root, grid, archive_of):
    """29 hours are over."""
    archive_of([0])
    publish_by_hand(root, grid, at(0)[0], model="advection", requested_model=f"{PRODUCT}/v1")
    skilled(root)
    settings = {"longest_behind": dt.timedelta(hours=28)}

    def lines(**settings):
        return crossed(look(root, PRODUCT, time=at(1)[0]), WatchSettings(**settings))

    assert lines(**settings) == [], "nobody is champion"
    champion = storage.join(root, "models", PRODUCT, "champion.json")
    storage.write_json(champion, {"version": "v1"})
    assert lines(**settings) == ["test/v1 has been behind advection for 29h; limit 28h"]
    assert lines(longest_behind=dt.timedelta(hours=29)) == []
    storage.write_json(champion, {"version": "v2"})
    assert lines(**settings) == [], "it has begun anew"


LIMITS = {
    "oldest_frame": ("the newest frame is 10min old; limit 9min", dt.timedelta(minutes=9)),
    "oldest_forecast": ("the newest forecast is 15min old; limit 14min", dt.timedelta(minutes=14)),
    "most_gaps": ("2 frames missing in 24h; limit 1", 1),
    "most_unforecast": ("1 frames without a forecast in 24h; limit 0", 0),
    "largest_fallback": ("25% of 24h's forecasts are fallback; limit 20%", 0.2),
    "largest_degraded": ("50% of 24h's forecasts are degraded; limit 49%", 0.49),
}
EXACT = {
    "oldest_frame": dt.timedelta(minutes=10),
    "oldest_forecast": dt.timedelta(minutes=15),
    "most_gaps": 2,
    "most_unforecast": 1,
    "largest_fallback": 0.25,
    "largest_degraded": 0.5,
}


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_that_is_crossed_is_a_line(root, grid, archive_of, name):
    archive_of([0, 1, 4, 5, 6, 7])
    for time, quality in zip(
        at(0, 1, 4, 6), ("good", "fallback", "degraded", "degraded"), strict=True
    ):
        publish_by_hand(root, grid, time, quality=quality)
    status = look(root, PRODUCT, time=at(9)[0])
    assert crossed(status, WatchSettings(**EXACT)) == []
    line, limit = LIMITS[name]
    assert crossed(status, WatchSettings(**EXACT | {name: limit})) == [line]


def test_the_status_is_json(root, grid, archive_of):
    archive_of([0, 2])
    publish_by_hand(root, grid, at(2)[0])
    status = look(root, PRODUCT, time=at(3)[0])
    told = json.loads(json.dumps(as_dict(status, ["late"])))
    assert not told["ok"]
    assert told["limits_crossed"] == ["late"]
    assert told["gaps"] == {"2024-06-01T00:05:00Z": "missing"}
    assert told["newest_forecast"]["init_time"] == "2024-06-01T00:10:00Z"
    assert told["newest_forecast_age_seconds"] == 300
    assert told["latency"]["seconds"]["total"]["p50"] == 10


def test_the_oldest_forecast_is_only_asked_for_where_one_is_missing(root, archive_of):
    archive_of([0])
    assert look(root, PRODUCT).waiting == at(0)
    assert watch.newest_record(root, PRODUCT) is None


@pytest.mark.parametrize(
    ("age", "text"),
    [
        ("0s", "0s"),
        ("90s", "90s"),
        ("930s", "15.5min"),
        ("2h", "2h"),
        ("26h", "26h"),
        ("84h", "3.5d"),
    ],
)
def test_ages_as_people_say_them(age, text):
    assert age_text(pd.Timedelta(age)) == text
