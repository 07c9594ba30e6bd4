"""Servers and commands for the tests of the flows."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEADLINE_S = 180
SERVICE_UNAVAILABLE = 503


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that points Squall, Prefect or Ray elsewhere."""
    prefixes = ("SQUALL_", "PREFECT_", "RAY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    return kept | {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "RAY_AUTH_MODE": "disabled",
        "COLUMNS": "200",
    }


@dataclass
class Prefect:
    """A Prefect server on SQLite, for this test session."""

    url: str
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's commands against the server."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * 3,
            check=False,
        )

    def api(self, path: str, body: dict | None = None, method: str = "POST") -> Any:
        """What the server's API answers."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=json.dumps(body or {}).encode() if method != "GET" else None,
            headers={"Content-Type": "application/json"},
            method=method,
        )
        for attempts_left in reversed(range(5)):
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != SERVICE_UNAVAILABLE or not attempts_left:
                    raise
                time.sleep(2)  # SQLite is locked; Prefect's own client asks again, too
        raise AssertionError("the last attempt returns or raises")

    def tell(self, call: str) -> None:
        """Send an event: a call of a function of `flows.events`, with TIME an init_time."""
        code = (
            "import pandas as pd; from flows import events; "
            f"TIME = pd.Timestamp('2024-06-01T05:00'); events.{call}"
        )
        sent = self.run("python", "-c", code)
        assert sent.returncode == 0, sent.stderr


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = clean_environment() | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    often = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10"}  # a test waits for it
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment | often,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_healthy(url, server, home / "server.log")
            yield Prefect(url, home, environment)
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_for(found: Callable[[], Any], within_s: float = DEADLINE_S) -> Any:
    """The first answer that is not empty; the last one when the time is over."""
    end = time.monotonic() + within_s
    while not (answer := found()) and time.monotonic() < end:
        time.sleep(0.5)
    return answer


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        assert server.poll() is None, f"the Prefect server died: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no Prefect server after {DEADLINE_S} s: {log.read_text()[-2000:]}")
