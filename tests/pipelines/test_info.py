"""An archive at a glance: counts that add up, sizes that are measured, frames that stand out."""

import numpy as np
import pandas as pd
import pytest

from pipelines.archive import Archive
from pipelines.compact import compact, training_url
from pipelines.info import provenance, summarise
from pipelines.ingest import IngestSettings, ingest
from pipelines.quality import QualitySettings

TIMES = pd.date_range("2024-06-01T00:00", periods=8, freq="5min")
QUALITY = QualitySettings(jump_factor=3.0, largest_mm_h=100.0)


@pytest.fixture
def url(tmp_path, send, grid):
    """Seven frames of 1 mm/h, one of which is 9 mm/h, one pixel 400 mm/h; the eighth is broken."""
    for number, time in enumerate(TIMES):
        field = np.full(grid.shape, 9.0 if number == 3 else 1.0)
        field[0, 0] = 400.0 if number == 5 else 1.0
        send(tmp_path / "radar", time, field, keep=0.5 if number == 7 else 1.0)
    url = f"file://{tmp_path}/test.zarr"
    settings = IngestSettings(
        location=str(tmp_path / "radar"), timestep="5min", workers=1, quality=QUALITY
    )
    ingest(url, settings)
    return url


def test_what_is_there_is_counted(url, tmp_path):
    info = summarise(url, QUALITY)
    assert info.statuses == {"missing": 280, "ok": 7, "bad": 1}
    assert info.outcomes == {"ok": 7, "bad": 1}
    assert info.masked == {"largest": 1}
    assert len(info.usable) == 7
    assert len(info.decoders) == 1
    files = [path for path in (tmp_path / "test.zarr/rain_rate").rglob("*") if path.is_file()]
    assert info.size == sum(path.stat().st_size for path in files)
    assert info.gb_per_year == pytest.approx(info.size / 7 * 365 * 288 / 1e9)
    assert info.training is None


def test_a_frame_that_stands_out_is_named(url):
    suspects = summarise(url, QUALITY).suspects
    assert list(suspects.index) == [TIMES[3]]
    assert suspects["rain_rate_mm_h"].tolist() == [True]
    assert summarise(url, QualitySettings()).suspects.empty


def test_the_training_layout_is_told_too(url):
    compact(url, workers=1)
    training = summarise(url, QUALITY).training
    assert training is not None
    assert training.layout == "training"
    assert len(training.usable) == 7


def test_an_empty_archive_says_so(tmp_path, build_archive):
    info = summarise(build_archive(tmp_path / "a.zarr", {}).url, QUALITY)
    assert len(info.usable) == 0
    assert np.isnan(info.gb_per_year)
    assert info.suspects.empty


def test_provenance_tells_which_frames_and_changes_with_them_alone(url, tmp_path, send, grid):
    archive = Archive(url)
    times = archive.usable_times()
    told = provenance(archive, times)
    assert (told["frames"], told["first_frame"]) == (7, "2024-06-01T00:00:00Z")
    assert told["last_frame"] == "2024-06-01T00:30:00Z"
    assert (told["url"], told["version"]) == (url, archive.version)
    assert provenance(archive, times)["sha256"] == told["sha256"]
    assert provenance(archive, times[1:])["sha256"] != told["sha256"]

    compact(url, workers=1)  # the same frames in another layout
    training = Archive(training_url(url))
    assert provenance(training, training.usable_times())["sha256"] == told["sha256"]

    settings = IngestSettings(
        location=str(tmp_path / "radar"), timestep="5min", workers=1, quality=QUALITY
    )
    send(tmp_path / "radar", TIMES[7], np.full(grid.shape, 2.0))  # after the window
    ingest(url, settings)
    assert provenance(archive, times)["sha256"] == told["sha256"]
    send(tmp_path / "radar", TIMES[2], np.full(grid.shape, 2.0), name="_corrected", after="20min")
    ingest(url, settings)
    assert provenance(archive, times)["sha256"] != told["sha256"]


def test_provenance_changes_with_how_frames_were_decoded(url, tmp_path):
    times = Archive(url).usable_times()
    told = provenance(Archive(url), times)
    other = QUALITY.model_copy(update={"largest_mm_h": 50.0})
    ingest(
        url,
        IngestSettings(location=str(tmp_path / "radar"), timestep="5min", workers=1, quality=other),
    )
    assert provenance(Archive(url), times)["sha256"] != told["sha256"]
