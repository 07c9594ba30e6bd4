"""The command: bad input is one line with found, expected, remedy, and exit code 2."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import pytest
import xarray as xr
from cyclopts import App
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli import app, main
from models.baselines import BASELINES
from models.networks import NETWORKS
from pipelines.sources import SOURCES
from pipelines.sources.synthetic import SyntheticRadar, write_archive

from .conftest import BIN

HELP_COMMANDS = (
    "demo",
    "sources",
    "models",
    "moving-mnist",
    "ingest",
    "train",
    "tune",
    "nowcast",
    "verify",
    "show",
    "export",
    "replay",
    "prune",
    "status",
    "latency",
    "doctor",
)


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def squall(tmp_path, monkeypatch, capfd):
    """The command, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("flows.report.console._width", 200)

    def run(*words: str, **environment: str) -> Run:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main(list(words))
        out, err = capfd.readouterr()
        return Run(int(end.value.code or 0), out, err)

    return run


def test_help_teaches_with_an_example(tmp_path):
    command = [str(BIN / "squall"), "--help"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "squall ingest /archive/knmi --source knmi" in text
    for command in HELP_COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", [c for c in HELP_COMMANDS if c not in ("sources", "demo")])
def test_every_command_teaches_with_an_example(squall, command):
    text = " ".join(squall(command, "--help").stdout.split())
    assert f"Example: squall {command}" in text


@pytest.mark.parametrize("command", ["info", "validate", "compact", "export"])
def test_every_archive_command_teaches_with_an_example(squall, command):
    text = " ".join(squall("archive", command, "--help").stdout.split())
    assert f"squall archive {command} " in text
    assert "Example:" in text


@pytest.mark.parametrize("command", ["list", "show", "promote", "rollback"])
def test_every_registry_command_teaches_with_an_example(squall, command):
    text = " ".join(squall("registry", command, "--help").stdout.split())
    assert f"Example: squall registry {command}" in text


def commands(of: App) -> Iterator[App]:
    for name in of:
        if not name.startswith("-"):
            yield of[name]
            yield from commands(of[name])


def test_every_option_of_every_command_is_explained():
    seen = 0
    for command in commands(app):
        if command.default_command is not None:
            for option in command.assemble_argument_collection(parse_docstring=True):
                assert option.parameter.help or not option.show, f"{command.name} {option.name}"
                seen += 1
    assert seen > 100


def test_the_version_is_the_packages_own(squall):
    assert squall("--version").stdout.strip() == version("squall")


def test_an_archive_is_shown_and_exported(squall, archive, root, tmp_path):
    shown = squall("archive", "info", "--root", root, "--product", "test").stdout
    assert "48×48 pixels" in shown
    assert "a year of such frames" in shown
    common = ("--root", root, "--product", "test", "--set", "ingest.workers=1")
    made = squall("archive", "export", "night.nc", *common)
    assert made.returncode == 0, made.stderr
    frames = len(archive.usable_times())
    assert f"{frames} frames in night.nc" in made.stdout
    assert xr.open_dataset(tmp_path / "night.nc").sizes["time"] == frames
    named = ("--creator", "A <a@b.org>", "--identifier", "NL-X-rainfall_flux")
    made = squall(
        "archive", "export", "d.zarr", "--mlcast", *named, "--license", "CC0-1.0", *common
    )
    assert made.returncode == 0, made.stderr
    assert xr.open_zarr(tmp_path / "d.zarr").sizes["time"] == frames
    refused = squall("archive", "export", "e.zarr", "--mlcast", *common)
    assert refused.returncode == 2
    assert "needs a publisher" in refused.stderr


def test_sources_are_listed(squall):
    text = squall("sources").stdout
    for name in SOURCES:
        assert f" {name} " in text
    assert "s3://noaa-mrms-pds" in text


def test_models_are_listed_for_people_and_for_programs(squall):
    text = squall("models", "--frame", "64").stdout
    entries = json.loads(squall("models", "--frame", "64", "--json").stdout)
    assert {entry["name"] for entry in entries} == {*NETWORKS, *BASELINES}
    for entry in entries:
        assert f" {entry['name']} " in text
    assert "142,667,776" in text


def test_doctor_prints_settings_origins_and_checks(squall, tmp_path):
    (tmp_path / "squall.toml").write_text('product = "town"\n')
    run = squall("doctor", "--set", "train.seed=4", SQUALL_TRAIN__EPOCHS="7")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()

    def line(key):
        return next(text for text in lines if f" {key} " in text)

    assert "squall.toml" in line("product")
    assert "town" in line("product")
    assert "SQUALL_TRAIN__EPOCHS" in line("train.epochs")
    assert "command line" in line("train.seed")
    assert "default" in line("train.crop")
    for check in ("packages", "root", "prefect", "ray", "dask"):
        assert f"│ {check} " in run.stdout


def test_doctor_fails_with_a_remedy_where_something_is_not_reachable(squall):
    run = squall("doctor", "--set", "ingest.location=no/such/folder")
    assert run.returncode == 1
    assert "check the path; a URL needs its scheme" in " ".join(run.stdout.split())


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["ingest", "x", "--set", "ingest.sorce=knmi"], {}, "did you mean ingest.source?"),
        (["train"], {"SQUALL_TRAIN__EPOCS": "3"}, "did you mean SQUALL_TRAIN__EPOCHS?"),
        (["tune", "--space", '{"epocs": {"choice": [1]}}'], {}, "unknown setting to tune"),
        (["tune", "--space", "{loss"], {}, "valid dictionary"),
        (["tune", "--samples", "0"], {}, "greater than or equal to 1"),
        (["tune"], {}, "no archive"),
        (["demo", "x"], {}, "add --source NAME"),
        (["show"], {}, "no forecast to show"),
        (["show", "--time", "yesterdy"], {}, "not a time"),
        (["show", "--time", "2024-06-01"], {}, "no archive"),
    ],
)
def test_bad_input_without_a_flow_is_one_line_and_exit_code_2(squall, words, environment, expected):
    run = squall(*words, **environment)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stderr.startswith("squall: ")
    assert len(run.stderr.strip().splitlines()) == 1
    assert expected in run.stderr


def test_an_unknown_option_is_exit_code_2(squall):
    assert squall("train", "--epocs", "3").returncode == 2


@pytest.mark.slow
def test_bad_input_to_a_flow_is_one_line_and_exit_code_2(tmp_path, prefect, synthetic):
    def one_line(*words: str) -> str:
        run = prefect.run("squall", *words, cwd=tmp_path)
        assert run.returncode == 2, run.stdout + run.stderr
        line = run.stderr.strip().splitlines()[-1]
        assert line.startswith("squall: ")
        assert "Traceback" not in run.stderr
        for part in ("found", "expected", "Remedy: "):
            assert part in line
        return line

    (tmp_path / "empty").mkdir()
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(synthetic.glob("*.h5"))[:2]:
        shutil.copy2(path, few)
    other = tmp_path / "other"
    write_archive(other, SyntheticRadar(size=32, frames=10, cells=3))

    assert "no odim frames at" in one_line("ingest", "empty", "--source", "odim")
    assert "did you mean 'knmi'?" in one_line("ingest", "few", "--source", "knmy")
    assert prefect.run("squall", "ingest", "few", cwd=tmp_path).returncode == 0
    assert "another grid" in one_line("ingest", "other")
    few_frames = ("--set", "nowcast.most_missing=0", "--set", "nowcast.too_few=refuse")
    assert "too few past frames" in one_line("nowcast", "--model", "advection", *few_frames)
    fallback = prefect.run("squall", "nowcast", cwd=tmp_path)
    assert fallback.returncode == 0, fallback.stderr
    assert "fallback" in fallback.stdout
    assert "no trained model" in fallback.stdout
    assert "no sequence to learn from" in one_line("train")
    assert "nothing to verify" in one_line("verify")


@pytest.mark.slow
def test_an_archive_is_compacted_and_validated(tmp_path, squall, prefect, synthetic):
    def run(*words):
        with temporary_settings({PREFECT_API_URL: prefect.url}):
            return squall(*words, "--product", "town")

    assert run("ingest", str(synthetic), "--source", "odim").returncode == 0
    compacted = run("archive", "compact", "--drop-before", "2024-06-01T01:00")
    assert compacted.returncode == 0, compacted.stderr
    assert "11 dropped from the live archive" in compacted.stdout
    store = tmp_path / "squall-store/archive/town.zarr/rain_rate/c"
    next(path for path in sorted(store.rglob("*")) if path.is_file()).unlink()
    damaged = run("archive", "validate")
    assert damaged.returncode == 1
    assert "other pixels than those of" in damaged.stdout
