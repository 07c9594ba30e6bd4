"""From archive to registered model: compared with baselines, tracked, trained on elsewhere."""

import shutil

import pytest

from models import registry
from models.card import read_card, read_scores
from models.run_status import read_status
from models.train import train_model
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.ingest import IngestSettings, ingest
from pipelines.scores import scores

from .small_run import changed, fit_here


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr("models.train.fit", fit_here)


def test_a_version_knows_its_frames_its_scores_and_its_code(archive, tmp_path):
    root = storage.normalise(tmp_path)
    settings = changed(run="r1", validation_fraction=0.3, baselines=("persistence", "advection"))
    model_id = train_model(root, "net", archive.url, settings)
    card = read_card(root, *model_id.split("/"))
    assert registry.champion(root, "net") == card.version
    assert card.archive["url"] == archive.url
    assert len(card.archive["sha256"]) == 64
    assert card.archive["training_samples"] > 0
    assert card.code["torch"]
    assert card.parent is None
    assert len(card.history) == 3
    values = scores(read_scores(root, *model_id.split("/")))
    assert list(values["forecaster"].values) == ["net", "persistence", "advection"]
    assert values.sizes["lead_time"] == 3
    assert values["fss"].notnull().any()
    status = read_status(root, "r1")
    assert (status.state, status.step, status.steps, status.epoch) == ("scoring", 12, 12, 3)
    assert {"loss", "validation_loss", "samples_per_second"} <= status.metrics.keys()


def test_a_model_without_validation_is_registered_without_scores(archive, tmp_path):
    root = storage.normalise(tmp_path)
    model_id = train_model(root, "net", archive.url, changed(epochs=1, validation_fraction=0))
    assert read_scores(root, *model_id.split("/")) is None


def test_the_first_version_is_the_champion_and_the_next_its_challenger(archive, tmp_path):
    root = storage.normalise(tmp_path)
    settings = changed(epochs=1, validation_fraction=0, run="a")
    first = train_model(root, "net", archive.url, settings)
    further = settings.model_copy(update={"seed": 1, "run": "b"})
    second = train_model(root, "net", archive.url, further)
    assert first != second
    assert f"net/{registry.champion(root, 'net')}" == first
    assert str(registry.reigns(root, "net")[0]) == "first: no champion to beat; unproven"
    third = train_model(root, "other", archive.url, further, first=False)
    assert registry.reigns(root, "other") == []
    assert f"other/{registry.versions(root, 'other')[0].version}" == third


def ingested(root, source, folder, files):
    """An archive of the first files of a provider."""
    inbox = storage.local_path(root) / source
    inbox.mkdir()
    for path in sorted(folder.iterdir())[:files]:
        shutil.copy2(path, inbox)
    url = archive_url(root, source)
    ingest(url, IngestSettings(source=source, location=str(inbox), workers=1))
    return Archive(url)


@pytest.mark.slow
def test_a_model_of_one_radar_is_trained_on_for_another_on_another_grid(radar_data, tmp_path):
    root = storage.normalise(tmp_path)
    knmi = ingested(root, "knmi", radar_data / "knmi", 16)
    fmi = ingested(root, "fmi-pgm", radar_data / "fmi-pgm", 16)
    assert knmi.grid.shape != fmi.grid.shape
    common = {"crop": 48, "learning_rate": 1e-2, "validation_fraction": 0.3, "score_events": 1}
    settings = changed(**common, epochs=4, samples_per_epoch=64, batch_size=8)
    first = train_model(root, "knmi", knmi.url, settings)
    further = {"epochs": 1, "samples_per_epoch": 8, "batch_size": 8}
    given = settings.model_dump(exclude={"network", "past", "normalisation", "fine_tune"}) | further
    tuned = train_model(root, "fmi", fmi.url, type(settings)(**given, fine_tune="knmi"))
    alone = train_model(root, "fmi", fmi.url, settings.model_copy(update=further))
    card = read_card(root, *tuned.split("/"))
    assert card.parent == first
    assert card.settings["network"] == read_card(root, *first.split("/")).settings["network"]
    assert registry.load_model(root, *tuned.split("/")).past_frames == 3
    fresh = read_card(root, *alone.split("/"))
    assert card.metrics["validation_loss"] < fresh.metrics["validation_loss"] / 2
