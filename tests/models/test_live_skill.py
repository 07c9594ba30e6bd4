"""Live skill acts: a model long behind advection is not served, until it is better again."""

import logging

import numpy as np
import pandas as pd
import pytest

from models import nowcasting
from models.baselines import Persistence
from models.nowcasting import IN_PROCESS, Nowcaster, NowcastSettings
from models.rounds import Service, forecast_period, run_round
from pipelines import storage
from pipelines.errors import TooFewFramesError
from pipelines.forecasts import open_forecast
from pipelines.ingest import IngestSettings
from pipelines.score_store import write_scores
from pipelines.skill import SkillSettings, recent_skill, skill_url, update_skill
from tests.verified import verified

TIMESTEP, HOUR = pd.Timedelta("5min"), pd.Timedelta("1h")
START = pd.Timestamp("2024-06-01T05:00")
PRODUCT = "test"
MODEL = "net/1"
SKILL = SkillSettings()
AHEAD, BEHIND = 0.8, 0.4  # advection has 0.6


def at(slot):
    return START + slot * TIMESTEP


class Net(Persistence):
    """A model that forecasts well or not, as the scores made up for it say."""

    name = MODEL


@pytest.fixture
def crown(monkeypatch):
    """Make a version of net the champion, net/1 to begin with; it forecasts in this process."""
    prepare = Nowcaster._prepare

    def prepared(self, wanted):
        if wanted in IN_PROCESS:
            return prepare(self, wanted)
        net = Net()
        net.name = wanted
        return 2, net

    def choose(version):
        monkeypatch.setattr(nowcasting, "champion", lambda root, name: version)

    monkeypatch.setattr(Nowcaster, "_prepare", prepared)
    choose("1")
    return choose


@pytest.fixture
def feed(tmp_path, send, grid):
    def add(*slots):
        for slot in slots:
            send(tmp_path / "radar", at(slot), np.full(grid.shape, 1.0 + slot / 10))

    return add


@pytest.fixture
def start(crown, tmp_path):
    """A service that began with that model; its forecasts and scores are where the models are."""

    root = str(tmp_path)

    def begin(model="net", **settings):
        how = NowcastSettings(**{"lead_time": "10min", "catch_up": "5min"} | settings)
        options = {"source": "odim", "location": str(tmp_path / "radar"), "timestep": "5min"}
        ingest = IngestSettings(workers=1, **options)
        return Service(root, PRODUCT, ingest, Nowcaster(root, model, how))

    return begin


def verify(root, until, hours, *, model=MODEL, served=None):
    """Have verified that, at these hours up to `until`, the model was so good, and say so."""
    times = pd.date_range(end=until, periods=len(hours), freq="h")
    csi = {"served": hours, model: hours, "persistence": 0.3, "advection": 0.6}
    if served is not None:
        csi["served"] = 0.6
    write_scores(root, PRODUCT, [verified(times, csi, served=served or model)])
    return update_skill(root, PRODUCT, SKILL)


def newest(service):
    """The attributes of the one forecast of a round, and the outcome."""
    (outcome,) = run_round(service)
    return open_forecast(service.root, PRODUCT, outcome.init_time).attrs, outcome


def test_a_drop_in_skill_has_advection_served_and_a_rise_the_model_again(feed, start, caplog):
    service = start()
    root, until = service.root, START - HOUR
    feed(0, 1, 2)
    attrs, _ = newest(service)
    assert (attrs["model"], attrs["quality"]) == (MODEL, "good")
    assert attrs["skill_note"] == "no verified forecasts known"

    verify(root, until, [AHEAD] * 30)
    feed(3)
    attrs, _ = newest(service)
    assert (attrs["model"], attrs["fallback_reason"]) == (MODEL, "")
    assert attrs["recent_skill"] == [AHEAD, AHEAD]
    assert attrs["trust_horizon_seconds"] == 600

    verify(root, until, [BEHIND] * 24)  # the last hour is not over: 23
    feed(4)
    assert newest(service)[0]["model"] == MODEL

    verify(root, until, [BEHIND] * 25)
    feed(5)
    with caplog.at_level(logging.WARNING):
        attrs, outcome = newest(service)
    reason = (
        "net/1 behind advection for 24h, 2024-05-31T04:00:00Z to 2024-06-01T04:00:00Z: "
        "CSI 0.400 against 0.600 at 0.5 mm/h"
    )
    assert (attrs["model"], attrs["requested_model"]) == ("advection", MODEL)
    assert (attrs["quality"], attrs["fallback_reason"]) == ("fallback", reason)
    assert outcome.fallback_reason == reason
    assert reason in caplog.text
    assert attrs["recent_skill"] == [0.6, 0.6], "of the one that made it"

    # In shadow it is ahead, at first for some of an hour and then for all of it.
    shadow = [BEHIND] * 25 + [AHEAD] * 2
    verify(root, until + HOUR, shadow[:-1], served="advection")
    feed(6)
    assert newest(service)[0]["model"] == "advection"
    verify(root, until + 2 * HOUR, shadow, served="advection")
    feed(7)
    attrs, _ = newest(service)
    assert (attrs["model"], attrs["quality"]) == (MODEL, "good")

    # Behind again for hours, it is no flapping: the day begins anew.
    verify(root, until + 5 * HOUR, [*shadow, BEHIND, BEHIND, BEHIND])
    feed(8)
    assert newest(service)[0]["model"] == MODEL


def test_only_that_version_counts(feed, start, crown):
    service = start()
    verify(service.root, START - HOUR, [BEHIND] * 30)
    feed(0, 1, 2)
    assert newest(service)[0]["model"] == "advection"
    crown("2")
    feed(3)
    attrs, _ = newest(service)
    assert (attrs["model"], attrs["quality"]) == ("net/2", "good")
    assert attrs["skill_note"].startswith("no forecasts by net/2 verified lately")


def test_a_baseline_that_was_asked_for_is_never_replaced(feed, start):
    service = start("persistence")
    verify(service.root, START - HOUR, [BEHIND] * 30)
    feed(0, 1, 2)
    attrs, _ = newest(service)
    assert (attrs["model"], attrs["quality"]) == ("persistence", "good")
    assert attrs["recent_skill"] == [0.3, 0.3]
    assert "behind advection since" in attrs["skill_note"]


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, "advection"),
        ({"fallback_after": None}, MODEL),
        ({"fallback_after": "29h"}, "advection"),
        ({"fallback_after": "30h"}, MODEL),
        ({"skill_expires": "70min"}, "advection"),
        ({"skill_expires": "69min"}, MODEL),
    ],
)
def test_the_settings_say_when(feed, start, caplog, settings, model):
    """29 hours are over; the newest verified forecast is 70 minutes older than the frame."""
    service = start(**settings)
    verify(service.root, START - HOUR, [BEHIND] * 30)
    feed(0, 1, 2)
    attrs, _ = newest(service)
    assert attrs["model"] == model
    stale = settings.get("skill_expires") == "69min"
    assert ("verified only up to 2024-06-01T04:00:00Z" in caplog.text) is stale
    assert ("not recent" in attrs["skill_note"]) is stale


def test_a_model_that_nobody_runs_any_more_is_tried_again(feed, start, caplog):
    """Verification goes on, of advection alone."""
    service = start(skill_expires="6h")
    verify(service.root, START - 8 * HOUR, [BEHIND] * 30)
    later = pd.date_range(end=START - HOUR, periods=7, freq="h")
    only = {"served": 0.6, "persistence": 0.3, "advection": 0.6}
    write_scores(service.root, PRODUCT, [verified(later, only, served="advection")])
    skill = update_skill(service.root, PRODUCT, SKILL)
    assert skill.until == START - HOUR
    assert skill.of(MODEL).behind.duration == 30 * HOUR, "no longer for that"
    feed(0, 1, 2)
    assert newest(service)[0]["model"] == MODEL
    assert "verified only up to 2024-05-31T21:00:00Z" in caplog.text


def test_where_advection_has_too_few_frames_the_model_forecasts(crown, tmp_path, build_archive):
    """Three of four frames missing is too much for advection, not for a model that bridges it."""
    archive = build_archive(tmp_path / "a.zarr", {3: np.ones((8, 8))}, slots=12)
    times = pd.date_range(end=archive.times[0], periods=30, freq="h")
    csi = {"served": BEHIND, "persistence": 0.3, "advection": 0.6}
    skill = recent_skill(verified(times, csi, served=MODEL), SKILL)
    with Nowcaster(str(tmp_path), "net", NowcastSettings(lead_time="10min")) as nowcaster:
        nowcaster.begin(skill)
        attrs = nowcaster.nowcast(archive, archive.times[3]).attrs
        assert (attrs["model"], attrs["quality"]) == (MODEL, "degraded")
        assert attrs["fallback_reason"] == ""
        with pytest.raises(TooFewFramesError):
            nowcaster.nowcast(archive, archive.times[8])


def test_a_damaged_file_never_stops_a_nowcast(feed, start, caplog):
    service = start()
    verify(service.root, START - HOUR, [BEHIND] * 30)
    storage.write_bytes(skill_url(service.root, PRODUCT), b'{"made": "2024')
    feed(0, 1, 2)
    attrs, _ = newest(service)
    assert (attrs["model"], attrs["quality"]) == (MODEL, "good")
    assert attrs["skill_note"] == "no verified forecasts known"
    assert "cannot be read" in caplog.text


def test_a_past_period_is_forecast_by_the_model_that_was_asked_for(feed, start):
    service = start()
    feed(0, 1, 2)
    list(run_round(service))
    verify(service.root, START - HOUR, [BEHIND] * 30)
    (made, _) = forecast_period(service, at(1), None)
    assert (made.model, made.quality) == (MODEL, "good")
