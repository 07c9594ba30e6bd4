"""What promotion is decided by, from real stores: scores of days, cards with parents, reigns."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from models.evidence import challengers, crown, evidence, examine, learnt_by
from models.promotion import judge
from models.registry import ChampionChangedError, champion, promote, promote_first, reigns
from models.registry import save_model as save
from models.training import NetworkSettings, TrainSettings
from models.verdict import PromotionSettings
from pipelines.errors import NotFoundError, SquallError
from pipelines.score_store import open_scores, write_scores

from .verified import hourly, verified, wobble

NETWORK = TrainSettings(network=NetworkSettings(hidden_channels=(2,), patch_size=4))
SETTINGS = PromotionSettings(against=("persistence",), samples=200)
TIMES = hourly(6)
LEARNT = {"first_frame": "2024-05-01T00:00:00Z", "last_frame": "2024-05-31T20:00:00Z"}


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def version(root, seed, name="net", archive=LEARNT, parent=None, timestep="5min"):
    """A registered version, made on day `seed`; its id."""
    torch.manual_seed(seed)
    made = save(
        root,
        name,
        NETWORK.build_network().state_dict(),
        NETWORK,
        past_frames=7,
        timestep=pd.Timedelta(timestep),
        archive=archive,
        metrics={},
        parent=parent,
    )
    path = Path(root, "models", name, made, "model.json")
    card = json.loads(path.read_text()) | {"created": f"2024-06-0{seed + 1}T00:00:00Z"}
    path.write_text(json.dumps(card))
    return f"{name}/{made}"


def scored(root, skill, times=TIMES, product="town"):
    """Write scores of forecasters with these CSI, and of persistence."""
    csi = {name: mean + wobble(times, k, 0.02) for k, (name, mean) in enumerate(skill.items())}
    sums = verified(times, {**csi, "persistence": 0.3 + wobble(times, 99, 0.02)})
    write_scores(root, product, [sums.isel(init_time=[k]) for k in range(len(times))])


def test_evidence_is_the_last_window_at_the_declared_lead_times(root):
    scored(root, {"net/1": 0.5})
    settings = SETTINGS.model_copy(update={"window": pd.Timedelta("2D").to_pytimedelta()})
    sums = evidence(root, "town", settings)
    times = pd.DatetimeIndex(sums["init_time"].values)
    assert (times[0], times[-1]) == (TIMES[-1] - pd.Timedelta("2D"), TIMES[-1])
    whole = open_scores(root, "town", times[0], times[-1])
    xr.testing.assert_equal(sums, whole)
    short = settings.model_copy(update={"lead_times": (pd.Timedelta("30min").to_pytimedelta(),)})
    half_hour = pd.Timedelta("30min")
    xr.testing.assert_equal(evidence(root, "town", short), whole.sel(lead_time=[half_hour]))


def test_nothing_to_judge_by_is_an_error_that_says_how_to_get_it(root):
    with pytest.raises(NotFoundError, match="squall nowcast --since"):
        evidence(root, "town", SETTINGS)
    scored(root, {"net/1": 0.5})
    other = SETTINGS.model_copy(update={"lead_times": (pd.Timedelta("7min").to_pytimedelta(),)})
    with pytest.raises(NotFoundError, match="of the lead times 7min"):
        evidence(root, "town", other)


def test_a_model_has_learnt_what_its_parents_learnt(root):
    digits = version(root, 0, name="digits", archive={"url": "x"}, timestep="0s")
    old = version(root, 1, name="fmi", archive=LEARNT, parent=digits)
    summer = {"first_frame": "2024-06-01T00:00:00Z", "last_frame": "2024-06-02T00:00:00Z"}
    new = version(root, 2, archive=summer, parent=old)
    periods, unknown = learnt_by(root, new)
    assert unknown == []
    # Seven past frames, five minutes apart: who starts half an hour later sees the last one.
    assert [(one.model, one.first, one.last) for one in periods] == [
        (new, pd.Timestamp("2024-06-01"), pd.Timestamp("2024-06-02T00:30")),
        (old, pd.Timestamp("2024-05-01"), pd.Timestamp("2024-05-31T20:30")),
    ]
    orphan = version(root, 3, parent="net/gone")
    nameless = version(root, 4, archive={})
    assert learnt_by(root, orphan)[1] == ["net/gone"]
    assert learnt_by(root, nameless)[1] == [nameless]


def test_of_whom_it_is_not_known_what_it_learnt_it_is_not_known_what_it_can(root):
    champion_id, challenger = version(root, 0), version(root, 1, archive={})
    promote_first(root, *champion_id.split("/"))
    scored(root, {champion_id: 0.5, challenger: 0.7})
    verdict, _ = examine(root, "town", challenger, SETTINGS)
    assert not verdict.passed
    assert "does not say which frames it learnt from" in verdict.lacking[0]


@pytest.mark.parametrize("whose", ["challenger", "champion"])
def test_what_either_learnt_from_is_left_out(root, whose):
    late = {"first_frame": "2024-06-02T00:00:00Z", "last_frame": "2024-06-02T23:00:00Z"}
    archives = {"champion": LEARNT, "challenger": LEARNT} | {whose: late}
    old = version(root, 0, archive=archives["champion"])
    new = version(root, 1, archive=archives["challenger"])
    promote_first(root, *old.split("/"))
    scored(root, {old: 0.5, new: 0.7})
    verdict, _ = examine(root, "town", new, SETTINGS)
    assert verdict.passed
    assert verdict.left_out == 25


def test_the_better_one_is_crowned_and_the_proof_remembered(root):
    old, new = version(root, 0), version(root, 1)
    promote_first(root, *old.split("/"))
    scored(root, {old: 0.5, new: 0.7})
    verdict, history = examine(root, "town", new, SETTINGS)
    assert verdict == judge(open_scores(root, "town"), new, old, SETTINGS)
    crown(root, verdict, history, by="ada@radar")
    assert f"net/{champion(root, 'net')}" == new
    reign = reigns(root, "net")[-1]
    assert (reign.how, reign.by, reign.why) == ("proven", "ada@radar", "")
    assert reign.verdict == json.loads(json.dumps(verdict.summary()))
    assert "144 forecasts in 24 event blocks" in str(reign)


def test_who_is_not_proven_is_refused_and_force_is_remembered(root):
    old, new = version(root, 0), version(root, 1)
    promote_first(root, *old.split("/"))
    scored(root, {old: 0.5, new: 0.4})
    verdict, history = examine(root, "town", new, SETTINGS)
    with pytest.raises(SquallError, match=f"found {old} at 15min, ≥ 0.5 mm/h: worse") as refused:
        crown(root, verdict, history, by="ada@radar")
    assert "and 3 more" in str(refused.value)
    assert "keep the champion, train another challenger" in str(refused.value)
    assert f"net/{champion(root, 'net')}" == old
    crown(root, verdict, history, by="ada@radar", forced_because="a new radar")
    reign = reigns(root, "net")[-1]
    assert (reign.how, reign.why) == ("forced", "a new radar")
    assert reign.verdict is not None
    assert reign.verdict["passed"] is False


def test_without_scores_the_verdict_says_how_to_get_them(root):
    new = version(root, 1)
    verdict, history = examine(root, "town", new, SETTINGS)
    assert verdict.undecided
    with pytest.raises(SquallError, match=r"found no scores of 'town'.*squall nowcast --since"):
        crown(root, verdict, history, by="ada@radar")
    with pytest.raises(NotFoundError, match="no version 'x'"):
        examine(root, "town", "net/x", SETTINGS)


def test_of_two_proofs_against_the_same_champion_the_first_counts(root):
    old, one, other = (version(root, seed) for seed in range(3))
    promote_first(root, *old.split("/"))
    scored(root, {old: 0.5, one: 0.7, other: 0.65})
    judged = [examine(root, "town", new, SETTINGS) for new in (one, other)]
    assert all(verdict.passed for verdict, _ in judged)
    crown(root, *judged[0], by="ada")
    with pytest.raises(ChampionChangedError):
        crown(root, *judged[1], by="bob")
    assert [f"net/{reign.version}" for reign in reigns(root, "net")] == [old, one]
    assert not examine(root, "town", other, SETTINGS)[0].passed


def test_challengers_are_newer_than_the_champion_and_come_newest_first(root):
    made = [version(root, seed) for seed in range(4)]
    assert challengers(root, "net") == made[::-1]
    promote(root, *made[1].split("/"))
    assert challengers(root, "net") == [made[3], made[2]]
    assert challengers(root, "other") == []


def test_evidence_holds_no_more_than_is_compared(root):
    """Columns of spectra and histograms are many, and read only where an ensemble is judged."""
    scored(root, {"net/1": 0.5}, times=TIMES[:3])
    sums = open_scores(root, "town")
    power = xr.DataArray(np.ones((3, 2)), {"wavelength": [4.0, 8.0]}, ("init_time", "wavelength"))
    write_scores(root, "town", [sums.assign(power=power * xr.ones_like(sums["pixels"]))])
    assert "power" in open_scores(root, "town")
    assert "power" not in evidence(root, "town", SETTINGS)
    crps = SETTINGS.model_copy(update={"score": "crps"})
    assert "power" in evidence(root, "town", crps)
