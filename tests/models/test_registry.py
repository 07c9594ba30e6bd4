"""The registry: what was saved is what is loaded, or an error says what is wrong."""

import hashlib
import io
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from models.card import headlines, read_card, read_scores
from models.code_version import code_version
from models.registry import (
    ChampionChangedError,
    champion,
    load_model,
    model_names,
    promote,
    promote_first,
    reigns,
    rollback,
    save_model,
    versions,
)
from models.training import NetworkSettings, TrainSettings
from pipelines import storage
from pipelines.compare import Scoring, compare
from pipelines.errors import NotFoundError, SquallError
from pipelines.scores import scores

SETTINGS = TrainSettings(network=NetworkSettings(hidden_channels=(4, 3), patch_size=2))


def save(root, seed=0, name="net", **known):
    torch.manual_seed(seed)
    network = SETTINGS.build_network()
    version = save_model(
        root,
        name,
        network.state_dict(),
        SETTINGS,
        past_frames=6,
        timestep=pd.Timedelta("5min"),
        archive={"url": "file:///archive"},
        metrics={"loss": 0.5},
        **known,
    )
    return network, version


def file_of(root, version, file, name="net"):
    return Path(root, "models", name, version, file)


def rewrite(root, version, **fields):
    """Change fields of a version's card; None takes one out."""
    path = file_of(root, version, "model.json")
    card = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in card.items() if value is not None}))


def forecast(seed, scale=1.0):
    rain = np.random.default_rng(seed).gamma(0.5, 4.0, (2, 6, 7)) * scale
    coords = {"lead_time": pd.to_timedelta([5, 10], unit="min")}
    return xr.DataArray(rain, coords, ("lead_time", "y", "x"))


def validation(name="net", **others):
    """Sums of a model with small errors, beside others'."""
    forecasts = {name: forecast(0, 1.1), **others}
    sums = compare(forecasts, forecast(0), Scoring((0.5, 2.0), {5.0: (3, 3)}))
    return sums.sel(region="domain", drop=True).assign_attrs(events=3)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def test_a_saved_model_forecasts_as_before(root):
    network, version = save(root)
    model = load_model(root, "net", version)
    frames = torch.rand(1, 3, 2, 5, 5)
    with torch.no_grad():
        assert torch.equal(model.network(frames, 2), network(frames, 2))
    assert model.id == f"net/{version}"
    assert model.settings == SETTINGS
    assert model.past_frames == 6
    assert model.timestep == pd.Timedelta("5min")
    assert model.metrics == {"loss": 0.5}
    assert not model.network.training


def test_a_version_is_named_by_when_it_was_made_and_its_weights(root):
    _, version = save(root)
    model = load_model(root, "net", version)
    made, digest = version.split("-")
    assert pd.Timestamp(made) <= pd.Timestamp.now("UTC")
    assert model.weights_sha256.startswith(digest)
    assert save(root, seed=1)[1] != version


def test_the_champion_is_the_one_that_was_promoted_last(root):
    (_, first), (_, second) = save(root), save(root, seed=1)
    promote(root, "net", second)
    assert champion(root, "net") == second
    promote(root, "net", first)
    assert champion(root, "net") == first
    assert load_model(root, "net").version == first


def test_saving_does_not_promote(root):
    _, first = save(root)
    promote(root, "net", first)
    save(root, seed=1)
    assert champion(root, "net") == first


def test_models_do_not_mix(root):
    _, version = save(root, name="one")
    promote(root, "one", version)
    with pytest.raises(NotFoundError, match="no trained model called 'other'"):
        load_model(root, "other")


def test_no_champion_is_an_error_that_names_the_baseline_to_use(root):
    save(root)
    with pytest.raises(NotFoundError, match="--model advection"):
        load_model(root, "net")


def test_an_unknown_version_is_an_error_that_lists_the_known(root):
    _, version = save(root)
    with pytest.raises(NotFoundError, match=f"found {version}"):
        load_model(root, "net", "20000101T000000Z-00000000")


def test_weights_that_were_changed_are_not_used(root):
    _, version = save(root)
    url = storage.join(root, "models", "net", version, "weights.safetensors")
    content = bytearray(storage.read_bytes(url))
    content[-1] ^= 1
    storage.write_bytes(url, bytes(content))
    with pytest.raises(NotFoundError, match="are not the ones that were saved"):
        load_model(root, "net", version)


def test_a_version_that_was_cut_short_does_not_exist(root, monkeypatch):
    def die(url, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        save(root)
    (version,) = storage.names(storage.join(root, "models", "net"))
    with pytest.raises(NotFoundError, match="no version"):
        load_model(root, "net", version)


# Cards -------------------------------------------------------------------------------------------


def test_a_card_says_where_a_model_is_from(root):
    known = {"history": [{"loss": 0.7}, {"loss": 0.5}], "parent": "net/older"}
    _, version = save(root, **known)
    card = read_card(root, "net", version)
    assert card.id == f"net/{version}"
    assert (card.history, card.parent) == (known["history"], known["parent"])
    assert card.normalisation == "log"
    assert card.archive == {"url": "file:///archive"}
    assert TrainSettings.model_validate(card.settings) == SETTINGS
    assert card.code == code_version()
    content = file_of(root, version, "weights.safetensors").read_bytes()
    assert card.weights_sha256 == hashlib.sha256(content).hexdigest()


def test_a_card_that_an_earlier_squall_wrote_is_loaded(root):
    _, version = save(root)
    new = ("normalisation", "parent", "code", "in_channels")
    rewrite(root, version, **dict.fromkeys(new))
    assert load_model(root, "net", version).in_channels == 2
    assert [card.parent for card in versions(root, "net")] == [None]
    assert read_scores(root, "net", version) is None


def test_the_sums_of_the_validation_are_read_back(root):
    sums = validation(persistence=forecast(1), advection=forecast(2))
    _, version = save(root, scores=sums)
    again = read_scores(root, "net", version)
    xr.testing.assert_equal(again, sums)
    xr.testing.assert_equal(scores(again), scores(sums))
    assert again.attrs["events"] == 3
    assert again["lead_time"].dtype.kind == "m"


def test_headlines_are_over_all_lead_times_beside_the_best_baseline(root):
    worse, better = forecast(0, 4.0), forecast(0, 1.05)
    sums = validation(persistence=worse, advection=better)
    total = scores(sums.sum("lead_time")).isel(threshold=0)
    csi, fss = headlines(sums, "net")
    assert (csi.score, fss.score) == ("CSI ≥ 0.5 mm/h", "FSS ≥ 0.5 mm/h, 5 km")
    assert csi.model == float(total["csi"].sel(forecaster="net"))
    assert (csi.best_baseline, csi.baseline) == (
        "advection",
        float(total["csi"].sel(forecaster="advection")),
    )
    assert fss.model == float(total["fss"].sel(forecaster="net", scale=5.0))
    alone = headlines(validation(), "net")[0]
    assert (alone.model, alone.best_baseline, alone.baseline) == (csi.model, None, None)


def test_scores_of_somebody_else_are_not_saved_as_ones_own(root):
    with pytest.raises(AssertionError, match="go by its model's name"):
        save(root, scores=validation(name="other"))
    assert versions(root, "net") == []


def test_versions_are_newest_first_and_a_half_written_or_damaged_one_is_none(root):
    made = [save(root, seed)[1] for seed in range(4)]
    for day, version in enumerate(made):
        rewrite(root, version, created=f"2024-06-0{day + 1}T00:00:00Z")
    file_of(root, made[1], "model.json").unlink()
    file_of(root, made[2], "model.json").write_text("{")
    promote(root, "net", made[0])
    assert [card.version for card in versions(root, "net")] == [made[3], made[0]]
    assert versions(root, "other") == []
    assert model_names(root) == ["net"]


def test_a_model_that_was_copied_to_another_name_has_that_name(root):
    _, version = save(root)
    shutil.copytree(Path(root, "models/net"), Path(root, "models/copy"))
    shutil.rmtree(Path(root, "models/net"))
    assert load_model(root, "copy", version).id == f"copy/{version}"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda path: path.write_text("{"), "Invalid JSON"),
        (lambda path: path.write_bytes(b"\x80\x04\x95"), "Invalid JSON"),
        (lambda path: path.write_text("[]"), "Input should be an object"),
        (lambda path: path.write_text("{}"), "name Field required"),
    ],
)
def test_a_damaged_card_is_an_error_that_says_so(root, damage, found):
    _, version = save(root)
    damage(file_of(root, version, "model.json"))
    with pytest.raises(SquallError, match=f"card of net/{version} is damaged: found {found}"):
        load_model(root, "net", version)


class Executes:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def torch_saved(thing):
    content = io.BytesIO()
    torch.save(thing, content)
    return content.getvalue()


@pytest.mark.parametrize("dump", [pickle.dumps, torch_saved])
def test_a_pickle_is_an_error_and_executes_nothing_even_where_its_hash_is_right(
    root, tmp_path, dump
):
    _, version = save(root)
    trap = tmp_path / "executed"
    content = dump(Executes(trap))
    file_of(root, version, "weights.safetensors").write_bytes(content)
    with pytest.raises(NotFoundError, match="are not the ones that were saved"):
        load_model(root, "net", version)
    rewrite(root, version, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(SquallError, match="expected weights as safetensors"):
        load_model(root, "net", version)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Executes(trap)))
    assert trap.exists()


def test_weights_of_another_network_and_unknown_settings_are_errors(root):
    _, version = save(root)
    network = SETTINGS.model_dump(mode="json")["network"] | {"hidden_channels": [5, 3]}
    rewrite(root, version, settings=SETTINGS.model_dump(mode="json") | {"network": network})
    with pytest.raises(
        SquallError, match=r"cannot be loaded: found Error.s. in loading state_dict"
    ):
        load_model(root, "net", version)
    rewrite(root, version, settings={"moon_phase": 1})
    with pytest.raises(SquallError, match=r"cannot be loaded.*moon_phase"):
        load_model(root, "net", version)


# Champions ---------------------------------------------------------------------------------------


def test_rollback_goes_to_the_champion_before_and_again_to_the_one_before_that(root):
    first, second, third = (save(root, seed)[1] for seed in range(3))
    for version in (first, second, third):
        promote(root, "net", version)
    assert rollback(root, "net") == second == champion(root, "net")
    assert rollback(root, "net") == first == champion(root, "net")
    with pytest.raises(NotFoundError, match="no champion to go back to"):
        rollback(root, "net")
    promote(root, "net", third)
    assert rollback(root, "net") == first
    history = reigns(root, "net")
    assert [one.version for one in history] == [first, second, third, second, first, third, first]
    assert [one.rolled_back for one in history] == [False] * 3 + [True] * 2 + [False, True]
    assert [one.since for one in history] == sorted(one.since for one in history)


def test_promoting_the_champion_changes_nothing(root):
    (_, first), (_, second) = save(root), save(root, seed=1)
    for version in (first, second, second):
        promote(root, "net", version)
    assert rollback(root, "net") == first


def test_the_champion_that_an_earlier_squall_wrote_is_the_first_of_the_history(root):
    (_, first), (_, second) = save(root), save(root, seed=1)
    earlier = {"version": first, "since": "2024-06-01T00:00:00Z"}
    storage.write_json(storage.join(root, "models/net/champion.json"), earlier)
    assert champion(root, "net") == first
    promote(root, "net", second)
    assert reigns(root, "net")[0].since == "2024-06-01T00:00:00Z"
    assert rollback(root, "net") == first


GOLDEN = Path(__file__).parents[1] / "golden" / "champions"
"""champion.json as each Squall wrote it: without a history, with one, and with reasons."""


@pytest.mark.parametrize(
    ("form", "reasons"),
    [
        ("1", ["unproven"]),
        ("2", ["unproven", "unproven", "rolled back"]),
        (
            "3",
            [
                "first: no champion to beat; unproven",
                "forced by ada@radar because the old one knows no hail",
                "rolled back by ada@radar",
                "proven by flow run brisk-owl by csi of 265 forecasts in 11 event blocks, "
                "2024-06-03T13:00:00Z to 2024-06-04T11:00:00Z",
            ],
        ),
    ],
)
def test_every_form_of_a_champion_is_read_and_goes_on(root, form, reasons):
    url = storage.join(root, "models/net/champion.json")
    storage.write_bytes(url, (GOLDEN / f"{form}.json").read_bytes())
    before = reigns(root, "net")
    assert [str(reign) for reign in before] == reasons
    assert champion(root, "net") == before[-1].version
    _, version = save(root)
    promote(root, "net", version)
    assert reigns(root, "net")[:-1] == before


def test_how_a_champion_came_to_be_is_remembered(root):
    first, second, third = (save(root, seed)[1] for seed in range(3))
    assert promote_first(root, "net", first)
    assert not promote_first(root, "net", second), "there is a champion to beat"
    verdict = {"score": "csi", "forecasts": 9, "blocks": 3, "since": "a", "until": "b"}
    now = reigns(root, "net")
    promote(root, "net", second, how="proven", by="ada", verdict=verdict, after=now)
    promote(root, "net", third, how="forced", by="bob", why="I say so", verdict=verdict)
    rollback(root, "net", by="eve")
    assert [str(reign) for reign in reigns(root, "net")] == [
        "first: no champion to beat; unproven",
        "proven by ada by csi of 9 forecasts in 3 event blocks, a to b",
        "forced by bob because I say so",
        "rolled back by eve",
    ]
    assert reigns(root, "net")[1].verdict == verdict
    assert champion(root, "net") == second


def test_a_proof_against_another_champion_is_none(root):
    first, second, third = (save(root, seed)[1] for seed in range(3))
    promote_first(root, "net", first)
    judged = reigns(root, "net")
    promote(root, "net", second, how="proven", after=judged)
    with pytest.raises(ChampionChangedError, match=f"found {second}; expected {first}"):
        promote(root, "net", third, how="proven", after=judged)
    assert champion(root, "net") == second


def test_what_a_newer_squall_tells_of_a_reign_is_left_aside(root):
    _, version = save(root)
    promote(root, "net", version)
    path = Path(root, "models/net/champion.json")
    stored = json.loads(path.read_text())
    stored["history"][0]["weather"] = "fine"
    path.write_text(json.dumps(stored))
    assert champion(root, "net") == version


@pytest.mark.parametrize("change", ["remove", "damage"])
def test_what_is_not_whole_is_neither_promoted_nor_gone_back_to(root, change):
    versions_made = [save(root, seed)[1] for seed in range(3)]
    for version in versions_made:
        promote(root, "net", version)
    first, second, third = versions_made
    weights = file_of(root, second, "weights.safetensors")
    weights.unlink() if change == "remove" else weights.write_bytes(b"other")
    for act in (lambda: promote(root, "net", second), lambda: rollback(root, "net")):
        with pytest.raises(NotFoundError, match=f"the weights of net/{second} are not the ones"):
            act()
    assert champion(root, "net") == third
    promote(root, "net", first)
    assert champion(root, "net") == first


def test_what_is_not_there_is_not_promoted_and_nothing_is_made(root):
    save(root)
    with pytest.raises(NotFoundError, match="no version 'x'"):
        promote(root, "net", "x")
    with pytest.raises(NotFoundError, match="no trained model called 'other'"):
        rollback(root, "other")
    assert model_names(root) == ["net"]
    assert reigns(root, "net") == []


def test_a_champion_that_is_no_json_is_an_error_that_says_so(root):
    _, version = save(root)
    promote(root, "net", version)
    for text in ("{", "[]", '{"version": "x"}'):
        Path(root, "models/net/champion.json").write_text(text)
        with pytest.raises(SquallError, match="the champion of 'net' cannot be read"):
            champion(root, "net")


processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["models.registry"])


def keep_promoting(root, names, start, said):
    start.wait(60)
    for name in names:
        promote(root, "net", name)
        said.send(name)


@pytest.mark.slow
def test_racing_promoters_lose_no_history_and_tear_no_file_though_one_is_killed(root):
    made = [save(root, seed)[1] for seed in range(40)]
    start = processes.Event()
    listeners, workers = [], []
    for number in range(4):
        listen, said = processes.Pipe(duplex=False)
        mine = made[number::4]
        workers.append(processes.Process(target=keep_promoting, args=(root, mine, start, said)))
        listeners.append(listen)
        workers[-1].start()
        said.close()
    start.set()
    told: list[str] = []
    looks = 0
    while any(worker.is_alive() for worker in workers) or any(one.poll() for one in listeners):
        for listener in listeners:
            try:
                while listener.poll():
                    told.append(listener.recv())
            except EOFError:
                listeners.remove(listener)
                break
        looks += len(reigns(root, "net")) > 0  # a torn file would be an error
        if len(told) >= 12:
            workers[0].kill()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[1:]] == [0, 0, 0]
    crowned = [one.version for one in reigns(root, "net")]
    assert len(crowned) == len(set(crowned))
    assert set(told) <= set(crowned)
    assert {name for number in (1, 2, 3) for name in made[number::4]} <= set(crowned)
    assert looks > 0
    assert rollback(root, "net") == crowned[-2]  # the killed one's lock went with it
