"""The promote flow, as a Prefect worker runs it and as the command calls it."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from flows import promote as module
from flows.promote import judge_challengers, served_name
from flows.settings import load_settings
from models.registry import champion, promote_first, reigns, save_model
from models.training import NetworkSettings, TrainSettings
from models.verdict import PromotionSettings
from pipelines.score_store import write_scores
from tests.models.verified import hourly, verified, wobble

from .conftest import Prefect, wait_for

NETWORK = TrainSettings(network=NetworkSettings(hidden_channels=(2,), patch_size=4))
TIMES = hourly(6)
SETTINGS = PromotionSettings(samples=200)


@pytest.fixture
def made(tmp_path):
    """Four versions of ``town``, the oldest the champion, and their scores."""
    root = str(tmp_path / "store")
    learnt = {"first_frame": "2024-05-01T00:00:00Z", "last_frame": "2024-05-02T00:00:00Z"}
    known = {"past_frames": 4, "timestep": pd.Timedelta("5min"), "archive": learnt, "metrics": {}}
    versions = []
    for seed in range(4):
        torch.manual_seed(seed)
        version = save_model(root, "town", NETWORK.build_network().state_dict(), NETWORK, **known)
        path = Path(root, "models/town", version, "model.json")
        card = json.loads(path.read_text()) | {"created": f"2024-06-0{seed + 1}T00:00:00Z"}
        path.write_text(json.dumps(card))
        versions.append(f"town/{version}")
    promote_first(root, *versions[0].split("/"))
    skill = dict(zip(versions, (0.5, 0.7, 0.6, 0.5), strict=True))
    skill |= {"persistence": 0.3, "advection": 0.4, "sprog": 0.4}
    csi = {name: mean + wobble(TIMES, k, 0.02) for k, (name, mean) in enumerate(skill.items())}
    sums = verified(TIMES, csi)
    write_scores(root, "town", [sums.isel(init_time=[k]) for k in range(len(TIMES))])
    return root, versions


def test_every_challenger_is_judged_by_the_same_scores_newest_first(made, monkeypatch):
    root, versions = made
    read = []
    whole = module.evidence

    def once(*arguments):
        read.append(arguments)
        return whole(*arguments)

    monkeypatch.setattr(module, "evidence", once)
    judged = [verdict for verdict, _ in judge_challengers(root, "town", "town", SETTINGS)]
    assert [verdict.challenger for verdict in judged] == versions[:0:-1]
    assert [verdict.passed for verdict in judged] == [False, True, True]
    assert len(read) == 1
    assert judge_challengers(root, "town", "other", SETTINGS) == []
    assert len(read) == 1


def test_without_scores_every_verdict_says_so(made):
    root, _ = made
    judged = judge_challengers(root, "village", "town", SETTINGS)
    assert [verdict.lacking for verdict, _ in judged] == [
        ("no scores of 'village' to judge by",)
    ] * 3


def test_whose_challengers_are_judged_follows_from_what_is_served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert served_name(load_settings(product="town")) == "town"
    assert served_name(load_settings(nowcast={"model": "net"})) == "net"
    assert served_name(load_settings(nowcast={"model": "net/1"})) == "net"


@pytest.mark.slow
def test_the_newest_that_passes_becomes_the_champion_and_the_table_an_artifact(
    prefect: Prefect, made, tmp_path
):
    root, versions = made
    words = ("--auto", "--root", root, "--product", "town", "--set", "promote.samples=200")
    words += ("--set", "nowcast.model=town")
    run = prefect.run("squall", "registry", "promote", *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert f"3 challengers judged; {versions[2]} is the champion now" in run.stdout
    assert f"town/{champion(root, 'town')}" == versions[2]
    reign = reigns(root, "town")[-1]
    assert reign.how == "proven"
    assert reign.by.startswith("flow run ")
    chosen = {"artifacts": {"key": {"any_": ["promotion"]}}}
    text = prefect.api("/artifacts/latest/filter", chosen)[0]["data"]
    for version in versions[1:]:
        assert f"**{version} against {versions[0]}, by csi**" in text
    told = {"filter": {"event": {"name": ["squall.model.promoted"]}}}
    (event,) = wait_for(lambda: prefect.api("/events/filter", told)["events"])
    assert event["resource"]["prefect.resource.id"] == "squall.model.town"
    assert event["payload"]["model"] == versions[2]

    again = prefect.run("squall", "registry", "promote", *words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"1 challenger judged, none promoted; champion: {versions[2]}" in again.stdout
