"""`squall registry`: what it lists and shows, for people and for programs; who is the champion."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from flows.cli import main
from flows.verify import score_table
from models.registry import save_model
from models.training import NetworkSettings, TrainSettings
from pipelines.compare import Scoring, compare
from pipelines.scores import scores

SETTINGS = TrainSettings(network=NetworkSettings(hidden_channels=(4,), patch_size=2))
ARCHIVE = {
    "url": "file:///archive",
    "sha256": "0123abcd",
    "first_frame": "2024-06-01T00:00:00Z",
    "last_frame": "2024-06-02T00:00:00Z",
}


def forecast(scale):
    rain = np.random.default_rng(0).gamma(0.5, 4.0, (2, 6, 7)) * scale
    coords = {"lead_time": pd.to_timedelta([5, 10], unit="min")}
    return xr.DataArray(rain, coords, ("lead_time", "y", "x"))


SUMS = (
    compare(
        {"net": forecast(1.2), "persistence": forecast(3.0), "advection": forecast(1.1)},
        forecast(1.0),
        Scoring((0.5, 2.0), {1.0: (1, 1), 5.0: (3, 3)}),
    )
    .sel(region="domain", drop=True)
    .assign_attrs(events=7)
)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def made(root):
    """Two versions, the older one validated."""
    known = {"past_frames": 6, "timestep": pd.Timedelta("5min"), "archive": ARCHIVE}
    versions = []
    for seed, scored in ((0, SUMS), (1, None)):
        torch.manual_seed(seed)
        weights = SETTINGS.build_network().state_dict()
        version = save_model(
            root, "net", weights, SETTINGS, **known, metrics={"loss": 0.5}, scores=scored
        )
        versions.append(f"net/{version}")
    return versions


@pytest.fixture
def registry(root, tmp_path, monkeypatch, capfd):
    """`squall registry …`: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.report.console._width", 200)

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(["registry", *words, "--root", root])
        return int(end.value.code or 0), *capfd.readouterr()

    return run


def test_versions_are_listed_with_champion_window_and_headlines(registry, made):
    csi = scores(SUMS.sum("lead_time"))["csi"].sel(threshold=0.5)
    net, best = (f"{float(csi.sel(forecaster=name)):.3f}" for name in ("net", "advection"))
    assert registry("promote", made[0])[0] == 0
    code, text, _ = registry("list")
    assert code == 0
    rows = text.split("├")
    row = next(row for row in rows if made[0] in row)
    for part in (" champion ", "2024-06-01T00:00 to 2024-06-02T00:00", f"{net} (advection {best})"):
        assert part in row
    row = next(row for row in rows if made[1] in row)
    assert "champion" not in row
    entries = {one["model"]: one for one in json.loads(registry("list", "net", "--json")[1])}
    assert set(entries) == set(made)
    assert [entries[model]["champion"] for model in made] == [True, False]
    assert entries[made[0]]["headlines"][0]["best_baseline"] == "advection"
    assert entries[made[1]]["headlines"] == []


def test_an_empty_registry_is_no_error(registry):
    code, text, _ = registry("list")
    assert code == 0
    assert "no model at" in text
    assert json.loads(registry("list", "--json")[1]) == []


def test_a_version_is_shown_whole(registry, made):
    registry("promote", made[0])
    code, text, _ = registry("show", "net")
    assert code == 0
    for part in (
        made[0],
        "sha256=0123abcd",
        "normalisation log",
        "learning_rate=0.002",
        "7 events",
    ):
        assert part in text
    for row in score_table(SUMS):
        assert row["score"] in text
        assert row["5min"] in text
    shown = json.loads(registry("show", made[0], "--json")[1])
    assert shown["archive"] == ARCHIVE
    assert len(shown["champion_since"]) == 1
    np.testing.assert_allclose(shown["scores"]["data_vars"]["hits"]["data"], SUMS["hits"])
    unscored = json.loads(registry("show", made[1], "--json")[1])
    assert (unscored["scores"], unscored["champion_since"]) == (None, [])
    assert registry("show", made[1])[0] == 0


def test_rollback_goes_back_to_the_champion_before(registry, made):
    for model in made:
        assert registry("promote", model)[1] == f"champion: {model}\n"
    assert registry("rollback", "net")[:2] == (0, f"champion: {made[0]}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show", "other"], "no trained model called 'other'"),
        (["show", "net/x"], "no version 'x' of model 'net'"),
        (["promote", "net"], "expected NAME/VERSION"),
        (["promote", "net/x"], "no version 'x' of model 'net'"),
        (["rollback", "other"], "no trained model called 'other'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(registry, made, words, expected):
    code, _, error = registry(*words)
    assert code == 2
    assert error.startswith("squall: ")
    assert len(error.strip().splitlines()) == 1
    for part in (expected, "found", "Remedy: "):
        assert part in error


def test_damage_is_one_line_and_exit_code_2(registry, made, root, tmp_path):
    (tmp_path / "store/models" / made[0] / "model.json").write_text("{")
    code, _, error = registry("show", made[0])
    assert code == 2
    assert "is damaged" in error
    code, text, _ = registry("list")
    assert code == 0
    assert made[0] not in text
    assert made[1] in text
