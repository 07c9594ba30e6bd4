"""Shadow forecasts: the same frames, in turns, in their time, and no harm to what serves."""

import datetime as dt
import time

import numpy as np
import pandas as pd
import pytest
import torch

from models import nowcasting
from models.nowcasting import Nowcaster, NowcastSettings
from models.registry import champion, promote, save_model
from models.rounds import Service, forecast_period, publish_nowcast, run_round
from models.shadowing import Shadows, ShadowSettings
from models.training import NetworkSettings, TrainSettings
from pipelines.archive import Status
from pipelines.forecasts import forecast_attributes, forecast_url, is_published, open_forecast
from pipelines.ingest import IngestSettings
from pipelines.shadows import shadow_forecasters, shadow_root
from pipelines.skill import SkillSettings, recent_skill
from pipelines.units import pack
from tests.verified import verified

from . import wayward

PRODUCT = "test"
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
    assert service.shadows.done == {"made": 2}
    again = service_of(root, challengers=())
    list(run_round(again))
    assert again.shadows.done == {}


def test_a_frame_that_came_after_the_served_forecast_is_not_used(root, archive, grid):
    late, init_time = archive.times[10], archive.times[11]
    archive.commit([], {late: Status.MISSING})
    service = service_of(root, challengers=(), baselines=("sprog",))
    publish_nowcast(service.nowcaster, archive, root, PRODUCT, init_time)
    archive.write_frame(late, pack(np.full(grid.shape, 50.0))[0])
    archive.commit([], {late: Status.LATE})
    service.shadows.follow(root, PRODUCT, archive, [init_time])
    close(service)
    shadow = shadow_of(root, "sprog", init_time)
    served = forecast_attributes(forecast_url(root, PRODUCT, init_time))
    assert shadow.attrs["input_times"] == served["input_times"]
    assert shadow.attrs["inputs_sha256"] == served["inputs_sha256"]
    assert len(shadow.attrs["bridged_times"]) == 1
    assert float(shadow["rain_rate"].max()) < 10


def test_all_get_their_turn_where_there_is_time_for_one(root, archive, monkeypatch):
    names = ("persistence", "anvil", "linda")
    service = service_of(root, challengers=(), baselines=names)
    turns = []
    monkeypatch.setattr(
        Shadows, "_make", lambda self, *args: turns.append(args[3]) or time.sleep(1.1)
    )
    service.shadows.settings = service.shadows.settings.model_copy(
        update={"time_budget": dt.timedelta(seconds=1)}
    )
    for slot in (6, 7, 8, 9):
        publish_nowcast(service.nowcaster, archive, root, PRODUCT, archive.times[slot])
        service.shadows.follow(root, PRODUCT, archive, [archive.times[slot]])
    assert turns[:3] == ["persistence", "anvil", "linda"]
    assert turns[3] == "persistence"
    assert service.shadows.done["out of time"] == 8


def test_a_baseline_that_fails_has_none_and_the_others_have(root, archive, monkeypatch):
    service = service_of(root, challengers=("net/none",), baselines=("persistence",))
    init_time = next(iter([one.init_time for one in run_round(service)]))
    assert has_shadow(root, "persistence", init_time)
    assert not has_shadow(root, "net/none", init_time)
    assert service.shadows.done == {"made": 2, "failed": 2}


def test_nobody_where_it_is_switched_off(root, archive):
    service = service_of(root, enabled=False)
    list(run_round(service))
    assert shadow_forecasters(root) == []


def test_a_past_period_is_followed_without_hurry(root, archive):
    service = service_of(root, challengers=(), time_budget=dt.timedelta(0))
    times = archive.times[5], archive.times[8]
    made = list(forecast_period(service, *times))
    assert len(made) == 4
    assert all(has_shadow(root, "persistence", one.init_time) for one in made)
    assert service.shadows.done == {"made": 4}


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
def test_a_champion_that_does_not_serve_forecasts_in_shadow(root, archive, two_versions):
    first, _ = two_versions
    service = service_of(root, "net", challengers=())
    init_time = archive.times[11]
    hours = pd.date_range(end=init_time.floor("h"), periods=30, freq="h")
    csi = {"served": 0.1, "persistence": 0.1, "advection": 0.6}
    service.nowcaster.begin(recent_skill(verified(hours, csi, served=first), SkillSettings()))
    url = publish_nowcast(service.nowcaster, archive, root, PRODUCT, init_time)
    assert forecast_attributes(url)["model"] == "advection"
    service.shadows.follow(root, PRODUCT, archive, [init_time], hurried=False)
    close(service)
    assert shadow_of(root, first, init_time).attrs["model"] == first


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
    assert service.shadows.done["failed"] >= 1
    close(service)
    assert champion(root, "net") == two_versions[0].partition("/")[2]
