"""Verification: published forecasts against what came, all forecasters on the same pixels."""

import numpy as np
import pandas as pd
import pytest

from models.baselines import Persistence
from models.past import read_past
from models.verification import VerifySettings, verify_forecast
from pipelines.archive import Status
from pipelines.errors import NotFoundError
from pipelines.forecasts import forecast_dataset
from pipelines.publishing import publish
from pipelines.scores import scores
from pipelines.times import lead_times
from pipelines.units import pack

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
INIT_TIME = START + 3 * TIMESTEP
SETTINGS = VerifySettings(thresholds_mm_h=(1.0, 4.0), baselines=("persistence",))


class Known:
    """A forecaster that says what it was told."""

    paper = "none"
    past_frames = 2

    def __init__(self, name, fields):
        self.name, self.fields = name, fields

    def predict(self, past, lead_times):
        forecast = Persistence().predict(past, lead_times)
        return forecast.copy(data=np.stack(self.fields).astype(np.float32))


@pytest.fixture
def world(tmp_path, build_archive, grid):
    """Rain of 1, 2, 3, … mm/h by slot number in the left half; frames to slot 5."""
    left = np.arange(grid.shape[1]) < 4
    fields = [np.where(left, 1.0 + slot, np.zeros(grid.shape)) for slot in range(8)]
    archive = build_archive(tmp_path / "a.zarr", dict(enumerate(fields[:6])))

    def publish_forecast(fields, name="net/1", lead_time="15min"):
        past = read_past(archive, INIT_TIME, 2)
        leads = lead_times(TIMESTEP, pd.Timedelta(lead_time))
        attrs = {"model": name, "inputs_sha256": past.window.digest}
        rain_rate = Known(name, fields).predict(past.frames, leads)
        publish(str(tmp_path), "test", forecast_dataset(rain_rate, attrs))

    def verify(settings=SETTINGS):
        return verify_forecast(str(tmp_path), "test", archive.url, INIT_TIME, settings)

    return archive, fields, publish_forecast, verify


def test_a_perfect_forecast_is_perfect_and_persistence_is_as_computed_by_hand(world):
    _, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    result = scores(verify())
    perfect = result.sel(forecaster="net/1")
    assert perfect["csi"].values.tolist() == [[1, 1], [1, 1]]
    assert perfect["mse"].values.tolist() == [0, 0]
    # Persistence says 4 mm/h where 5, then 6 fell, on half of the pixels.
    persistence = result.sel(forecaster="persistence")
    assert persistence["mae"].values.tolist() == [0.5, 1.0]
    assert persistence["mse"].values.tolist() == [0.5, 2.0]
    assert persistence["csi"].values.tolist() == [[1, 1], [1, 1]]


def test_only_lead_times_that_have_come_are_scored(world):
    archive, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    assert list(verify()["lead_time"].values) == [TIMESTEP, 2 * TIMESTEP]
    archive.write_frame(archive.times[6], pack(fields[6])[0])
    archive.commit([], {archive.times[6]: Status.LATE})
    assert verify().sizes["lead_time"] == 3


def test_a_forecast_of_which_nothing_has_come_is_not_scored(world):
    archive, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    archive.commit([], dict.fromkeys(archive.times[4:6], Status.BAD))
    assert verify() is None


def test_a_forecast_whose_own_frame_is_gone_is_not_scored(world):
    archive, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    archive.commit([], {INIT_TIME: Status.BAD})
    assert verify() is None


def test_all_forecasters_are_scored_on_the_same_pixels(world, grid):
    archive, fields, publish_forecast, verify = world
    forecast = [field.copy() for field in fields[4:7]]
    forecast[0][0] = np.nan  # the published forecast does not know the first row,
    observed = fields[4].copy()
    observed[:, 0] = np.nan  # the first column was not observed then,
    newest = fields[3].copy()
    newest[-1] = np.nan  # and persistence does not know the last row.
    archive.write_frame(archive.times[4], pack(observed)[0])
    publish_forecast(forecast)
    archive.write_frame(archive.times[3], pack(newest)[0])
    sums = verify()
    assert sums["pixels"].sel(lead_time=TIMESTEP).values.tolist() == [6 * 7, 6 * 7]
    assert sums["pixels"].sel(lead_time=2 * TIMESTEP).values.tolist() == [7 * 8, 7 * 8]


def test_baselines_are_made_from_what_the_nowcast_could_know(world):
    archive, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    before = verify()
    changed = fields[5] + 50
    archive.write_frame(archive.times[5], pack(changed)[0])
    after = verify()
    at_first = {"forecaster": "persistence", "lead_time": TIMESTEP}
    assert float(after["absolute_error"].sel(at_first)) == float(
        before["absolute_error"].sel(at_first)
    )


@pytest.mark.parametrize("baselines", [(), ("persistence", "advection")])
def test_the_baselines_are_those_of_the_settings(world, baselines):
    _, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    sums = verify(SETTINGS.model_copy(update={"baselines": baselines}))
    assert sums["forecaster"].values.tolist() == ["net/1", *baselines]
    assert sums["threshold"].values.tolist() == [1.0, 4.0]


def test_a_forecast_that_was_never_published_is_an_error(world):
    *_, verify = world
    with pytest.raises(NotFoundError, match="no such forecast"):
        verify()


def test_the_fractions_skill_score_is_stored_for_every_scale_and_none_without_scales(world):
    _, fields, publish_forecast, verify = world
    publish_forecast(fields[4:7])
    result = scores(verify(SETTINGS.model_copy(update={"scales_km": (2.0, 6.0)})))
    assert result["scale"].values.tolist() == [2.0, 6.0]
    assert (result["fss"].sel(forecaster="net/1") == 1).all()
    assert "fss" not in scores(verify(SETTINGS.model_copy(update={"scales_km": ()})))
