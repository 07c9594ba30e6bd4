"""Shadow forecasts: the same frames, in turns, in their time, and no harm to what serves."""

import datetime as dt
import time
from functools import partial

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from models import nowcasting, shadowing
from models import rounds as rounds_module
from models.nowcasting import Nowcaster, NowcastSettings
from models.registry import champion, promote, save_model
from models.rounds import Service, forecast_period, publish_nowcast, run_round
from models.shadowing import Shadows, ShadowSettings
from models.training import NetworkSettings, TrainSettings
from pipelines.archive import Archive, Status, archive_url
from pipelines.errors import ExistsError
from pipelines.forecasts import (
    forecast_attributes,
    forecast_url,
    is_published,
    open_forecast,
    published,
)
from pipelines.ingest import IngestSettings, ingest
from pipelines.publishing import publish
from pipelines.shadows import read_turns, shadow_forecasters, shadow_root
from pipelines.skill import SkillSettings, recent_skill
from pipelines.times import clock_set_to, time_text
from pipelines.units import pack
from tests.pipelines.publishers import race
from tests.verified import verified

from . import wayward

PRODUCT = "test"
START = pd.Timestamp("2024-06-01T05:00")
TIMESTEP = pd.Timedelta("5min")
SETTINGS = NowcastSettings(lead_time="15min", catch_up="10min")
NETWORK = TrainSettings(network=NetworkSettings(hidden_channels=(4,), patch_size=4))


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


@pytest.fixture
def archive(tmp_path, build_archive, grid):
    """Twelve frames of rain that grows."""
    fields = {slot: np.full(grid.shape, 1.0 + slot / 10) for slot in range(12)}
    return build_archive(tmp_path / "archive" / f"{PRODUCT}.zarr", fields)


def register(root, seed):
    """A version of the model ``net``: its id."""
    torch.manual_seed(seed)
    known = {"past_frames": 3, "timestep": pd.Timedelta("5min"), "archive": {}, "metrics": {}}
    weights = NETWORK.build_network().state_dict()
    return f"net/{save_model(root, 'net', weights, NETWORK, **known)}"


def service_of(root, model="advection", nowcast=SETTINGS, **shadow):
    nowcaster = Nowcaster(root, model, nowcast)
    shadows = Shadows(root, nowcaster, ShadowSettings(**{"baselines": ("persistence",)} | shadow))
    return Service(root, PRODUCT, IngestSettings(location=None), nowcaster, shadows=shadows)


def close(service):
    service.shadows.close()
    service.nowcaster.close()


def shadow_of(root, name, init_time):
    return open_forecast(shadow_root(root, name), PRODUCT, init_time)


def has_shadow(root, name, init_time):
    return is_published(shadow_root(root, name), PRODUCT, init_time)


@pytest.mark.slow
def test_what_was_served_is_followed_by_the_others_from_the_same_frames(root, archive):
    service = service_of(root, baselines=("persistence", "advection", "sprog"), challengers=())
    published = [one.init_time for one in run_round(service) if one.state == "published"]
    close(service)
    assert shadow_forecasters(root) == ["persistence", "sprog"], "advection is what is served"
    assert len(published) == 2
    for init_time in published:
        served = forecast_attributes(forecast_url(root, PRODUCT, init_time))
        for name in ("persistence", "sprog"):
            shadow = shadow_of(root, name, init_time)
            assert set(shadow.data_vars) == {"rain_rate"}
            assert shadow.attrs["model"] == shadow.attrs["requested_model"] == name
            assert set(shadow.attrs["input_times"]) <= set(served["input_times"])
            assert shadow.sizes["lead_time"] == 3


def test_a_round_again_makes_none_again(root, archive):
    service = service_of(root, challengers=())
    list(run_round(service))
    list(run_round(service))
    assert service.shadows.counts() == {"made": 2}
    again = service_of(root, challengers=())
    list(run_round(again))
    assert again.shadows.counts() == {}


def serve(service, archive, *slots):
    for slot in slots:
        place = service.root, PRODUCT, archive.times[slot]
        publish_nowcast(service.nowcaster, archive, *place)


def follow(service, archive, slot, **options):
    """Shadow forecasts from a slot on; how many seconds it took."""
    began = time.monotonic()
    start = archive.times[slot]
    service.shadows.follow(service.root, PRODUCT, archive, start, **{"began": began} | options)
    return time.monotonic() - began


# The same frames ---------------------------------------------------------------------------------


@pytest.fixture
def shadow_after_a_late_frame(root, archive, grid):
    """A shadow forecast, and what was served before the frame at slot 10 came."""
    late, init_time = archive.times[10], archive.times[11]

    def follow_late(served, name):
        archive.commit([], {late: Status.MISSING})
        service = service_of(root, served, challengers=(), baselines=(name,))
        serve(service, archive, 11)
        archive.write_frame(late, pack(np.full(grid.shape, 50.0))[0])
        archive.commit([], {late: Status.LATE})
        follow(service, archive, 11)
        close(service)
        shadow = shadow_of(root, name, init_time)
        assert float(shadow["rain_rate"].max()) < 10
        assert shadow.attrs["bridged_times"] == [time_text(late)]
        return shadow.attrs, forecast_attributes(forecast_url(root, PRODUCT, init_time))

    return follow_late


def test_a_frame_that_came_after_the_served_forecast_is_not_used(shadow_after_a_late_frame):
    """Persistence, which served, has two frames, advection three."""
    shadow, served = shadow_after_a_late_frame("persistence", "advection")
    assert shadow["input_times"][1:] == served["input_times"]
    assert len(shadow["input_times"]) == 2


@pytest.mark.slow
def test_with_as_many_frames_the_inputs_are_the_same(shadow_after_a_late_frame):
    shadow, served = shadow_after_a_late_frame("advection", "sprog")
    assert shadow["input_times"] == served["input_times"]
    assert shadow["inputs_sha256"] == served["inputs_sha256"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_where_a_frame_was_corrected_there_is_no_fair_comparison(
    root, tmp_path, send, grid, monkeypatch, when
):
    """The served forecast had another frame: bridging it would be a handicap for the others."""

    def take_in(value, **options):
        send(tmp_path / "radar", START, np.full(grid.shape, value), **options)
        ingest(archive_url(root, PRODUCT), settings)

    settings = IngestSettings(
        source="odim", location=str(tmp_path / "radar"), timestep="5min", workers=1
    )
    for slot in (-2, -1):
        send(tmp_path / "radar", START + slot * TIMESTEP, np.full(grid.shape, 1.0))
    take_in(1.5)
    archive = Archive(archive_url(root, PRODUCT))
    service = service_of(root, challengers=())
    publish_nowcast(service.nowcaster, archive, root, PRODUCT, START)
    alone = Nowcaster.alone

    def correct():
        take_in(9.0, name="_corrected", after="20min")

    def corrected_meanwhile(self, *args, **options):
        correct()
        return alone(self, *args, **options)

    if when == "before":
        correct()
    else:
        monkeypatch.setattr(Nowcaster, "alone", corrected_meanwhile)
    service.shadows.follow(root, PRODUCT, archive, START, began=time.monotonic())
    assert not has_shadow(root, "persistence", START)
    assert service.shadows.counts() == {"failed": 1}


def test_it_says_when_its_served_forecast_was_made_after_its_time(root, archive):
    service = service_of(root, challengers=())
    list(run_round(service))
    told = [shadow_of(root, "persistence", archive.times[n]).attrs["backfill"] for n in (11, 10)]
    assert told == [0, 1]


# In their time -----------------------------------------------------------------------------------


class Slow:
    """In place of what a forecaster does: takes its time, and notes whose turn it was."""

    def __init__(self, monkeypatch, seconds):
        self.turns = []

        def make(shadows, root, product, archive, name, served, budget):
            self.turns.append(name)
            time.sleep(seconds)

        monkeypatch.setattr(Shadows, "_make", make)


def test_all_get_their_turn_where_there_is_time_for_one_whatever_process_goes_on(
    root, archive, monkeypatch
):
    slow = Slow(monkeypatch, 0.3)
    names = ("persistence", "anvil", "linda")
    for slot in (6, 7, 8, 9):  # each round by a service of its own, as a schedule starts them
        service = service_of(root, challengers=(), baselines=names, time_budget="200ms")
        serve(service, archive, slot)
        follow(service, archive, slot)
        assert service.shadows.counts() == {"out of time": 2}
    assert slow.turns == ["persistence", "anvil", "linda", "persistence"]
    assert set(read_turns(root, PRODUCT)) == set(names)


def test_the_budget_is_of_a_frame_over_however_many_rounds(root, archive, monkeypatch):
    slow = Slow(monkeypatch, 0.3)
    names = ("persistence", "anvil", "linda")
    service = service_of(root, challengers=(), baselines=names, time_budget="500ms")
    serve(service, archive, 6)
    for _ in range(3):
        follow(service, archive, 6)
    assert slow.turns == ["persistence", "anvil"]
    serve(service, archive, 7)
    follow(service, archive, 7)
    assert slow.turns[2:] == ["linda", "persistence"]


@pytest.mark.parametrize("overdue", ["3min", "4min45s", "5min", "9min"])
def test_they_end_before_the_next_frame_is_due(root, archive, monkeypatch, overdue):
    """Frames take a minute to arrive; a tenth of a timestep, 30 s, before the next is the end."""
    slow = Slow(monkeypatch, 0.0)
    service = service_of(root, challengers=())
    received = [time_text(archive.times[slot] + pd.Timedelta("1min")) for slot in (6, 7)]
    for slot, text in zip((6, 7), received, strict=True):
        forecast = service.nowcaster.nowcast(archive, archive.times[slot])
        publish(root, PRODUCT, forecast.assign_attrs(frame_received_time=text))
    with clock_set_to(archive.times[7] + pd.Timedelta("1min") + pd.Timedelta(overdue)):
        follow(service, archive, 6)
    in_time = overdue == "3min"
    assert slow.turns == ["persistence"] * 2 * in_time
    assert service.shadows.counts() == ({} if in_time else {"out of time": 2})
    with clock_set_to(archive.times[7] + pd.Timedelta("1h")):  # nothing is due: the feed is down
        follow(service, archive, 6)
    assert len(slow.turns) == 2 + 2 * in_time


def test_a_round_that_took_long_leaves_them_less_time(root, archive, monkeypatch):
    slow = Slow(monkeypatch, 0.0)
    service = service_of(root, challengers=())
    serve(service, archive, 6)
    follow(service, archive, 6, began=time.monotonic() - 0.9 * TIMESTEP.total_seconds())
    assert slow.turns == []


def test_a_service_that_watches_ends_in_its_time(root, archive, monkeypatch):
    """The next run is due then."""
    Slow(monkeypatch, 0.4)
    names = ("persistence", "anvil", "linda", "steps", "sprog")
    nowcast = SETTINGS.model_copy(update={"watch_for": dt.timedelta(seconds=1)})
    service = service_of(root, nowcast=nowcast, challengers=(), baselines=names)
    ends = []
    run_round = rounds_module.run_round

    def noted(*args, shadows_until, **options):
        ends.append(shadows_until)
        return run_round(*args, shadows_until=shadows_until, **options)

    monkeypatch.setattr(rounds_module, "run_round", noted)
    list(rounds_module.rounds(service))
    assert 0 <= time.monotonic() - ends[0] < 0.4 + 0.4
    assert service.shadows.waiting


# Trouble -----------------------------------------------------------------------------------------


def test_one_that_cannot_be_used_has_none_and_the_others_have(root, archive):
    service = service_of(root, challengers=("net/none",), baselines=("persistence",))
    for init_time in [one.init_time for one in run_round(service)]:
        assert has_shadow(root, "persistence", init_time)
        assert not has_shadow(root, "net/none", init_time)
    assert service.shadows.counts() == {"made": 2, "failed": 1}, "it is asked once in a round"


def test_a_product_without_a_model_has_no_champion_in_shadow(root, archive):
    service = service_of(root, "net", challengers=())
    list(run_round(service))
    assert service.shadows.counts() == {"made": 2}
    assert shadow_forecasters(root) == ["persistence"]


def test_storage_that_fails_hinders_no_round(root, archive, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(shadowing, "read_turns", fail)
    service = service_of(root, challengers=())
    assert [one.state for one in run_round(service)] == ["published"] * 2
    assert shadow_forecasters(root) == []


def test_nobody_where_it_is_switched_off(root, archive):
    service = service_of(root, enabled=False)
    list(run_round(service))
    list(forecast_period(service, *archive.times[[5, 6]]))
    assert shadow_forecasters(root) == []


def test_no_more_than_two_have_processes_at_a_time(root, archive, monkeypatch):
    alive, most = [], []

    class Recorded(Nowcaster):
        def __init__(self, root, model, settings):
            super().__init__(root, "persistence", settings)
            self.called = model
            alive.append(model)

        def close(self):
            super().close()
            if getattr(self, "called", None) in alive:
                alive.remove(self.called)

    service = service_of(root, challengers=())
    monkeypatch.setattr(shadowing, "Nowcaster", Recorded)
    for name in ("persistence", "sprog", "anvil", "advection", "linda", "sprog", "linda"):
        service.shadows._forecaster(name)
        most.append(sum(one not in shadowing.IN_PROCESS for one in alive))
    assert most == [0, 1, 2, 2, 2, 2, 2]
    assert set(alive) == {"persistence", "advection", "sprog", "linda"}
    service.shadows.close()
    assert alive == []


# Once --------------------------------------------------------------------------------------------


def test_of_an_init_time_there_is_one_whatever_inputs_another_process_had(root, archive):
    service = service_of(root, challengers=())
    serve(service, archive, 6)
    follow(service, archive, 6)
    place = shadow_root(root, "persistence")
    forecast = shadow_of(root, "persistence", archive.times[6]).load().drop_encoding()
    with pytest.raises(ExistsError):
        publish(place, PRODUCT, forecast.assign_attrs(inputs_sha256="other"), once=True)
    assert len(published(place, PRODUCT)) == 1


def follow_all(root):
    """In a process of its own: all that is lacking; how many it made."""
    service = service_of(root, challengers=())
    archive = Archive(archive_url(root, PRODUCT))
    service.shadows.follow_period(root, PRODUCT, archive, archive.times[4:10])
    return service.shadows.counts().get("made", 0)


@pytest.mark.slow
def test_processes_that_race_make_each_once(root, archive):
    serve(service_of(root), archive, *range(4, 10))
    made = race([partial(follow_all, root)] * 3)
    assert sum(made) == 6
    there = published(shadow_root(root, "persistence"), PRODUCT)
    assert [(one.init_time, one.revision) for one in there] == [
        (time, 1) for time in archive.times[4:10]
    ]


# A past period -----------------------------------------------------------------------------------


def test_a_past_period_is_followed_without_hurry_a_forecaster_at_a_time(
    root, archive, monkeypatch, capsys
):
    order = []
    make = Shadows._make

    def noted(self, root, product, archive, name, served, budget):
        order.append(name)
        make(self, root, product, archive, name, served, budget)

    monkeypatch.setattr(Shadows, "_make", noted)
    names = ("persistence", "advection")
    service = service_of(root, "persistence", challengers=(), baselines=names, time_budget="0s")
    made = list(forecast_period(service, archive.times[5], archive.times[8], progress=True))
    assert len(made) == 4
    assert order == ["advection"] * 4
    assert all(has_shadow(root, "advection", one.init_time) for one in made)
    assert service.shadows.counts() == {"made": 4}
    assert "shadows" in capsys.readouterr().err
    list(forecast_period(service_of(root, challengers=()), *archive.times[[5, 8]]))
    assert not has_shadow(root, "persistence", archive.times[5]), "it is what was served"


# Champion and challengers ------------------------------------------------------------------------


@pytest.fixture
def two_versions(root):
    first, second = register(root, 0), register(root, 1)
    promote(root, "net", first.partition("/")[2])
    return first, second


@pytest.mark.slow
def test_every_version_newer_than_the_champion_is_a_challenger(root, archive, two_versions):
    first, second = two_versions
    service = service_of(root, "net", time_budget="10min")
    list(forecast_period(service, archive.times[11], None))
    close(service)
    init_time = archive.times[11]
    assert forecast_attributes(forecast_url(root, PRODUCT, init_time))["model"] == first
    assert shadow_forecasters(root) == [second, "persistence"]
    assert shadow_of(root, second, init_time).attrs["model"] == second


@pytest.mark.slow
def test_a_challenger_stays_loaded_from_round_to_round(root, archive, two_versions):
    _, second = two_versions
    service = service_of(root, challengers=(second,), baselines=())
    pids = []
    for slot in (9, 10):
        serve(service, archive, slot)
        follow(service, archive, slot)
        pids.append(service.shadows._forecaster(second)._forecaster.about.pid)
        assert has_shadow(root, second, archive.times[slot])
    assert pids[0] == pids[1]
    close(service)
    assert not psutil.pid_exists(pids[0])


@pytest.mark.slow
def test_a_champion_that_does_not_serve_forecasts_in_shadow(root, archive, two_versions):
    first, _ = two_versions
    service = service_of(root, "net", challengers=())
    init_time = archive.times[11]
    hours = pd.date_range(end=init_time.floor("h"), periods=30, freq="h")
    csi = {"served": 0.1, "persistence": 0.1, "advection": 0.6}
    service.nowcaster.begin(recent_skill(verified(hours, csi, served=first), SkillSettings()))
    url = publish_nowcast(service.nowcaster, archive, root, PRODUCT, init_time)
    assert forecast_attributes(url)["model"] == "advection"
    served = service.nowcaster._forecaster._child.process.pid
    service.shadows.follow_period(root, PRODUCT, archive, [init_time])
    assert service.nowcaster._forecaster._child.process.pid == served, "that which serves lives on"
    close(service)
    shadow = shadow_of(root, first, init_time)
    assert shadow.attrs["model"] == first
    assert set(shadow.data_vars) == {"rain_rate"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "budget_s"), [(wayward.HANG, 9), (wayward.KILLED, 60), (wayward.UNKNOWN, 60)]
)
def test_a_wayward_challenger_harms_nobody(
    root, tmp_path, build_archive, grid, monkeypatch, two_versions, code, budget_s
):
    fields = {slot: np.full(grid.shape, 1.0 + slot / 10) for slot in range(12)}
    for field in fields.values():
        field[0, 0] = wayward.WELL
    fields[11][0, 0] = code
    archive = build_archive(tmp_path / "archive" / f"{PRODUCT}.zarr", fields)
    monkeypatch.setattr(nowcasting, "serving_forecaster", wayward.serving)
    service = service_of(root, challengers=(two_versions[1],), time_budget=f"{budget_s}s")
    nowcaster = service.shadows._forecaster(two_versions[1])
    assert nowcaster._forecaster.about.name == "wayward"  # it has loaded
    outcomes = list(run_round(service))
    assert [one.state for one in outcomes] == ["published"] * 2
    newest, before = archive.times[11], archive.times[10]
    assert has_shadow(root, "persistence", newest)
    assert not has_shadow(root, two_versions[1], newest)
    if code == wayward.UNKNOWN:
        assert shadow_of(root, two_versions[1], before).attrs["model"] == "wayward"
    assert service.shadows.done["failed"] == 1
    fields[11][0, 0] = wayward.WELL
    archive.write_frame(archive.times[12], pack(fields[11])[0])
    archive.commit([], {archive.times[12]: Status.OK})
    began = time.monotonic()
    next_round = run_round(service)
    (served,) = [next(next_round)]
    assert served.init_time == archive.times[12]
    assert served.state == "published"
    assert time.monotonic() - began < 5
    next_round.close()
    if code != wayward.UNKNOWN:  # lost: not asked again in this round, nor may it have taken longer
        assert not has_shadow(root, two_versions[1], before)
    close(service)
    assert champion(root, "net") == two_versions[0].partition("/")[2]
