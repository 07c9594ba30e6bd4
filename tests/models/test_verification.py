"""What was served against what came, all forecasters on the same pixels."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from models.baselines import Persistence
from models.past import read_past
from models.verification import (
    Failure,
    VerifySettings,
    frames_had,
    rules,
    try_forecast,
    verify_forecast,
)
from pipelines.archive import Status, archive_url
from pipelines.due import Due
from pipelines.errors import NotFoundError
from pipelines.forecasts import forecast_dataset
from pipelines.manifest import ManifestRow
from pipelines.publishing import publish
from pipelines.scores import scores
from pipelines.shadows import shadow_root
from pipelines.times import lead_times, time_text
from pipelines.units import pack
from pipelines.window import Window

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
INIT_TIME = START + 3 * TIMESTEP
LEADS = lead_times(TIMESTEP, pd.Timedelta("15min"))
SETTINGS = VerifySettings(thresholds_mm_h=(1.0, 4.0), baselines=("persistence",))


class World:
    """Rain of 1, 2, 3, … mm/h by slot number in the left half; frames to slot 5."""

    def __init__(self, root, build_archive, grid, fields=None):
        self.root = str(root)
        left = np.arange(grid.shape[1]) < 4
        stripes = [np.where(left, 1.0 + slot, np.zeros(grid.shape)) for slot in range(8)]
        self.fields = stripes if fields is None else fields
        frames = dict(enumerate(self.fields[:6]))
        self.archive = build_archive(archive_url(self.root, "test"), frames, grid=grid)

    def write(self, slot, field, status=Status.OK):
        self.archive.write_frame(self.archive.times[slot], pack(field)[0])
        self.archive.commit([], {self.archive.times[slot]: status})

    def publish(self, fields, model="net/1", shadow=None, leads=LEADS, **attrs):
        past = read_past(self.archive, INIT_TIME, 2, most_missing=1)
        forecast = Persistence().predict(past.frames, leads)
        stacked = np.stack(fields).astype(np.float32)
        if stacked.ndim == 4:  # (member, …)
            forecast = forecast.expand_dims(member=len(stacked))
        forecast = forecast.copy(data=stacked)
        given = {"model": model, "inputs_sha256": past.window.digest, "quality": "good"} | attrs
        root = shadow_root(self.root, shadow) if shadow else self.root
        publish(root, "test", forecast_dataset(forecast, given))

    def verify(self, settings=SETTINGS, shadows=()):
        due = Due(INIT_TIME, LEADS, tuple(shadows), "digest")
        sums = verify_forecast(self.root, "test", self.archive.url, due, settings)
        return sums.isel(init_time=0).sel(region="domain")


@pytest.fixture
def world(tmp_path, build_archive, grid):
    return World(tmp_path, build_archive, grid)


def test_a_perfect_forecast_is_perfect_and_persistence_is_as_computed_by_hand(world):
    world.publish(world.fields[4:7])
    result = scores(world.verify()).isel(lead_time=[0, 1])
    perfect = result.sel(forecaster="served")
    assert perfect["csi"].values.tolist() == [[1, 1], [1, 1]]
    assert perfect["mse"].values.tolist() == [0, 0]
    # Persistence says 4 mm/h where 5, then 6 fell, on half of the pixels.
    persistence = result.sel(forecaster="persistence")
    assert persistence["mae"].values.tolist() == [0.5, 1.0]
    assert persistence["mse"].values.tolist() == [0.5, 2.0]
    assert persistence["csi"].values.tolist() == [[1, 1], [1, 1]]


def test_a_lead_time_without_an_observation_has_no_pixels(world):
    world.publish(world.fields[4:7])
    assert world.verify()["pixels"].sel(forecaster="served").values.tolist() == [64, 64, 0]
    world.write(6, world.fields[6], Status.LATE)
    assert world.verify()["pixels"].sel(forecaster="served").values.tolist() == [64, 64, 64]


def test_a_forecast_of_which_nothing_came_has_no_pixels_at_all(world):
    world.publish(world.fields[4:7])
    world.archive.commit([], dict.fromkeys(world.archive.times[4:6], Status.BAD))
    sums = world.verify()
    assert float(sums["pixels"].sum()) == 0
    assert sums["lead_time"].values.tolist() == LEADS.values.tolist()
    assert "hits" in sums


def test_what_was_served_is_scored_and_not_a_later_revision(world):
    world.publish([np.zeros((8, 8))] * 3, model="net/1", quality="degraded")
    world.publish(world.fields[4:7], model="net/2", quality="good")
    sums = world.verify()
    assert float(scores(sums)["csi"].sel(forecaster="served", threshold=1.0)[0]) == 0
    told = {name: sums[name].item() for name in ("model", "quality", "revision", "digest")}
    assert told == {"model": "net/1", "quality": "degraded", "revision": 1, "digest": "digest"}


def test_shadows_are_scored_and_stand_in_for_a_baseline_made_now(world):
    world.publish(world.fields[4:7])
    world.publish([np.full((8, 8), 9.0)] * 3, "persistence", shadow="persistence")
    world.publish([np.zeros((8, 8))] * 3, "net/2", shadow="net/2")
    sums = world.verify(shadows=["net/2", "persistence"])
    assert sums["forecaster"].values.tolist() == ["served", "net/2", "persistence"]
    # 9 mm/h all over where 5 fell on half of the pixels.
    assert float(scores(sums)["mae"].sel(forecaster="persistence")[0]) == (4 + 9) / 2
    assert json.loads(sums["shadows"].item()) == ["net/2", "persistence"]


def test_a_shadow_without_some_of_the_lead_times_takes_nobodys_pixels(world):
    world.publish(world.fields[4:7])
    world.publish([np.zeros((8, 8))], "net/2", shadow="net/2", leads=LEADS[:1])
    sums = world.verify(shadows=["net/2"])
    assert sums["forecaster"].values.tolist() == ["served", "persistence"]
    assert sums["pixels"].sel(forecaster="served").values.tolist() == [64, 64, 0]


def test_a_baseline_that_served_is_scored_under_its_own_name_too(world):
    world.publish([np.full((8, 8), 9.0)] * 3, model="persistence")
    result = scores(world.verify())["mae"]
    served, persistence = (result.sel(forecaster=name) for name in ("served", "persistence"))
    assert float(persistence[0]) == float(served[0]) == (4 + 9) / 2


def test_without_its_own_frame_there_is_no_baseline_but_what_was_served_is_scored(world):
    world.publish(world.fields[4:7])
    world.archive.commit([], {INIT_TIME: Status.BAD})
    assert world.verify()["forecaster"].values.tolist() == ["served"]


def test_all_forecasters_are_scored_on_the_same_pixels(world):
    forecast = [field.copy() for field in world.fields[4:7]]
    forecast[0][0] = np.nan  # the served forecast does not know the first row,
    observed = world.fields[4].copy()
    observed[:, 0] = np.nan  # the first column was not observed then,
    newest = world.fields[3].copy()
    newest[-1] = np.nan  # and persistence does not know the last row.
    world.write(4, observed)
    world.publish(forecast)
    world.write(3, newest)
    sums = world.verify()
    assert sums["pixels"].sel(lead_time=TIMESTEP).values.tolist() == [6 * 7, 6 * 7]
    assert sums["pixels"].sel(lead_time=2 * TIMESTEP).values.tolist() == [7 * 8, 7 * 8]


def test_an_ensemble_is_scored_by_its_mean_without_its_members_dimension(world):
    wetter, drier = ([field * by for field in world.fields[4:7]] for by in (1.5, 0.5))
    world.publish([wetter, drier])
    sums = world.verify()
    assert "member" not in sums.dims
    assert float(scores(sums)["mae"].sel(forecaster="served")[0]) == pytest.approx(0, abs=0.01)


def test_later_frames_do_not_help_a_baseline(world):
    world.publish(world.fields[4:7])
    before = world.verify()
    world.write(5, world.fields[5] + 50)
    at_first = {"forecaster": "persistence", "lead_time": TIMESTEP}
    assert float(world.verify()["absolute_error"].sel(at_first)) == float(
        before["absolute_error"].sel(at_first)
    )


def advection_from(world, inputs):
    """What advection gets when the served forecast had frames at some slots of its window."""
    times = world.archive.times
    world.publish(
        world.fields[4:7],
        input_times=[time_text(times[slot]) for slot in inputs],
        input_sha256=["unknown"] * len(inputs),
        bridged_times=[time_text(times[slot]) for slot in {1, 2, 3} - set(inputs)],
    )
    settings = SETTINGS.model_copy(update={"baselines": ("advection",)})
    return world.verify(settings).sel(forecaster="advection")


def test_a_frame_that_came_after_the_served_forecast_is_not_used(tmp_path, build_archive, radar):
    """That of slot 2 is in the archive now: moving rain, far from where it was before and after."""
    fields = list(radar.rain_rate()[:8])
    with_it, late, without = (
        World(tmp_path / name, build_archive, radar.grid, fields) for name in "abc"
    )
    for world in (with_it, late):
        world.write(2, np.roll(fields[2], 9, axis=1))
    without.archive.commit([], {without.archive.times[2]: Status.MISSING})
    of_late, of_without = advection_from(late, [1, 3]), advection_from(without, [1, 3])
    xr.testing.assert_identical(of_late, of_without)
    assert not of_late.equals(advection_from(with_it, [1, 2, 3])), "it would have mattered"


def row(time, sha256, ingested):
    return ManifestRow(
        valid_time=time_text(time), outcome="ok", key="k", size=1, received=ingested,
        sha256=sha256, source="s", decoder="d", ingested=ingested,
    )  # fmt: skip


def test_the_frames_that_were_there():
    times = pd.date_range(START, periods=5, freq=TIMESTEP)
    early, late = "2024-06-01T00:21:00Z", "2024-06-01T00:23:00Z"
    rows = [row(time, f"hash {k}", early) for k, time in enumerate(times)]
    rows[0] = row(times[0], "hash 0", late)
    there = Window(times, dict(zip(times, rows, strict=True)))
    served = {
        "input_times": [time_text(times[k]) for k in (2, 4)],
        "input_sha256": ["hash 2", "another"],
        "bridged_times": [time_text(times[3])],
        "publish_time": "2024-06-01T00:22:00.500Z",
    }
    # 0 was taken in later; 1 before, but lies ahead of its window; 3 was missing; 4 is corrected.
    assert frames_had(there, served) == {times[1], times[2]}
    assert frames_had(there, {}) == set(times)


@pytest.mark.parametrize("baselines", [(), ("persistence", "advection")])
def test_the_baselines_are_those_of_the_settings(world, baselines):
    world.publish(world.fields[4:7])
    sums = world.verify(SETTINGS.model_copy(update={"baselines": baselines}))
    assert sums["forecaster"].values.tolist() == ["served", *baselines]
    assert sums["threshold"].values.tolist() == [1.0, 4.0]


def test_a_forecast_that_cannot_be_scored_is_an_error_or_a_reason(world):
    with pytest.raises(NotFoundError, match="no such forecast"):
        world.verify()
    due = Due(INIT_TIME, LEADS, (), "digest")
    result = try_forecast(world.root, "test", world.archive.url, due, SETTINGS)
    assert isinstance(result, Failure)
    assert result.init_time == INIT_TIME
    assert result.why.startswith("NotFoundError: no such forecast")


def test_the_fractions_skill_score_is_stored_for_every_scale_and_none_without_scales(world):
    world.publish(world.fields[4:7])
    result = scores(world.verify(SETTINGS.model_copy(update={"scales_km": (2.0, 6.0)})))
    assert result["scale"].values.tolist() == [2.0, 6.0]
    fss = result["fss"].sel(forecaster="served")
    assert (fss.isel(lead_time=[0, 1]) == 1).all()
    assert "fss" not in scores(world.verify(SETTINGS.model_copy(update={"scales_km": ()})))


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"thresholds_mm_h": (1.0, 5.0)}, True),
        ({"scales_km": ()}, True),
        ({"baselines": ()}, True),
        ({"regions": {"coast": (3.0, 51.0, 5.0, 53.0)}}, True),
        ({"workers": 7}, False),
        ({"partial": True}, False),
        ({"since": pd.Timedelta("3h").to_pytimedelta()}, False),
    ],
)
def test_the_rules_are_what_scores_follow_from(change, matters):
    assert (rules(SETTINGS.model_copy(update=change)) != rules(SETTINGS)) == matters
