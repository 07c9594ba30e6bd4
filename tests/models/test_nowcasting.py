"""A nowcast for every init_time, whatever happens to the model, and it says how it was made."""

import shutil
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr

from models import nowcasting
from models.baselines import Advection
from models.card import WEIGHTS
from models.nowcasting import NO_WEIGHTS, Nowcaster, NowcastSettings, pinned, told
from models.past import read_past
from models.registry import champion
from pipelines.errors import SquallError, TooFewFramesError
from pipelines.forecasts import open_forecast
from pipelines.manifest import frame_rows
from pipelines.publishing import publish
from pipelines.times import utc
from pipelines.window import window

from . import wayward

TIMESTEP = pd.Timedelta("5min")
START = pd.Timestamp("2024-06-01T00:00")
SETTINGS = NowcastSettings(lead_time="15min")
BUDGET_S = 3.0
CONTRACT = {
    "model": str,
    "model_sha256": str,
    "requested_model": str,
    "quality": str,
    "quality_note": str,
    "fallback_reason": str,
    "input_times": list,
    "input_sha256": list,
    "input_age_seconds": list,
    "bridged_times": list,
    "input_window": int,
    "inputs_sha256": str,
    "frame_received_time": str,
    "radar_age_seconds": float,
    "device": str,
    "seconds_ingest": float,
    "seconds_read": float,
    "seconds_predict": float,
    "seconds_products": float,
    "backfill": int,
    "recent_skill_score": str,
    "recent_skill_lead_seconds": list,
    "recent_skill": list,
    "recent_skill_persistence": list,
    "recent_skill_advection": list,
    "recent_skill_forecasts": int,
    "recent_skill_since": str,
    "recent_skill_until": str,
    "trust_horizon_seconds": list,
    "trust_horizon_interval_seconds": list,
    "trust_horizon_reached": int,
    "skill_note": str,
}
AT_THE_END = {"revision": int, "publish_time": str, "seconds_publish": float}


@pytest.fixture(scope="module")
def rainy(grid):
    """A field per slot number: rain that grows to the right, and a little each slot."""
    return {
        slot: 1.0 + slot / 10 + np.arange(grid.shape[1]) * np.ones(grid.shape) for slot in range(12)
    }


@pytest.fixture(scope="module")
def rainy_archive(tmp_path_factory, build_archive, rainy):
    return build_archive(tmp_path_factory.mktemp("rainy") / "a.zarr", rainy)


@pytest.fixture(params=["persistence", "advection"])
def nowcaster(request, tmp_path):
    with Nowcaster(str(tmp_path), request.param, SETTINGS) as nowcaster:
        yield nowcaster


def advection(root, settings=SETTINGS):
    return Nowcaster(root, "advection", settings)


def without(fields, *slots):
    return {slot: field for slot, field in fields.items() if slot not in slots}


def assert_fallback(forecast, archive, reason, model="net"):
    """It is what advection makes of the frames, and says why."""
    init_time = pd.Timestamp(forecast["init_time"].item())
    leads = pd.TimedeltaIndex(forecast["lead_time"].values)
    expected = Advection().predict(read_past(archive, init_time, 3, 1).frames, leads)
    np.testing.assert_array_equal(forecast["rain_rate"], expected)
    assert forecast.attrs["model"] == "advection"
    assert forecast.attrs["model_sha256"] == NO_WEIGHTS
    assert forecast.attrs["requested_model"].partition("/")[0] == model
    assert forecast.attrs["quality"] == "fallback"
    assert forecast.attrs["quality_note"].startswith("by advection instead")
    assert reason in forecast.attrs["fallback_reason"]
    assert "\n" not in forecast.attrs["fallback_reason"]


def assert_good(forecast, model):
    assert forecast.attrs["model"] == model
    assert (forecast.attrs["quality"], forecast.attrs["fallback_reason"]) == ("good", "")


# How it is made ----------------------------------------------------------------------------------


def test_a_nowcast_says_how_it_was_made(archive, root):
    times = archive.usable_times()
    init_time = next(time for time in times[10:] if time - TIMESTEP in times)
    with Nowcaster(root, "persistence", SETTINGS) as nowcaster:
        forecast = nowcaster.nowcast(archive, init_time, seconds_ingest=1.25)
    attrs = forecast.attrs
    assert {name: type(attrs[name]) for name in CONTRACT} == CONTRACT
    assert_good(forecast, "persistence")
    assert attrs["requested_model"] == "persistence"
    assert attrs["input_times"] == [
        f"{time.isoformat()}Z" for time in (init_time - TIMESTEP, init_time)
    ]
    rows = frame_rows(archive.url)
    assert attrs["input_sha256"] == [rows[time].sha256 for time in attrs["input_times"]]
    assert attrs["inputs_sha256"] == window(archive, init_time, 2).digest
    assert attrs["input_window"] == 2
    assert utc(attrs["frame_received_time"]) == utc(rows[attrs["input_times"][-1]].received)
    age = (pd.Timestamp.now("UTC").tz_localize(None) - init_time).total_seconds()
    assert attrs["radar_age_seconds"] == pytest.approx(age, abs=60)
    assert attrs["input_age_seconds"] == pytest.approx([age + 300, age], abs=60)
    assert (attrs["seconds_ingest"], attrs["backfill"], attrs["bridged_times"]) == (1.25, 0, [])
    assert list(forecast["lead_time"].values) == [TIMESTEP, 2 * TIMESTEP, 3 * TIMESTEP]


@pytest.mark.parametrize("model", ["persistence", "net"])
def test_what_is_published_has_the_whole_contract_and_goes_into_netcdf(tmp_path, archive, model):
    """Good, and a fallback with frames bridged; lists that are empty, and of one."""
    init_time = archive.usable_times()[10]
    with Nowcaster(str(tmp_path), model, SETTINGS) as nowcaster:
        forecast = nowcaster.nowcast(archive, init_time, backfill=True)
    publish(str(tmp_path), "test", forecast)
    opened = open_forecast(str(tmp_path), "test", init_time).load()
    assert opened.attrs.items() >= forecast.attrs.items()
    assert set(opened.attrs) - set(forecast.attrs) == set(AT_THE_END)
    types = {name: type(opened.attrs[name]) for name in CONTRACT | AT_THE_END}
    assert types == CONTRACT | AT_THE_END
    assert opened.attrs["backfill"] == 1
    np.testing.assert_allclose(opened["rain_rate"], forecast["rain_rate"], atol=0.00501)
    for engine in ("h5netcdf", "netcdf4"):
        path = tmp_path / f"{engine}.nc"
        opened.drop_encoding().to_netcdf(path, engine=engine)
        with xr.open_dataset(path, engine=engine) as again:
            assert again.attrs.keys() == opened.attrs.keys()
            assert again.attrs["inputs_sha256"] == opened.attrs["inputs_sha256"]


def test_a_nowcast_with_a_frame_bridged_is_degraded_and_says_so(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 4))
    with advection(str(tmp_path)) as nowcaster:
        attrs = nowcaster.nowcast(archive, archive.times[5]).attrs
    assert (attrs["quality"], attrs["model"], attrs["fallback_reason"]) == (
        "degraded",
        "advection",
        "",
    )
    assert attrs["quality_note"] == "1 of 3 past frames missing, bridged by advection"
    assert attrs["bridged_times"] == ["2024-06-01T00:20:00Z"]
    assert attrs["input_times"] == ["2024-06-01T00:15:00Z", "2024-06-01T00:25:00Z"]
    lengths = {len(attrs[name]) for name in ("input_times", "input_sha256", "input_age_seconds")}
    assert lengths == {2}


def test_a_nowcast_is_made_from_nothing_newer_than_its_init_time(
    tmp_path, build_archive, rainy, nowcaster
):
    later = {slot: field + (90 if slot > 5 else 0) for slot, field in rainy.items()}
    nowcasts = [
        nowcaster.nowcast(build_archive(tmp_path / name, fields), START + 5 * TIMESTEP)
        for name, fields in (("a.zarr", rainy), ("b.zarr", later))
    ]
    xr.testing.assert_identical(*(nowcast["rain_rate"] for nowcast in nowcasts))


def test_a_lead_time_that_the_timestep_does_not_divide_is_an_error(tmp_path, rainy_archive):
    with (
        advection(str(tmp_path), NowcastSettings(lead_time="7min")) as nowcaster,
        pytest.raises(SquallError, match="lead time does not fit the timestep"),
    ):
        nowcaster.nowcast(rainy_archive, START + 5 * TIMESTEP)


def test_dry_frames_give_a_dry_forecast_wherever_it_was_observed(
    tmp_path, build_archive, edge, nowcaster
):
    archive = build_archive(tmp_path / "a.zarr", dict.fromkeys(range(6), edge))
    forecast = nowcaster.nowcast(archive, archive.times[5])
    assert forecast.attrs["quality"] == "good"
    assert (forecast["rain_rate"][:, :, 2:] == 0).all()
    assert forecast["rain_rate"][:, :, :2].isnull().all()


def test_frames_without_an_observed_pixel_give_an_unknown_forecast(
    tmp_path, build_archive, edge, nowcaster
):
    archive = build_archive(tmp_path / "a.zarr", dict.fromkeys(range(6), edge * np.nan))
    forecast = nowcaster.nowcast(archive, archive.times[5])
    assert forecast["rain_rate"].isnull().all()
    publish(str(tmp_path), "test", forecast)
    assert open_forecast(str(tmp_path), "test", archive.times[5])["rain_rate"].isnull().all()


def test_a_forecaster_of_one_frame_gets_what_it_needs(tmp_path, build_archive, rainy):
    archive = build_archive(tmp_path / "a.zarr", {5: rainy[5]})
    with Nowcaster(str(tmp_path), "persistence", SETTINGS) as nowcaster:
        forecast = nowcaster.nowcast(archive, archive.times[5])
    assert forecast.attrs["quality"] == "degraded"
    np.testing.assert_allclose(forecast["rain_rate"][2], rainy[5], atol=0.005)


def test_a_name_stands_for_its_champion(registry):
    assert pinned(registry, "net") == f"net/{champion(registry, 'net')}"
    assert pinned(registry, "net/7") == "net/7"
    assert pinned(registry, "advection") == "advection"


def test_an_error_is_told_in_one_line():
    assert told(ValueError("one\n  two")) == "ValueError: one two"
    assert told(ValueError()) == "ValueError"


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        NowcastSettings(leadtime="1h")


# Too few frames ----------------------------------------------------------------------------------


def test_with_too_few_frames_for_the_model_advection_forecasts(
    registry, tmp_path, build_archive, rainy, monkeypatch
):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 0, 1, 2, 4))
    with Nowcaster(registry, "net", SETTINGS.model_copy(update={"most_missing": 0})) as nowcaster:
        forecast = nowcaster.nowcast(archive, archive.times[5])
        assert_fallback(forecast, archive, "TooFewFramesError: too few past frames")
        assert forecast.attrs["bridged_times"] == ["2024-06-01T00:20:00Z"]
        assert "1 of 3 past frames missing" in forecast.attrs["quality_note"]
        with pytest.raises(TooFewFramesError):
            nowcaster.nowcast(archive, archive.times[3])


def test_with_too_few_frames_none_is_made_where_the_settings_say_so(
    registry, tmp_path, build_archive, rainy
):
    archive = build_archive(tmp_path / "a.zarr", without(rainy, 4))
    settings = NowcastSettings(lead_time="15min", most_missing=0, too_few="refuse")
    with Nowcaster(registry, "net", settings) as nowcaster, pytest.raises(TooFewFramesError):
        nowcaster.nowcast(archive, archive.times[5])


# A model in trouble ------------------------------------------------------------------------------


def test_without_a_model_advection_forecasts_until_there_is_one(registry, tmp_path, rainy_archive):
    with Nowcaster(str(tmp_path), "net", SETTINGS) as nowcaster:
        forecast = nowcaster.nowcast(rainy_archive, START + 5 * TIMESTEP)
        assert_fallback(forecast, rainy_archive, "NotFoundError")
        assert forecast.attrs["requested_model"] == "net"
        assert forecast.attrs["input_window"] == 3
        shutil.copytree(f"{registry}/models", tmp_path / "models")
        forecast = nowcaster.nowcast(rainy_archive, START + 6 * TIMESTEP)
        assert_fallback(forecast, rainy_archive, "NotFoundError")
        nowcaster.begin()
        assert nowcaster.requested == f"net/{champion(registry, 'net')}"


@pytest.mark.slow
def test_broken_weights_are_replaced_by_advection_and_mended_ones_are_used(
    registry, tmp_path, rainy_archive
):
    shutil.copytree(f"{registry}/models", tmp_path / "models")
    wanted = f"net/{champion(registry, 'net')}"
    weights = tmp_path / "models" / wanted / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with Nowcaster(str(tmp_path), "net", SETTINGS) as nowcaster:
        forecast = nowcaster.nowcast(rainy_archive, START + 5 * TIMESTEP)
        assert_fallback(forecast, rainy_archive, "weights")
        assert forecast.attrs["requested_model"] == wanted
        weights.write_bytes(content)
        forecast = nowcaster.nowcast(rainy_archive, START + 6 * TIMESTEP)
        assert_fallback(forecast, rainy_archive, "weights")  # not loaded for each of a round anew
        assert not nowcaster._forecaster.has_child
        nowcaster.begin()
        forecast = nowcaster.nowcast(rainy_archive, START + 7 * TIMESTEP)
    assert_good(forecast, wanted)
    assert len(forecast.attrs["model_sha256"]) == 64
    assert forecast.attrs["device"] == "cpu"


@pytest.fixture(scope="module")
def unruly(registry):
    """Nowcasts by a network that does what the newest frame's first pixel says, with 3 s for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nowcasting, "serving_forecaster", wayward.serving)
        settings = NowcastSettings(lead_time="15min", time_budget=f"{BUDGET_S}s")
        with Nowcaster(registry, "net", settings) as nowcaster:
            yield nowcaster


@pytest.fixture
def of_unruly(unruly, tmp_path, build_archive, rainy):
    """Its forecasts, one after the other, when told to do this and that; and the archive."""

    def forecast(*codes):
        unruly.begin()
        assert unruly._forecaster.about.name == "wayward"  # it has loaded
        fields = {slot: field.copy() for slot, field in rainy.items()}
        for slot, code in enumerate(codes, start=5):
            fields[slot][0, 0] = code
        archive = build_archive(tmp_path / f"{codes}.zarr", fields)
        began = time.monotonic()
        made = [unruly.nowcast(archive, archive.times[slot]) for slot in range(5, 5 + len(codes))]
        return archive, made, time.monotonic() - began

    return forecast


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason", "lost"),
    [
        (wayward.RAISE, "SquallError: it is wayward: found 1; expected 2", False),
        (wayward.RAISE_ODDLY, "this and that", False),
        (wayward.UNKNOWN, "UnbelievableError: the forecast is not believed: found 1.6%", False),
        (wayward.ABSURD, "found 501 mm/h at lead time 15min", False),
        (wayward.HANG, "ForecasterTimeoutError: the forecaster did not forecast in time", True),
        (wayward.KILLED, "found SIGKILL", True),
        (wayward.SEGFAULT, "found SIGSEGV", True),
        (wayward.EXIT, "ForecasterDiedError", True),
    ],
)
def test_whatever_the_model_does_there_is_a_forecast_in_time(of_unruly, code, reason, lost):
    archive, (failed, second), seconds = of_unruly(code, wayward.WELL)
    assert_fallback(failed, archive, reason)
    assert failed.attrs["input_window"] == 3
    assert failed.attrs["inputs_sha256"] == window(archive, archive.times[5], 3).digest
    assert seconds < 2 * BUDGET_S + 5
    if lost:  # it is not asked again in the same round
        assert_fallback(second, archive, reason)
    else:
        assert_good(second, "wayward")
    _, (well,), _ = of_unruly(wayward.WELL)  # in the next round it is
    assert_good(well, "wayward")


@pytest.mark.slow
def test_a_child_that_dies_after_its_answer_holds_nothing_up(of_unruly, unruly, monkeypatch):
    predict = Nowcaster._predict

    def then_dies(self, forecaster, past, leads, budget):
        rain_rate = predict(self, forecaster, past, leads, budget)
        psutil.Process(forecaster.about.pid).kill()
        return rain_rate

    monkeypatch.setattr(Nowcaster, "_predict", then_dies)
    _, (forecast,), seconds = of_unruly(wayward.WELL)
    assert_good(forecast, "wayward")
    assert seconds < BUDGET_S + 2


@pytest.mark.slow
def test_the_process_ends_with_the_nowcaster(registry):
    with Nowcaster(registry, "net", SETTINGS) as nowcaster:
        pid = nowcaster._forecaster.about.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
