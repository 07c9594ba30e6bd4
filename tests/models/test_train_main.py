"""`python -m models.train`: what a job on a cluster runs."""

import subprocess
import sys

import pytest


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "models.train", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('{"epoch": 3}', "setting train.epoch does not fit: found 3"),
        ('{"network": {"input_kernel": 0}}', "setting train.network.input_kernel does not fit"),
        ("epochs=3", "setting train does not fit: found 'epochs=3'"),
        ('{"epochs": 3}', "no archive: found nothing at"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, settings, expected):
    ended = run("--root", str(tmp_path), "--product", "town", "--settings", settings)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"squall: {expected}")
    assert len(ended.stderr.strip().splitlines()) == 1


def test_what_a_job_runs_knows_no_prefect():
    check = "import models.train, models.jobs, sys; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=120).returncode == 0
