"""The registry: what was saved is what is loaded, or an error says what is wrong."""

import pandas as pd
import pytest
import torch

from models.registry import champion, load_model, promote, save_model
from models.training import NetworkSettings, TrainSettings
from pipelines import storage
from pipelines.errors import NotFoundError

SETTINGS = TrainSettings(network=NetworkSettings(hidden_channels=(4, 3), patch_size=2))


def save(root, seed=0, name="net"):
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
    )
    return network, version


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
