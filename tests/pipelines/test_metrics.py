"""Metrics as Prometheus reads them."""

import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.archive import archive_url
from pipelines.metrics import text, write_metrics
from pipelines.score_store import write_scores
from pipelines.skill import SkillSettings, update_skill
from pipelines.watch import look
from tests.service import PRODUCT, SECONDS, publish_by_hand
from tests.verified import verified

START = pd.Timestamp("2024-06-01T00:00")
STEP = pd.Timedelta("5min")


@pytest.fixture
def status(tmp_path, grid, build_archive):
    root = str(tmp_path / "root")
    build_archive(archive_url(root, PRODUCT), dict.fromkeys((0, 1, 3, 4), np.ones((8, 8))))
    publish_by_hand(root, grid, START, quality="degraded")
    publish_by_hand(root, grid, START + 3 * STEP, model="net/1")
    return look(root, PRODUCT, time=START + 5 * STEP)


def samples(content):
    """Values by metric name and labels, the product left out."""
    found = {}
    for family in text_string_to_metric_families(content):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("product") == PRODUCT
            found[sample.name, *(labels[name] for name in sorted(labels))] = sample.value
    return found


def test_the_metrics_say_what_the_status_says(status):
    found = samples(text(status, ["one", "two"]))
    assert found["squall_newest_frame_age_seconds",] == 300
    assert found["squall_newest_forecast_age_seconds",] == 600
    assert found["squall_gaps",] == 1
    assert found["squall_frames_without_forecast",] == 1
    assert found["squall_frames_waiting",] == 1
    assert found["squall_limits_crossed",] == 2
    assert found["squall_newest_forecast_info", "net/1", "good"] == 1
    qualities = {key[1]: value for key, value in found.items() if key[0] == "squall_forecasts"}
    assert qualities == {"good": 1, "degraded": 1, "fallback": 0}


def test_recent_skill_is_there_for_every_forecaster(tmp_path, build_archive):
    """It rained at the first lead time only; the last hour is not over."""
    root = str(tmp_path)
    build_archive(archive_url(root, PRODUCT), {0: np.ones((8, 8))})
    times = pd.date_range(end=START, periods=30, freq="h")
    csi = {"served": 0.4, "persistence": 0.3, "advection": 0.6}
    wet = np.tile([9.0, 0.0], (30, 1))
    write_scores(root, PRODUCT, [verified(times, csi, served="net/1", observed=wet)])
    update_skill(root, PRODUCT, SkillSettings())
    found = samples(text(look(root, PRODUCT), []))
    skill = {key: value for key, value in found.items() if key[0] == "squall_csi"}
    assert skill == {
        ("squall_csi", name, "300", "0.5"): pytest.approx(value)
        for name, value in {**csi, "net/1": 0.4}.items()
    }
    horizon = "squall_trust_horizon_seconds"
    for bound in ("estimate", "lower", "upper"):
        assert found[horizon, bound, "net/1"] == 300
        assert found[horizon, bound, "persistence"] == 0
    behind = "squall_behind_advection_seconds"
    assert (found[behind, "net/1"], found[behind, "advection"]) == (29 * 3600, 0)
    assert found["squall_verified_until_seconds",] == START.timestamp()


def test_an_interval_that_is_not_known_is_left_out(tmp_path, build_archive):
    root = str(tmp_path)
    build_archive(archive_url(root, PRODUCT), {0: np.ones((8, 8))})
    write_scores(root, PRODUCT, [verified([START], {"served": 0.4, "persistence": 0.3})])
    update_skill(root, PRODUCT, SkillSettings())
    found = samples(text(look(root, PRODUCT), []))
    bounds = {key[1] for key in found if key[0] == "squall_trust_horizon_seconds"}
    assert bounds == {"estimate"}


def test_latency_is_a_summary_by_stage(status):
    found = samples(text(status, []))
    for stage, seconds in (*SECONDS.items(), ("wait", 3.0), ("total", 10.0)):
        for quantile in ("0.5", "0.95", "1"):
            assert found["squall_latency_seconds", quantile, stage] == pytest.approx(seconds)
        assert found["squall_latency_seconds_count", stage] == 2
        assert found["squall_latency_seconds_sum", stage] == pytest.approx(2 * seconds)


def test_what_is_not_known_is_left_out(tmp_path, build_archive):
    root = str(tmp_path)
    build_archive(archive_url(root, PRODUCT), {})
    found = samples(text(look(root, PRODUCT), ["no frame"]))
    names = {name for name, *_ in found}
    assert not names & {"squall_newest_frame_age_seconds", "squall_newest_forecast_info"}
    assert found["squall_limits_crossed",] == 1
    assert found["squall_latency_seconds_count", "total"] == 0


def test_the_text_file_is_replaced_as_a_whole(status, tmp_path):
    folder = tmp_path / "collector"
    folder.mkdir()
    path = folder / "squall.prom"
    path.write_text("old")
    write_metrics(str(path), status, [])
    assert samples(path.read_text()) == samples(text(status, []))
    assert [entry.name for entry in folder.iterdir()] == ["squall.prom"]
