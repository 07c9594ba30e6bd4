"""Rounds of the service: what is to be done follows from what is there, and is done once."""

import itertools
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from models import rounds as rounds_module
from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import (
    NowcastReport,
    Service,
    forecast_period,
    publish_nowcast,
    rounds,
    run_round,
)
from pipelines import storage
from pipelines.archive import Archive
from pipelines.errors import ExistsError, NoFramesError, NotFoundError, TooFewFramesError
from pipelines.forecasts import folder_url, forecast_attributes, published
from pipelines.ingest import IngestSettings, ingest
from pipelines.once import LostClaimError
from pipelines.publishing import publish
from pipelines.window import window
from tests.pipelines.publishers import race

TIMESTEP = pd.Timedelta("5min")
START = pd.Timestamp("2024-06-01T05:00")
PRODUCT = "test"


def at(slot):
    return START + slot * TIMESTEP


class Feed:
    """A provider's folder to which frames are added, by slot."""

    def __init__(self, folder, send, grid):
        self.folder, self.send, self.grid = folder, send, grid

    def add(self, *slots, rain_rate=None, **options):
        for slot in slots:
            value = 1.0 + slot / 10 if rain_rate is None else rain_rate
            self.send(self.folder, at(slot), np.full(self.grid.shape, value), **options)

    def correct(self, slot):
        """A newer file of the same time, with other contents."""
        self.add(slot, rain_rate=9.0, name="_corrected", after="20min")


@pytest.fixture
def feed(tmp_path, send, grid):
    return Feed(tmp_path / "radar", send, grid)


def service_of(root, folder, nowcaster, **ingest_options):
    options = {"source": "odim", "location": str(folder), "timestep": "5min", "workers": 1}
    return Service(root, PRODUCT, IngestSettings(**options | ingest_options), nowcaster)


@pytest.fixture
def start(tmp_path, feed):
    """A service on the feed; its root is `tmp_path`/root."""

    def begin(model="advection", **settings):
        settings = NowcastSettings(
            **{"lead_time": "10min", "catch_up": "30min", "most_missing": 1} | settings
        )
        nowcaster = Nowcaster(str(tmp_path), model, settings)
        return service_of(str(tmp_path / "root"), feed.folder, nowcaster)

    return begin


def slots_of(outcomes, state="published"):
    return [int((one.init_time - START) / TIMESTEP) for one in outcomes if one.state == state]


def there(service):
    """The slots and revisions that are published."""
    found = published(service.root, service.product)
    return [(int((one.init_time - START) / TIMESTEP), one.revision) for one in found]


def contents(service):
    fs, path = storage.filesystem(folder_url(service.root, service.product))
    return {key: fs.cat_file(key) for key in fs.find(path)}


# What waits --------------------------------------------------------------------------------------


def test_the_newest_frame_comes_first_and_a_gap_is_filled_no_further_than_catch_up(feed, start):
    """30 minutes back from slot 19: slots 14 to 19, and nothing of the older ones."""
    feed.add(*range(20))
    service = start()
    outcomes = list(run_round(service))
    assert slots_of(outcomes) == [19, 18, 17, 16, 15, 14]
    assert [one.backfill for one in outcomes] == [False] + [True] * 5
    backfill = [forecast_attributes(one.url)["backfill"] for one in outcomes]
    assert backfill == [0, 1, 1, 1, 1, 1]
    assert len(Archive(service.archive_url).usable_times()) == 20
    latest = storage.read_json(f"{folder_url(service.root, PRODUCT)}/latest.json")
    assert latest["init_time"] == "2024-06-01T06:35:00Z"


def test_a_round_that_runs_again_does_nothing(feed, start):
    feed.add(*range(8))
    service = start()
    assert len(list(run_round(service))) == 6
    before = contents(service)
    assert list(run_round(service)) == []
    assert contents(service) == before


def test_a_new_frame_is_forecast_from_and_nothing_else_is_done(feed, start):
    feed.add(*range(8))
    service = start()
    list(run_round(service))
    before = contents(service)
    feed.add(8)
    (outcome,) = run_round(service)
    assert slots_of([outcome]) == [8]
    assert not outcome.backfill
    assert {key: contents(service)[key] for key in before if "latest" not in key} == {
        key: content for key, content in before.items() if "latest" not in key
    }


def test_a_round_that_was_cut_short_is_gone_on_with(feed, start):
    feed.add(*range(8))
    service = start()
    assert slots_of(itertools.islice(run_round(service), 2)) == [7, 6]
    assert slots_of(run_round(service)) == [5, 4, 3, 2]


def test_without_catching_up_there_is_a_forecast_of_the_newest_frame(feed, start):
    feed.add(*range(5))
    assert slots_of(run_round(start(catch_up="0min"))) == [4]


def test_a_gap_is_filled_for_half_a_timestep_but_the_newest_is_made(feed, start, monkeypatch):
    feed.add(*range(8))
    service = start()
    moments = itertools.count(
        0, 100
    )  # every look at the clock is 100 s later; half a timestep: 150 s

    class Clock:
        perf_counter = time.perf_counter

        @staticmethod
        def monotonic():
            return next(moments)

    monkeypatch.setattr(rounds_module, "time", Clock)
    assert slots_of(run_round(service)) == [7]
    assert slots_of(run_round(service)) == [6]


def test_history_is_not_forecast_from(feed, start):
    feed.add(*range(8))
    service = replace(start(), since=at(6))
    assert slots_of(run_round(service)) == [7, 6]


# Late and corrected frames -----------------------------------------------------------------------


def test_a_late_frame_has_exactly_its_own_and_the_bridged_forecasts_made(feed, start):
    """Advection needs three frames: slot 5 is part of the windows of 5, 6 and 7."""
    feed.add(3, 4, 6, 7, 8, 9)
    service = start()
    assert slots_of(run_round(service)) == [9, 8, 7, 6, 4]
    assert there(service) == [(4, 1), (6, 1), (7, 1), (8, 1), (9, 1)]
    degraded = {
        one.init_time for one in published(service.root, PRODUCT) if one.attributes["bridged_times"]
    }
    assert degraded == {at(4), at(6), at(7)}

    feed.add(5, after="30min")
    outcomes = list(run_round(service))
    assert slots_of(outcomes) == [7, 6, 5]
    assert [one.revision for one in outcomes] == [2, 2, 1]
    assert all(one.backfill for one in outcomes)
    revised = published(service.root, PRODUCT, at(6), at(6))
    assert revised[0].attributes["superseded_by"] == "20240601T0530Z.r2.zarr"
    assert revised[1].attributes["bridged_times"] == []
    assert revised[1].attributes["input_times"][1] == "2024-06-01T05:25:00Z"
    assert list(run_round(service)) == []


def test_a_corrected_frame_gives_revisions_of_exactly_the_forecasts_made_from_it(feed, start):
    feed.add(*range(10))
    service = start("persistence")  # two frames: slot 6 is part of the windows of 6 and 7
    assert slots_of(run_round(service)) == [9, 8, 7, 6, 5, 4]
    feed.correct(6)
    outcomes = list(run_round(service))
    assert [
        (slot, one.revision) for slot, one in zip(slots_of(outcomes), outcomes, strict=True)
    ] == [
        (7, 2),
        (6, 2),
    ]
    assert list(run_round(service)) == []
    revised = published(service.root, PRODUCT, at(6), at(6))[-1]
    archive = Archive(service.archive_url)
    assert revised.attributes["inputs_sha256"] == window(archive, at(6), 2).digest
    assert revised.attributes["input_sha256"][-1] == window(archive, at(6), 2).sha256(at(6))


def test_a_frame_later_than_catch_up_is_archived_and_supersedes_nothing(feed, start):
    feed.add(0, 1, *range(3, 12))
    service = start()
    list(run_round(service))
    before = contents(service)
    feed.add(2, after="60min")
    assert list(run_round(service)) == []
    assert at(2) in Archive(service.archive_url).usable_times()
    assert contents(service) == before


def test_a_forecast_is_made_again_where_a_frame_changes_meanwhile(feed, start, monkeypatch):
    feed.add(*range(5))
    service = start("persistence")
    ingest(service.archive_url, service.ingest)
    archive = Archive(service.archive_url)
    predict, calls = Nowcaster._predict, []

    def predict_as_a_correction_comes(self, forecaster, past, leads, budget):
        calls.append(float(past.frames[-1, 0, 0]))
        if len(calls) == 1:
            feed.correct(4)
            ingest(service.archive_url, service.ingest)
        return predict(self, forecaster, past, leads, budget)

    monkeypatch.setattr(Nowcaster, "_predict", predict_as_a_correction_comes)
    url = publish_nowcast(service.nowcaster, archive, service.root, PRODUCT, at(4))
    assert calls == [pytest.approx(1.4), pytest.approx(9.0)]
    digest = window(Archive(service.archive_url), at(4), 2).digest
    assert forecast_attributes(url)["inputs_sha256"] == digest
    assert there(service) == [(4, 1)]


# Refused -----------------------------------------------------------------------------------------


def test_what_is_refused_is_not_tried_again_until_something_comes(feed, start):
    """One frame is too few for advection, which needs two of three."""
    feed.add(5, 6)
    feed.add(9)
    service = start()
    outcomes = list(run_round(service))
    assert slots_of(outcomes, "refused") == [9]
    assert slots_of(outcomes) == [6]
    assert isinstance(outcomes[0].error, TooFewFramesError)
    assert list(run_round(service)) == []
    feed.add(8, after="20min")
    assert slots_of(run_round(service)) == [9, 8]


def test_what_another_has_published_meanwhile_is_said_to_exist(feed, start):
    feed.add(*range(4))
    service = start("persistence", catch_up="5min")

    def make_second(nowcaster, archive, root, product, init_time, **options):
        publish_nowcast(nowcaster, archive, root, product, init_time, **options)
        return publish_nowcast(nowcaster, archive, root, product, init_time, **options)

    (outcome,) = run_round(replace(service, make=make_second))
    assert outcome.state == "exists"
    assert isinstance(outcome.error, ExistsError)
    assert there(service) == [(3, 1)]


def test_a_publisher_that_was_taken_over_has_lost_nothing(feed, start):
    feed.add(*range(4))

    def lose(*_, **__):
        raise LostClaimError("taken over", found="another", expected="one", remedy="nothing")

    (outcome,) = run_round(replace(start(catch_up="5min"), make=lose))
    assert outcome.state == "exists"


def test_a_forecast_that_cannot_be_any_newer_is_not_made_over_and_over(feed, start):
    """Another model's forecast counts and is out of date; that of ours would be the same again."""
    feed.add(*range(6))
    service = start("persistence", catch_up="5min")
    assert slots_of(run_round(service)) == [5]
    with Nowcaster("none", "advection", service.nowcaster.settings) as other:
        forecast = other.nowcast(Archive(service.archive_url), at(5))
        publish(service.root, PRODUCT, forecast)
    feed.correct(3)  # part of advection's window, not of persistence's
    assert [one.state for one in run_round(service)] == ["exists"]
    assert list(run_round(service)) == []
    assert there(service) == [(5, 1), (5, 2)]


# Trouble while taking in -------------------------------------------------------------------------


def test_trouble_while_taking_in_hinders_no_forecast_and_is_raised_after(feed, start):
    feed.add(*range(4))
    service = start()
    ingest(service.archive_url, service.ingest)
    feed.add(4)

    def fail(*_, **__):
        raise OSError("the disk is full")

    outcomes = run_round(replace(service, take_in=fail))
    assert slots_of(itertools.islice(outcomes, 3)) == [3, 2, 1]
    with pytest.raises(OSError, match="the disk is full"):
        next(outcomes)
    assert there(service) == [(1, 1), (2, 1), (3, 1)]
    assert slots_of(run_round(service)) == [4]


def test_a_location_that_cannot_be_listed_hinders_no_forecast(feed, start):
    feed.add(*range(4))
    service = start()
    ingest(service.archive_url, service.ingest)
    nowhere = replace(service, ingest=service.ingest.model_copy(update={"location": "s3x://no"}))
    outcomes = run_round(nowhere)
    assert slots_of(itertools.islice(outcomes, 3)) == [3, 2, 1]
    with pytest.raises(ValueError, match="s3x"):
        next(outcomes)


def test_an_empty_location_is_no_trouble_where_there_is_an_archive(feed, start):
    feed.add(*range(4))
    service = start()
    ingest(service.archive_url, service.ingest)
    for path in feed.folder.iterdir():
        path.unlink()
    assert slots_of(run_round(service)) == [3, 2, 1]
    assert list(run_round(service)) == []


def test_without_an_archive_and_without_frames_there_is_an_error(feed, start):
    feed.folder.mkdir()
    with pytest.raises(NoFramesError, match="no odim frames"):
        list(run_round(start()))
    service = start()
    nowhere = replace(service, ingest=service.ingest.model_copy(update={"location": None}))
    with pytest.raises(NotFoundError, match="archive"):
        list(run_round(nowhere))


def test_a_broken_file_hinders_no_forecast(feed, start):
    feed.add(*range(4))
    feed.add(4, keep=0.5)
    assert slots_of(run_round(start())) == [3, 2, 1]


# Going on ----------------------------------------------------------------------------------------


def test_it_goes_on_looking_for_as_long_as_it_is_told_to(feed, start):
    feed.add(*range(4))
    service = start(watch_for="2s", poll="100ms", catch_up="5min")
    began = time.monotonic()
    outcomes = []
    for outcome in rounds(service):
        outcomes.append(outcome)
        if len(outcomes) < 3:
            feed.add(3 + len(outcomes))
    assert slots_of(outcomes) == [3, 4, 5]
    assert 1.5 < time.monotonic() - began < 20


def test_it_looks_once_by_default(feed, start):
    feed.add(*range(4))
    outcomes = []
    for outcome in rounds(start(catch_up="5min")):
        outcomes.append(outcome)
        feed.add(4)
    assert slots_of(outcomes) == [3]


def test_a_period_is_forecast_from_the_oldest_on_and_what_is_there_stays(feed, start):
    feed.add(*range(12))
    service = start("persistence", catch_up="5min")
    assert slots_of(run_round(service)) == [11]
    outcomes = list(forecast_period(service, at(8), None))
    assert slots_of(outcomes) == [8, 9, 10]
    assert slots_of(outcomes, "exists") == [11]
    assert all(one.backfill for one in outcomes)
    assert there(service) == [(8, 1), (9, 1), (10, 1), (11, 1)]


def test_the_report_says_what_became_of_each(feed, start):
    feed.add(5, 6, 9)
    report = NowcastReport(list(run_round(start())))
    assert report.newest.init_time == at(6)
    assert list(report.skipped) == ["2024-06-01T05:45:00Z"]
    assert str(report).splitlines()[0] == "1 published, 1 skipped"
    assert "too few past frames" in str(report)
    assert "20240601T0530Z.zarr, degraded" in str(report)


# Races -------------------------------------------------------------------------------------------


def one_round(root, folder, model):
    """A whole service for a round, in a process of its own; the slots it published."""
    settings = NowcastSettings(lead_time="10min", catch_up="30min", most_missing=1)
    with Nowcaster(root, model, settings) as nowcaster:
        return slots_of(run_round(service_of(root, folder, nowcaster)))


@pytest.mark.slow
@pytest.mark.parametrize("services", [2, 4])
def test_rounds_that_race_publish_each_forecast_once(feed, start, services):
    feed.add(*range(8))
    service = start("persistence")
    work = partial(one_round, service.root, str(feed.folder), "persistence")
    made = race([work] * services)
    assert sorted(itertools.chain.from_iterable(made)) == [2, 3, 4, 5, 6, 7]
    assert there(service) == [(slot, 1) for slot in range(2, 8)]
    assert list(run_round(service)) == []
    feed.correct(6)
    made = race([work] * services)
    assert sorted(itertools.chain.from_iterable(made)) == [6, 7]
    assert there(service)[-4:] == [(6, 1), (6, 2), (7, 1), (7, 2)]
