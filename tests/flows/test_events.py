"""Events: what they say, that they cost no time, and that no failure to send one is anyone's."""

import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import events

from .conftest import ROOT, clean_environment

TIME = pd.Timestamp("2024-06-01T05:00")


@pytest.fixture
def sent():
    """Run something as if a server listened; what was sent to it."""

    def run(emit):
        EventsWorker.set_client_override(AssertingEventsClient)
        AssertingEventsClient.reset()
        try:
            with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
                emit()
                EventsWorker.instance().drain()
        finally:
            EventsWorker.set_client_override(None)
        return [event for client in AssertingEventsClient.all for event in client.events]

    return run


def all_of_them():
    events.published("knmi", TIME, 2, "s3://b/x.zarr", "net/1", "good")
    events.fell_back("knmi", TIME, "no champion")
    events.refused("knmi", TIME, "too few past frames", backfill=True)
    events.superseded("knmi", TIME, 1, 2, "a frame came late")


def test_each_event_says_which_forecast_and_what_of_it(sent):
    found = sent(all_of_them)
    common = {"product": "knmi", "init_time": "2024-06-01T05:00:00Z"}
    published = {"revision": 2, "url": "s3://b/x.zarr", "model": "net/1", "quality": "good"}
    superseded = {"revision": 1, "superseded_by": 2, "reason": "a frame came late"}
    assert [(event.event, event.payload) for event in found] == [
        ("squall.forecast.published", common | published),
        ("squall.forecast.fallback", common | {"reason": "no champion"}),
        ("squall.forecast.refused", common | {"reason": "too few past frames"}),
        ("squall.forecast.superseded", common | superseded),
    ]
    assert {event.resource.id for event in found} == {"squall.forecast.knmi"}
    backfill = [event.resource["squall.backfill"] for event in found]
    assert backfill == ["false", "false", "true", "false"]


def test_a_promotion_is_about_the_model(sent):
    def emit():
        events.promoted("net/2", "net/1", "knmi", "proven by ada")
        events.promoted("net/1", None, "knmi", "forced by ada because it rains")

    found = sent(emit)
    assert [event.event for event in found] == ["squall.model.promoted"] * 2
    assert {event.resource.id for event in found} == {"squall.model.net"}
    assert found[0].payload == {
        "product": "knmi", "model": "net/2", "version": "2", "instead_of": "net/1",
        "reason": "proven by ada",
    }  # fmt: skip
    assert found[1].payload["instead_of"] == "none"


def test_without_a_server_nothing_is_sent_and_none_is_started(sent):
    def run():
        with temporary_settings(restore_defaults={PREFECT_API_URL}):
            all_of_them()

    assert sent(run) == []


def test_a_failure_to_send_is_logged_and_not_raised(monkeypatch, caplog):
    def broken(*_, **__):
        raise OSError("no more threads")

    monkeypatch.setattr(events, "emit_event", broken)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        events.published("knmi", TIME, 1, "x", "net/1", "good")
    assert "squall.forecast.published was not sent: no more threads" in caplog.text


@pytest.mark.slow
def test_a_server_that_is_not_there_costs_the_caller_no_time_and_the_process_ends(tmp_path):
    code = textwrap.dedent(
        """
        import time
        import pandas as pd
        from flows import events
        before = time.monotonic()
        for k in range(20):
            events.published("knmi", pd.Timestamp("2024-06-01"), k, "x", "m", "good")
        print(time.monotonic() - before)
        """
    )
    url = "http://127.0.0.1:9/api"
    before = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment() | {"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(run.stdout) < 1
    assert time.monotonic() - before < 60, "Prefect gives up after about eight tries, a second each"
    assert "Unable to connect" in run.stderr
    assert not (tmp_path / "prefect.db").exists(), "no server was started instead"
