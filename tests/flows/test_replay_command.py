"""`squall replay`: its words, what is wrong with them, and a run."""

import datetime as dt
import subprocess

import pytest

from flows.cli import main
from flows.replay_command import parse, parse_speed
from models.replay import ReplaySettings
from pipelines.errors import SquallError

from .conftest import BIN, DEADLINE_S, clean_environment


def parsed(delay=None, late=None, missing=None, outages=(), seed=0):
    return parse(delay, late, missing, list(outages), seed)


def test_words_become_settings():
    outages = ["2024-06-01T03:00+40min", "2024-06-01T05:00+02:00+1h"]
    settings = parsed("90s", "10%:7min", "2%", outages, 5)
    assert settings.delay == dt.timedelta(seconds=90)
    assert (settings.late, settings.late_by) == (0.1, dt.timedelta(minutes=7))
    assert (settings.missing, settings.seed) == (0.02, 5)
    begins = [outage.begin for outage in settings.outages]
    assert begins == [dt.datetime(2024, 6, 1, 3), dt.datetime(2024, 6, 1, 3)]
    assert [outage.length for outage in settings.outages] == [
        dt.timedelta(minutes=40),
        dt.timedelta(hours=1),
    ]


def test_shadows_are_asked_for():
    assert parse(None, None, None, [], 0, shadows=True) == ReplaySettings(shadows=True)


def test_what_is_not_said_is_as_it_is_by_default():
    assert parsed() == ReplaySettings()
    default = ReplaySettings().late_by
    assert (parsed(late="0.25").late, parsed(late="25%").late_by) == (0.25, default)


@pytest.mark.parametrize(("text", "speed"), [("max", None), ("60", 60.0), ("0.5", 0.5)])
def test_speed(text, speed):
    assert parse_speed(text) == speed


@pytest.mark.parametrize(
    ("words", "found", "expected"),
    [
        ({"late": "often"}, "often", "0% to 100%"),
        ({"late": "110%:7min"}, "110%", "0% to 100%"),
        ({"late": "10%:soon"}, "soon", "duration"),
        ({"late": "10%:-7min"}, "-7min", "duration"),
        ({"missing": "-1%"}, "-1%", "0% to 100%"),
        ({"missing": "nan"}, "nan", "0% to 100%"),
        ({"delay": ""}, "''", "duration"),
        ({"outages": ["2024-06-01T03:00"]}, "2024-06-01T03:00", "a UTC time and a duration"),
        ({"outages": ["2024-06-01T03:00+now"]}, "now", "duration"),
        ({"outages": ["tonight+40min"]}, "tonight", "UTC time"),
    ],
)
def test_what_cannot_be_read_is_said(words, found, expected):
    with pytest.raises(SquallError) as caught:
        parsed(**words)
    assert found in str(caught.value.found)
    assert expected in str(caught.value.expected)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["fast", "0", "-1", "nan", "inf"])
def test_a_speed_that_is_none(text):
    with pytest.raises(SquallError, match=f"--speed cannot be read: found '{text}'"):
        parse_speed(text)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    text = capsys.readouterr().out
    assert "Example: squall replay /archive/knmi --source knmi" in text
    for option in ("--from", "--to", "--late", "--missing", "--outage", "--speed", "--output"):
        assert option in text


@pytest.mark.slow
def test_a_run_prints_its_report_and_scores(synthetic, tmp_path):
    words = ["replay", str(synthetic), "--source", "odim", "--product", "test", "--model"]
    words += ["persistence", "--lead-time", "10min", "--to", "2024-06-01T00:40", "--missing", "10%"]
    words += ["--seed", "1", "--output", "out", "--set", "ingest.timestep=5min"]
    run = subprocess.run(
        [str(BIN / "squall"), *words, "--set", "verify.workers=1"],
        cwd=tmp_path,
        env=clean_environment() | {"PREFECT_HOME": str(tmp_path / "prefect-home")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 2,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "- 9 timesteps: " in run.stdout
    assert "seconds from frame to forecast (p50/p95): total" in run.stdout
    assert "Scores by lead time" in run.stdout
    assert "replay" in run.stderr, "progress"
    assert (tmp_path / "out/forecasts/test/latest.json").exists()
    assert not (tmp_path / "squall-store").exists()
