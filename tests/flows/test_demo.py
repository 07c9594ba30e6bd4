"""The main job as a newcomer runs it, and the README's blocks on what it left behind."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.archive import Archive, Status
from pipelines.forecasts import open_forecasts
from pipelines.manifest import read_manifest

from .conftest import BIN, DEADLINE_S, ROOT, Prefect, clean_environment

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
HOUR = pd.date_range("2024-06-01T06:00", "2024-06-01T06:55", freq="5min")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """`squall demo` in an empty folder, with embedded defaults and no server."""
    folder = tmp_path_factory.mktemp("newcomer")
    home = {"PREFECT_HOME": str(folder / "prefect-home")}
    run = subprocess.run(
        [str(BIN / "squall"), "demo", "--set", "train.epochs=2"],
        cwd=folder,
        env=clean_environment() | home,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 4,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder, run.stdout


def test_the_demo_says_where_everything_lies(demo):
    folder, output = demo
    for name in ("archive", "model", "forecasts", "picture", "scores"):
        path = re.search(rf"^{name}: +(\S+)$", output, re.MULTILINE)
        assert path, output
        assert Path(path[1]).exists()
    assert "xr.open_zarr(" in output
    for forecaster in ("persistence", "advection"):
        assert forecaster in output
    assert (folder / "demo/synthetic/pictures/synthetic/20240601T0600Z.png").read_bytes()[:4] == (
        b"\x89PNG"
    )


def test_the_demo_copes_with_the_faults_of_its_archive(demo):
    folder, output = demo
    url = str(folder / "demo/synthetic/archive/synthetic.zarr")
    outcomes = pd.Series([row.outcome for row in read_manifest(url)]).value_counts().to_dict()
    assert outcomes == {"ok": 81, "bad": 1, "late": 1, "duplicate": 1}
    status = Archive(url).status()
    assert status["2024-06-01T01:45"] == Status.MISSING
    assert status["2024-06-01T03:30"] == Status.BAD
    assert status["2024-06-01T06:20"] == Status.LATE
    assert "truncated" in output


def test_every_replayed_timestep_has_a_nowcast_made_of_nothing_newer(demo):
    folder, _ = demo
    forecasts = open_forecasts(str(folder / "demo/synthetic"), "synthetic")
    assert list(pd.DatetimeIndex(forecasts["init_time"].values)) == list(HOUR)
    store = folder / "demo/synthetic/forecasts/synthetic"
    for init_time in HOUR:
        one = xr.open_zarr(store / f"{init_time:%Y%m%dT%H%MZ}.zarr")
        used = pd.DatetimeIndex([t.removesuffix("Z") for t in one.attrs["input_times"]])
        assert used.max() == init_time
        # The frame of 06:20 came 13 minutes late: two nowcasts had to do without it.
        late = init_time in (HOUR[5], HOUR[6])
        assert one.attrs["quality"] == ("degraded" if late else "good")
        assert np.isfinite(one["rain_rate"]).any()


def test_a_second_demo_starts_afresh_and_leaves_strangers_alone(demo, tmp_path):
    (tmp_path / "demo/synthetic").mkdir(parents=True)
    (tmp_path / "demo/synthetic/thesis.txt").write_text("mine")
    run = subprocess.run(
        [str(BIN / "squall"), "demo"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 2
    assert (tmp_path / "demo/synthetic/thesis.txt").read_text() == "mine"


def test_readme_python_blocks_run(demo):
    folder, _ = demo
    assert blocks("python")
    for block in blocks("python"):
        # Stock xarray: nothing of Squall is on the path of a reader, unless the block imports it.
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", block],
            cwd=folder,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert run.returncode == 0, block + run.stderr


def test_readme_console_blocks_run(demo, prefect: Prefect):
    folder, _ = demo
    commands = [
        line
        for block in blocks("console")
        for line in block.replace("\\\n", " ").splitlines()
        if line
    ]
    assert any(command.startswith("make demo") for command in commands)
    for command in commands:
        words = shlex.split(command, comments=True)
        if not words:
            continue
        if words[0] == "make":  # not again: that the target is there
            check = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=False)
            assert check.returncode == 0, command
        elif words[0].endswith("squall"):
            words[0] = "squall"
            if "train" in words:
                words += ["--epochs", "1", "--set", "train.samples_per_epoch=64"]
            run = prefect.run(*words, cwd=folder)
            assert run.returncode == 0, command + run.stdout + run.stderr
        else:
            assert words[0].endswith("prefect"), f"no test for {command}"  # test_deployments
