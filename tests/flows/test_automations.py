"""The automations of infra/prefect tell of forecasts late, failed or made by the fallback."""

import http.server
import json
import threading

import pytest
import yaml

from .conftest import ROOT, wait_for

pytestmark = pytest.mark.slow
TEMPLATE = ROOT / "infra/prefect/automations.yaml"


@pytest.fixture
def messages():
    """An address that takes messages, and those that came."""
    came: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(json.loads(content)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", came
    server.shutdown()
    server.server_close()


def test_late_failed_and_fallback_each_send_a_message(prefect, messages, tmp_path):
    """As the template's head says, for a product of its own and with 10 s instead of 15 min."""
    url, came = messages
    saved = prefect.run("python", "infra/prefect/webhook.py", url)
    assert saved.returncode == 0, saved.stderr
    text = TEMPLATE.read_text().replace("PRODUCT", "alarmed").replace("BLOCK", saved.stdout.strip())
    file = tmp_path / "automations.yaml"
    file.write_text(text.replace("within: 900", "within: 10"))
    created = prefect.run("prefect", "automation", "create", "--from-file", str(file))
    assert created.returncode == 0, created.stdout + created.stderr
    automations = [one["name"] for one in yaml.safe_load(text)["automations"]]
    assert len(automations) == 3
    try:
        again = prefect.run("python", "infra/prefect/webhook.py", url)
        assert again.stdout == saved.stdout, "the block keeps its id"

        def message(beginning):
            return wait_for(lambda: [one for one in came if one.startswith(beginning)])

        prefect.tell("fell_back('other', TIME, 'of no concern here')")
        prefect.tell("fell_back('alarmed', TIME, 'the champion cannot be read')")
        beginning = "alarmed: forecast of 2024-06-01T05:00:00Z by the fallback"
        assert message(beginning) == [f"{beginning}\nthe champion cannot be read"]

        failing = tmp_path / "failing.py"
        failing.write_text(
            "from prefect import flow\n"
            "@flow(name='nowcast')\n"
            "def fail(): raise ValueError('disk full')\n"
            "fail()\n"
        )
        assert prefect.run("python", str(failing)).returncode == 1
        (failed,) = message("alarmed: the nowcast run ")
        assert "ValueError: disk full" in failed

        prefect.tell("published('alarmed', TIME, 1, 'x', 'net/1', 'good')")
        late = message("alarmed: no new forecast for 15 minutes\nThe last one was of 2024-06-01T05")
        assert late, came
    finally:
        for name in automations:
            prefect.run("prefect", "--no-prompt", "automation", "delete", name)
