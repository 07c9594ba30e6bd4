"""`squall status` and `squall latency`: what they print, exit codes, how little they import."""

import json
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest
from cyclopts import App
from prometheus_client.parser import text_string_to_metric_families

from flows.layers import SettingsError
from flows.settings import Settings
from flows.status import OTHERS, WatchedPlace, watched
from flows.watching_commands import latency, status
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.errors import SquallError
from pipelines.score_store import write_scores
from pipelines.skill import SkillSettings, update_skill
from tests.conftest import free_ports
from tests.service import PRODUCT, publish_by_hand
from tests.verified import verified

from .conftest import ROOT, clean_environment

STEP = pd.Timedelta("5min")


@pytest.fixture
def now():
    return pd.Timestamp.now("UTC").tz_localize(None).floor("5min").as_unit("ns")


@pytest.fixture
def root(tmp_path, grid, build_archive, now):
    """An hour of frames up to now, each with its forecast."""
    root = str(tmp_path / "root")
    fields = dict.fromkeys(range(12), np.ones((8, 8)))
    build_archive(archive_url(root, PRODUCT), fields, slots=12, start=now - 11 * STEP)
    for slot in range(12):
        publish_by_hand(root, grid, now - slot * STEP)
    return root


@pytest.fixture
def squall(tmp_path, monkeypatch, capsys, root):
    """The commands in this process, of the service above; exit code and what they print."""
    monkeypatch.chdir(tmp_path)
    app = App(name="squall")
    app.command(status)
    app.command(latency)

    def run(*words):
        words = [*words, "--root", root, "--product", PRODUCT]
        code = app(words, exit_on_error=False, result_action="return_value")
        return code or 0, capsys.readouterr().out

    return run


def test_all_is_well(squall, now):
    code, out = squall("status")
    assert code == 0, out
    assert "all well" in out
    assert f"{now:%Y-%m-%dT%H:%M}:00Z" in out
    assert "12 good" in out
    assert "skill: none yet" in out


def test_a_limit_that_is_crossed_is_said_and_is_exit_code_1(squall, grid, root, now):
    publish_by_hand(root, grid, now - STEP, 2, quality="fallback")
    code, out = squall("status", "--set", "watch.largest_fallback=0.05")
    assert code == 1
    assert "! 8% of 24h's forecasts are fallback; limit 5%" in out
    assert "1 limits crossed" in out
    assert squall("status", "--set", "watch.largest_fallback=0.09")[0] == 0


def test_recent_skill_is_a_table_with_trust_horizons_and_who_is_behind(squall, root, now):
    times = pd.date_range(end=now, periods=30, freq="h")
    csi = {"served": [(0.4, 0.2)], "persistence": 0.3, "advection": 0.6}
    write_scores(root, PRODUCT, [verified(times, csi, served=f"{PRODUCT}/v1")])
    update_skill(root, PRODUCT, SkillSettings())
    code, out = squall("status")
    assert code == 0, out
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows[f"{PRODUCT}/v1"].split("│")[1:-1]] == [
        f"{PRODUCT}/v1",
        "0.400",
        "0.200",
        "5min (5min to 5min)",
    ]
    assert "at least 10min (10min to 10min)" in rows["advection"]
    assert f"CSI ≥ 0.5 mm/h of the forecasts from {times[0]:%Y-%m-%d}" in out
    assert f"{PRODUCT}/v1 behind advection since {times[0]:%Y-%m-%d}" in out
    storage.write_json(f"{root}/models/{PRODUCT}/champion.json", {"version": "v1"})
    code, out = squall("status")
    assert code == 1
    assert f"! {PRODUCT}/v1 has been behind advection for 29h; limit 12h" in out


def test_the_status_as_json(squall):
    code, out = squall("status", "--json", "--set", "watch.oldest_frame=0s")
    told = json.loads(out)
    assert code == 1
    assert not told["ok"]
    assert "the newest frame is" in told["limits_crossed"][0]
    assert told["forecasts"] == {"good": 12}


def test_metrics_go_to_the_file_that_an_option_or_a_setting_names(squall, tmp_path):
    for file, option in (
        ("a.prom", ["--prometheus", str(tmp_path / "a.prom")]),
        ("b.prom", ["--set", f"watch.metrics_file={tmp_path / 'b.prom'}"]),
    ):
        assert squall("status", *option)[0] == 0
        families = list(text_string_to_metric_families((tmp_path / file).read_text()))
        assert "squall_newest_frame_age_seconds" in {family.name for family in families}


def test_latency_by_stage_for_people_and_for_programs(squall, now):
    code, out = squall("latency")
    assert code == 0
    for stage in ("total", "wait", "ingest", "read", "predict", "products", "publish"):
        assert f"│ {stage} " in out
    assert "12 forecasts" in out
    since = f"{now - STEP:%Y-%m-%dT%H:%M}"
    told = json.loads(squall("latency", "--json", "--since", since)[1])
    assert told["forecasts"] == 2
    assert told["seconds"]["total"] == {"p50": 10.0, "p95": 10.0, "max": 10.0}


def test_bad_input_is_an_error(squall):
    with pytest.raises(SquallError, match="not a time"):
        squall("latency", "--since", "yesterdy")
    with pytest.raises(SquallError, match="no forecast whose latency is known"):
        squall("latency", "--until", "2010-01-01")
    with pytest.raises(SettingsError, match=r"did you mean watch\.most_gaps"):
        squall("status", "--set", "watch.most_gap=1")
    with pytest.raises(SquallError, match="metrics cannot be served there"):
        squall("status", "--serve", "70000")


def test_both_teach_with_an_example(capsys):
    for command in (status, latency):
        app = App(name="squall", help_format="plaintext")
        app.command(command)
        app([command.__name__, "--help"], exit_on_error=False, result_action="return_value")
        assert f"Example: squall {command.__name__} " in " ".join(capsys.readouterr().out.split())


def test_the_sections_not_looked_at_are_all_the_others():
    """A new section of the settings belongs in `flows.status.OTHERS`, or `squall status` fails."""
    assert set(Settings.model_fields) == {*WatchedPlace.model_fields, *OTHERS}


def test_other_sections_may_be_set_and_misspelt_ones_may_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toml = tmp_path / "squall.toml"
    toml.write_text('product = "a"\n[ingest]\nsource = "knmi"\n[watch]\nmost_gaps = 7\n')
    monkeypatch.setenv("SQUALL_TRAIN__EPOCHS", "3")
    settings = watched({"root": None, "nowcast": {"model": "x"}})
    assert (settings.product, settings.watch.most_gaps) == ("a", 7)
    toml.write_text("[wacth]\nmost_gaps = 7\n")
    with pytest.raises(SettingsError, match="found wacth"):
        watched({})


def test_neither_torch_nor_ray_nor_prefect_is_imported(root):
    code = textwrap.dedent(
        f"""
        import sys
        from flows.watching_commands import latency, status
        from flows.options import Common
        common = Common(root={root!r}, product={PRODUCT!r})
        status(common=common)
        latency(common=common)
        assert not {{"torch", "ray", "prefect"}} & sys.modules.keys()
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_metrics_are_served_and_looked_up_anew_until_interrupted(root, grid, now, tmp_path):
    (port,) = free_ports(1)
    code = (
        "from flows.watching_commands import status; from flows.options import Common; "
        f"status(serve={port}, common=Common(root={root!r}, product={PRODUCT!r}))"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}/metrics"

    def scrape():
        with urllib.request.urlopen(url, timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        return {
            (sample.name, sample.labels.get("quality")): sample.value
            for family in families
            for sample in family.samples
        }

    try:
        assert server.stdout.readline() == f"metrics: {url}\n", server.stderr.read()
        assert scrape()["squall_forecasts", "degraded"] == 0
        publish_by_hand(root, grid, now, 2, quality="degraded")
        assert scrape()["squall_forecasts", "degraded"] == 1
        (tmp_path / "root/archive" / f"{PRODUCT}.zarr/zarr.json").unlink()
        with pytest.raises(urllib.error.HTTPError):
            scrape()
    finally:
        server.terminate()
        end = time.monotonic() + 30
        server.wait(timeout=max(1, end - time.monotonic()))
