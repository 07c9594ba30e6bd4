"""`squall registry`: what it lists and shows, for people and for programs; who is the champion."""

import json
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from flows.cli import main
from flows.promote import CI_ACTORS, identity
from flows.verify import score_table
from models.registry import promote_first, reigns, save_model
from models.training import NetworkSettings, TrainSettings
from pipelines.compare import Scoring, compare
from pipelines.score_store import write_scores
from pipelines.scores import scores
from tests.models.verified import hourly, verified, wobble

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
        path = Path(root, "models", "net", version, "model.json")
        card = json.loads(path.read_text()) | {"created": f"2024-06-0{seed + 3}T00:00:00Z"}
        path.write_text(json.dumps(card))
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


FORCE = ("--force", "--why", "it is the only one")


def test_versions_are_listed_with_champion_window_and_headlines(registry, made):
    csi = scores(SUMS.sum("lead_time"))["csi"].sel(threshold=0.5)
    net, best = (f"{float(csi.sel(forecaster=name)):.3f}" for name in ("net", "advection"))
    assert registry("promote", made[0], *FORCE)[0] == 0
    code, text, _ = registry("list")
    assert code == 0
    rows = text.split("├")
    row = next(row for row in rows if made[0] in row)
    for part in (
        " champion, forced by ",
        "because it is the only one",
        "2024-06-01T00:00 to 2024-06-02T00:00",
        f"{net} (advection {best})",
    ):
        assert part in row
    row = next(row for row in rows if made[1] in row)
    assert "champion" not in row
    entries = {one["model"]: one for one in json.loads(registry("list", "net", "--json")[1])}
    assert set(entries) == set(made)
    assert [entries[model]["champion"] for model in made] == [True, False]
    assert entries[made[0]]["reason"].endswith("because it is the only one")
    assert entries[made[1]]["reason"] is None
    assert entries[made[0]]["headlines"][0]["best_baseline"] == "advection"
    assert entries[made[1]]["headlines"] == []


def test_an_empty_registry_is_no_error(registry):
    code, text, _ = registry("list")
    assert code == 0
    assert "no model at" in text
    assert json.loads(registry("list", "--json")[1]) == []


def test_a_version_is_shown_whole(registry, made):
    registry("promote", made[0], *FORCE)
    code, text, _ = registry("show", "net")
    assert code == 0
    for part in (
        made[0],
        "because it is the only one",
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
    assert [reign["how"] for reign in shown["reigns"]] == ["forced"]
    assert shown["reigns"][0]["verdict"]["passed"] is False
    np.testing.assert_allclose(shown["scores"]["data_vars"]["hits"]["data"], SUMS["hits"])
    unscored = json.loads(registry("show", made[1], "--json")[1])
    assert (unscored["scores"], unscored["champion_since"]) == (None, [])
    assert registry("show", made[1])[0] == 0


def test_rollback_goes_back_to_the_champion_before(registry, made):
    for model in made:
        assert registry("promote", model, *FORCE)[1].endswith(f"champion: {model}\n")
    assert registry("rollback", "net")[:2] == (0, f"champion: {made[0]}\n")
    assert "; since 2" in (text := registry("show", made[0])[1])
    assert "rolled back by " in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show", "other"], "no trained model called 'other'"),
        (["show", "net/x"], "no version 'x' of model 'net'"),
        (["promote", "net"], "expected NAME/VERSION"),
        (["promote"], "expected NAME/VERSION, or --auto"),
        (["promote", "net/x", "--auto"], "--auto and a version"),
        (["promote", "net/x", "--force"], "--force without a reason"),
        (["promote", "net/x", "--force", "--why", " "], "--force without a reason"),
        (["promote", "net/x", "--why", "because"], "a reason without --force"),
        (["promote", "net/x", "--why", " "], "a reason without --force"),
        (["promote", "--auto", "--force", "--why", "so"], "--force is for one version"),
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


# Proof -------------------------------------------------------------------------------------------

QUICK = ("--product", "town", "--set", "promote.samples=200")
TIMES = hourly(6)


@pytest.fixture
def scored(root, made):
    """Scores of both versions, the older one the champion, and of the baselines; skill by name."""
    promote_first(root, *made[0].split("/"))

    def write(challenger):
        skill = {made[0]: 0.5, made[1]: challenger}
        skill |= {"persistence": 0.3, "advection": 0.4, "sprog": 0.45}
        csi = {name: mean + wobble(TIMES, k, 0.02) for k, (name, mean) in enumerate(skill.items())}
        sums = verified(TIMES, csi)
        write_scores(root, "town", [sums.isel(init_time=[k]) for k in range(len(TIMES))])
        return made

    return write


def test_a_challenger_that_is_not_better_is_refused_with_the_table(registry, scored):
    champion, challenger = scored(0.47)
    code, table, error = registry("promote", challenger, *QUICK)
    assert code == 2
    rows = [line for line in table.splitlines() if " 15min " in line and " ≥ 0.5 " in line]
    assert [row.split("│")[1].strip() for row in rows] == [
        champion, "persistence", "advection", "sprog",
    ]  # fmt: skip
    assert " worse " in rows[0]
    assert all(" better " in row for row in rows[1:])
    assert "not passed: better in 18 of 24 comparisons" in table
    assert f"{challenger} is not proven better: found {champion} at 15min" in error
    assert len(error.strip().splitlines()) == 1
    entries = {one["model"]: one for one in json.loads(registry("list", "net", "--json")[1])}
    assert entries[champion]["champion"]
    assert entries[champion]["reason"] == "first: no champion to beat; unproven"


def test_one_that_is_better_becomes_the_champion_and_says_why(registry, scored):
    _, challenger = scored(0.6)
    code, table, error = registry("promote", challenger, *QUICK)
    assert (code, error) == (0, "")
    assert "passed: better in 24 of 24 comparisons" in table
    assert table.endswith(f"champion: {challenger}\n")
    shown = json.loads(registry("show", "net", "--json")[1])
    assert shown["model"] == challenger
    reign = shown["reigns"][-1]
    assert reign["how"] == "proven"
    assert reign["by"] == identity()
    assert len(reign["verdict"]["comparisons"]) == 24
    assert "119 forecasts in 20 event blocks" in reign["reason"]
    again = registry("promote", challenger, *QUICK)
    assert again[:2] == (0, f"champion: {challenger}, already\n")


def test_a_dry_run_shows_the_table_and_changes_nothing(registry, scored, root):
    champion, challenger = scored(0.6)
    before = reigns(root, "net")
    assert registry("promote", challenger, "--dry-run", *QUICK)[0] == 0
    code, text, _ = registry("promote", challenger, "--dry-run", "--markdown", *QUICK)
    assert code == 0
    assert text.startswith(f"**{challenger} against {champion}, by csi**")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 24
    assert len({line.count("|") for line in table}) == 1
    assert registry("promote", "--auto", "--dry-run", "--set", "nowcast.model=net", *QUICK)[0] == 0
    scored(0.5)
    assert registry("promote", challenger, "--dry-run", *QUICK)[0] == 1
    assert registry("promote", "--auto", "--dry-run", "--set", "nowcast.model=net", *QUICK)[0] == 1
    assert reigns(root, "net") == before


def test_force_promotes_and_remembers_who_and_why_and_what_was_overridden(registry, scored, root):
    _, challenger = scored(0.47)
    words = ("--force", "--why", "the radar was replaced")
    code, table, _ = registry("promote", challenger, *words, *QUICK)
    assert code == 0
    assert "not passed" in table
    reign = reigns(root, "net")[-1]
    assert (reign.how, reign.by, reign.why) == ("forced", identity(), "the radar was replaced")
    assert reign.verdict["passed"] is False
    assert len(reign.verdict["comparisons"]) == 24
    row = next(row for row in registry("list")[1].split("├") if challenger in row)
    assert f"champion, forced by {identity()} because the radar was replaced" in row


def test_who_it_was_is_the_ci_job_where_there_is_one(monkeypatch):
    for name in CI_ACTORS:
        monkeypatch.delenv(name, raising=False)
    assert identity().endswith(f"@{socket.gethostname()}")
    monkeypatch.setenv("GITHUB_ACTOR", "ada")
    assert identity() == "ada (CI)"
