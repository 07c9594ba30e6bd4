"""Credentials planted where clients look for them, and sought in all that Squall leaves behind."""

import json
import secrets

import numpy as np
import pandas as pd
import pytest

from .conftest import Prefect

PLANTED = {
    name: secrets.token_hex(16)
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "RAY_AUTH_TOKEN",
        "PREFECT_API_KEY",
    )
}
TIMES = pd.date_range("2024-06-01T05:00", periods=8, freq="5min")


@pytest.mark.slow
def test_no_credential_is_in_what_the_loop_leaves_behind(prefect: Prefect, tmp_path, send, grid):
    rng = np.random.default_rng(0)
    rain = rng.gamma(0.5, 4.0, grid.shape)
    for shift, valid_time in enumerate(TIMES):
        send(tmp_path / "radar", valid_time, np.roll(rain, shift, axis=1))
    (tmp_path / "radar" / "radar_202406010545.h5").write_bytes(b"no radar file")
    root = tmp_path / "root"
    common = ("--root", str(root), "--product", "town", "--verbose")
    server = Prefect(prefect.url, prefect.home, prefect.environment | PLANTED)
    commands = [
        ("ingest", str(tmp_path / "radar"), "--source", "odim", "--set=ingest.timestep=5min"),
        (
            "nowcast",
            "--model",
            "advection",
            "--since",
            "2024-06-01T05:15",
            "--set=nowcast.lead_time=10min",
        ),
        ("verify", "--partial", "--report", str(root / "report.html")),
        ("export", str(root / "export"), "--format", "netcdf"),
        ("status",),
        ("status", "--json"),
        ("doctor",),
        ("archive", "validate"),
        ("nowcast", "--model", "nobody/none"),
    ]
    told, codes = [], []
    for command in commands:
        run = server.run("squall", *command, *common)
        told.append(run.stdout + run.stderr)
        codes.append((command[0], run.returncode))
    assert codes[:3] == [("ingest", 0), ("nowcast", 0), ("verify", 0)], told[:3]
    for what in ("flow_runs", "task_runs", "artifacts", "logs", "flows"):
        told.append(json.dumps(server.api(f"/{what}/filter", {"limit": 200})))
    everything = "\n".join(told)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 50
    for name, secret in PLANTED.items():
        assert secret not in everything, name
        holding = [path for path in files if secret.encode() in path.read_bytes()]
        assert holding == [], name
