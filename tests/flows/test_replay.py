"""A replay as a whole: a place of its own, a report, and a day of it without a leak."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from prefect.utilities.callables import parameter_schema

from flows.replay import replay, run_replay
from flows.settings import load_settings
from models.replay import ReplaySettings
from models.shadowing import ShadowSettings
from pipelines import storage
from pipelines.errors import ExistsError, NoFramesError, SquallError
from pipelines.forecasts import open_forecasts, published_init_times
from pipelines.shadows import shadow_forecasters, shadow_root

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
FIRST, LAST = START + 12 * TIMESTEP, START + 24 * TIMESTEP


def settings_for(root, location, **nowcast):
    return load_settings(
        root=str(root),
        product="test",
        ingest={"source": "odim", "location": str(location), "timestep": "5min", "workers": 1},
        nowcast={"model": "persistence", "lead_time": "10min"} | nowcast,
        verify={"workers": 1, "scales_km": [], "baselines": ["persistence"]},
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def production(tmp_path_factory, synthetic):
    """A root with an archive and forecasts of the same product."""
    root = tmp_path_factory.mktemp("production")
    run_replay(settings_for("unused", synthetic), START, FIRST, ReplaySettings(), output=str(root))
    return root


@pytest.fixture(scope="module")
def report(production, synthetic, tmp_path_factory):
    """A replay of slots 12 to 24 into a root of its own, and the production root before it."""
    before = contents(production)
    output = tmp_path_factory.mktemp("replay")
    settings = settings_for(production, synthetic)
    replayed = run_replay(settings, FIRST, LAST, ReplaySettings(), output=str(output))
    assert contents(production) == before
    return replayed


def test_a_replay_touches_nothing_of_the_root_that_its_models_are_from(report, production):
    """Checked as it ran; and it did do something, elsewhere."""
    assert storage.local_path(report.root) != production
    assert len(open_forecasts(report.root, "test")["init_time"]) == 12


def test_by_default_it_gets_a_new_folder_of_the_root(production, synthetic):
    before = contents(production)
    replayed = run_replay(settings_for(production, synthetic), FIRST, LAST, ReplaySettings())
    place = storage.local_path(replayed.root)
    assert place.parent == production / "replays"
    after = {name for name in contents(production) if not name.startswith("replays/")}
    assert after == set(before)


def test_a_place_with_a_product_of_that_name_is_refused(production, synthetic, tmp_path):
    settings = settings_for(tmp_path, synthetic)
    with pytest.raises(ExistsError, match="a place of its own"):
        run_replay(settings, FIRST, LAST, ReplaySettings(), output=str(production))


def test_only_the_period_is_forecast_from_history_is_there_to_forecast_with(report):
    """Slot 20 is truncated; the two hours before the period are in the archive."""
    times = published_init_times(report.root, "test")
    assert list(times) == [t for t in pd.date_range(FIRST, LAST, freq="5min") if t != bad_time()]
    first = next(one for one in report.published if one.init_time == FIRST)
    assert first.quality == "good"


def bad_time():
    return START + 20 * TIMESTEP


def test_the_report_says_what_came_of_it(report):
    text = str(report)
    assert "13 timesteps: 12 with a forecast, 1 without" in text
    assert "files: 13 arrived, 0 of them late, 0 never" in text
    assert "12 published (11 good, 1 degraded), 0 of them instead" in text
    assert "without, the frame could not be read: 1 (2024-06-01T01:40:00Z)" in text
    assert "seconds from frame to forecast (p50/p95): total " in text
    assert report.verification.verified == 11
    assert list(report.missing) == [bad_time()]


def test_without_a_period_all_there_is_is_replayed(synthetic, tmp_path):
    replayed = run_replay(settings_for(tmp_path, synthetic), None, FIRST, ReplaySettings())
    assert replayed.init_times[0] == START
    assert replayed.missing == {START + 10 * TIMESTEP: "there is no file of that time"}


def test_a_model_that_is_not_there_is_said_once_with_all_times(synthetic, tmp_path):
    settings = settings_for(tmp_path, synthetic, model="nobody")
    text = str(run_replay(settings, START + 5 * TIMESTEP, START + 8 * TIMESTEP, ReplaySettings()))
    (line,) = (line for line in text.splitlines() if "by advection" in line)
    assert line.startswith("- by advection: 4 (2024-06-01T00:25:00Z, ")
    assert "nobody" in line


def test_a_period_without_files_is_an_error(synthetic, tmp_path):
    settings = settings_for(tmp_path, synthetic)
    with pytest.raises(NoFramesError, match="no files in the period"):
        run_replay(settings, START + 41 * TIMESTEP, None, ReplaySettings())
    with pytest.raises(NoFramesError, match="no location"):
        run_replay(load_settings(root=str(tmp_path)), FIRST, LAST, ReplaySettings())


def test_files_none_of_which_can_be_read_are_an_error(send, tmp_path, grid):
    field = [[0.0] * grid.shape[1]] * grid.shape[0]
    for slot in range(2):
        send(tmp_path / "in", START + slot * TIMESTEP, pd.DataFrame(field).to_numpy(), keep=0.3)
    with pytest.raises(SquallError, match="no readable odim frame"):
        run_replay(settings_for(tmp_path, tmp_path / "in"), None, None, ReplaySettings())


def test_its_parameters_are_forms_with_descriptions():
    schema = parameter_schema(replay).model_dump_for_openapi()
    for name, form in schema["properties"].items():
        assert form.get("description"), name
    assert "Outage" in schema["definitions"]
    for section in schema["definitions"].values():
        for name, form in section.get("properties", {}).items():
            assert form.get("description") or "$ref" in form, name


def test_nobody_forecasts_in_shadow_unless_asked(report, production, synthetic, tmp_path):
    assert shadow_forecasters(report.root) == []
    settings = settings_for(production, synthetic).model_copy(
        update={"shadow": ShadowSettings(baselines=("advection",), challengers=())}
    )
    before = contents(production)
    asked = ReplaySettings(shadows=True)
    replayed = run_replay(settings, FIRST, LAST, asked, output=str(tmp_path))
    assert contents(production) == before
    assert shadow_forecasters(replayed.root) == ["advection"]
    there = published_init_times(shadow_root(replayed.root, "advection"), "test")
    assert len(there) > 6
    assert there.isin(published_init_times(replayed.root, "test")).all()
