"""A Prefect server and a worker run the deployments of prefect.yaml, on a schedule."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest

from pipelines.forecasts import open_forecasts, published_init_times

from .conftest import BIN, DEADLINE_S, ROOT, Prefect, wait_for

pytestmark = pytest.mark.slow


DEPLOYMENTS = {
    "nowcast": "nowcast",
    "backfill": "nowcast",
    "verify": "verify",
    "train": "train",
    "promote": "promote",
    "calibrate": "calibrate",
    "ingest": "ingest",
    "compact": "compact",
    "prune": "prune",
    "validate": "validate",
}
"""Deployments and their flows."""


def runs_of(prefect: Prefect, deployment: dict, *states: str) -> list[dict]:
    chosen: dict = {"deployment_id": {"any_": [deployment["id"]]}}
    if states:
        chosen["state"] = {"type": {"any_": list(states)}}
    return prefect.api("/flow_runs/filter", {"flow_runs": chosen})


@pytest.fixture(scope="module")
def project(tmp_path_factory, synthetic):
    """A folder as a user deploys from: prefect.yaml, the flows, squall.toml."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "prefect.yaml"):
        (folder / name).symlink_to(ROOT / name)
    inbox = folder / "inbox"
    inbox.mkdir()
    files = sorted(synthetic.glob("*.h5"))
    for path in files[:-3]:
        shutil.copy2(path, inbox)
    (folder / "squall.toml").write_text(
        'root = "store"\nproduct = "town"\n'
        f'[ingest]\nsource = "odim"\nlocation = "{inbox}"\ntimestep = "5min"\nworkers = 1\n'
        '[nowcast]\nmodel = "persistence"\nlead_time = "15min"\ncatch_up = "5min"\n'
    )
    return folder, inbox, files[-3:]


@pytest.fixture(scope="module")
def deployed(prefect, project):
    """The deployments as the server knows them, by name."""
    folder, _, _ = project
    created = prefect.run("prefect", "work-pool", "create", "squall", "--type", "process")
    assert created.returncode == 0, created.stderr
    made = prefect.run("prefect", "--no-prompt", "deploy", "--all", cwd=folder)
    assert made.returncode == 0, made.stdout + made.stderr
    return {one["name"]: one for one in prefect.api("/deployments/filter")}


def test_every_deployment_runs_its_flow_and_says_what_it_does(prefect, deployed):
    flows = {flow["id"]: flow["name"] for flow in prefect.api("/flows/filter")}
    assert {name: flows[one["flow_id"]] for name, one in deployed.items()} == DEPLOYMENTS
    for one in deployed.values():
        assert one["description"]
        assert "squall" in one["tags"]


def test_parameters_are_forms_with_descriptions(deployed):
    """Prefect reads them from the flow's docstring, where that has `Args:`."""
    for name, one in deployed.items():
        schema = one["parameter_openapi_schema"]
        for field, form in schema["properties"].items():
            assert form.get("description"), (name, field)
        for section in schema["definitions"].values():
            for field, form in section.get("properties", {}).items():
                assert form.get("description") or "$ref" in form, (name, field)


def test_nothing_but_ingest_runs_twice_at_a_time_and_a_backfill_beside_a_nowcast(deployed):
    alone = {name for name, one in deployed.items() if one["global_concurrency_limit"]}
    assert alone == set(DEPLOYMENTS) - {"ingest"}
    for name in alone:
        assert deployed[name]["global_concurrency_limit"]["limit"] == 1
        assert deployed[name]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    limits = [deployed[name]["global_concurrency_limit"]["id"] for name in ("nowcast", "backfill")]
    assert limits[0] != limits[1]


def test_what_runs_by_itself_and_what_waits_to_be_switched_on(deployed):
    active = {
        name: [schedule["active"] for schedule in one["schedules"]]
        for name, one in deployed.items()
    }
    assert active == {
        "nowcast": [True],
        "verify": [True, True],
        "backfill": [],
        "ingest": [],
        "train": [False],
        "promote": [False],
        "calibrate": [False],
        "compact": [False],
        "prune": [True],
        "validate": [False],
    }


def test_a_schedule_is_switched_off_and_on_through_the_api(prefect, deployed):
    verify = deployed["verify"]

    def switch(active):
        for schedule in verify["schedules"]:
            path = f"/deployments/{verify['id']}/schedules/{schedule['id']}"
            prefect.api(path, {"active": active}, method="PATCH")

    def due():
        return runs_of(prefect, verify, "SCHEDULED")

    assert wait_for(due), "switched on, runs are due"
    switch(False)
    assert wait_for(lambda: not due()), "switched off, none is"
    switch(True)
    assert wait_for(due)


def test_a_published_forecast_is_verified_with_the_recent_ones(prefect, deployed):
    """Whoever backfills a year does not start as many verifications."""

    def triggered():
        runs = runs_of(prefect, deployed["verify"])
        return [run for run in runs if not run["auto_scheduled"]]

    call = "published('town', TIME, 1, 'x', 'persistence', 'good', backfill={})"
    prefect.tell(call.format(True))
    prefect.tell(call.format(False))
    (run,) = wait_for(triggered)
    assert run["parameters"] == {"verify": {"since": "3h"}}
    assert run["created_by"]["type"] == "AUTOMATION"


def test_whoever_delivers_a_frame_can_start_a_nowcast(prefect, deployed):
    def triggered():
        runs = runs_of(prefect, deployed["nowcast"])
        return [run for run in runs if not run["auto_scheduled"]]

    emit = ("event", "emit", "squall.frame.arrived", "--resource-id", "squall.archive.town")
    said = prefect.run("prefect", *emit)
    assert said.returncode == 0, said.stdout + said.stderr
    (run,) = wait_for(triggered)
    assert run["created_by"]["type"] == "AUTOMATION"


def test_the_worker_nowcasts_every_new_frame_on_its_own_schedule(prefect, project, deployed):
    folder, inbox, coming = project
    root = str(folder / "store")
    nowcast = deployed["nowcast"]
    # The same schedule, but every 10 s, and a worker that looks often: a test waits for it.
    prefect.run("prefect", "deployment", "schedule", "clear", "nowcast/nowcast", "-y")
    every = ("schedule", "create", "nowcast/nowcast", "--interval", "10")
    again = prefect.run("prefect", "deployment", *every)
    assert again.returncode == 0, again.stdout + again.stderr

    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [str(BIN / "prefect"), "worker", "start", "--pool", "squall"],
            cwd=folder,
            env=prefect.environment
            | {"PATH": f"{BIN}:/usr/bin:/bin", "PREFECT_WORKER_QUERY_SECONDS": "2"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            finished: list[dict] = []
            published = 0
            end = time.monotonic() + 2 * DEADLINE_S
            while time.monotonic() < end and (len(finished) < 3 or published < 3):
                time.sleep(1)
                ended = runs_of(prefect, nowcast, "COMPLETED", "FAILED", "CRASHED")
                finished = [run for run in ended if run["auto_scheduled"]]  # not by events
                if len(published_init_times(root, "town")) > published:
                    published += 1
                    for path in coming[published - 1 : published]:  # the next frame arrives
                        shutil.copy2(path, inbox)
        finally:
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for the runs it started
                worker.wait(timeout=60)
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
    log_text = (folder / "worker.log").read_text()[-4000:]
    assert published >= 3, log_text
    assert len(finished) >= 3, log_text
    assert {run["state_type"] for run in finished} == {"COMPLETED"}, log_text
    forecasts = open_forecasts(root, "town")
    assert dict(forecasts.sizes)["lead_time"] == 3
    artifacts = {a["key"] for a in prefect.api("/artifacts/latest/filter")}
    assert {"nowcast-report", "nowcast-picture"} <= artifacts
