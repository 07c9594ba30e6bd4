"""A Prefect server and a worker run the deployments of prefect.yaml, on a schedule."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request

import pytest

from pipelines.forecasts import open_forecasts, published_init_times

from .conftest import BIN, DEADLINE_S, ROOT, Prefect

pytestmark = pytest.mark.slow


def api(prefect: Prefect, path: str, body: dict) -> list:
    request = urllib.request.Request(
        f"{prefect.url}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def finished_runs(prefect: Prefect, deployment: str) -> list[dict]:
    ended = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}
    chosen = {"deployment_id": {"any_": [deployment]}, "state": ended}
    return api(prefect, "/flow_runs/filter", {"flow_runs": chosen})


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


def test_the_worker_nowcasts_every_new_frame_on_its_own_schedule(prefect, project):
    folder, inbox, coming = project
    root = str(folder / "store")
    created = prefect.run("prefect", "work-pool", "create", "squall", "--type", "process")
    assert created.returncode == 0, created.stderr
    deployed = prefect.run("prefect", "--no-prompt", "deploy", "--all", cwd=folder)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    deployments = api(prefect, "/deployments/filter", {})
    names = {deployment["name"]: deployment for deployment in deployments}
    assert set(names) == {"scheduled", "on-demand", "nightly", "hourly", "weekly"}
    scheduled = names["scheduled"]
    assert scheduled["schedules"][0]["active"]
    form = scheduled["parameter_openapi_schema"]["definitions"]["NowcastSettings"]["properties"]
    assert form["lead_time"]["description"]
    # The same schedule, but every 20 s, so that a test can wait for it.
    prefect.run("prefect", "deployment", "schedule", "clear", "nowcast/scheduled", "-y")
    every = ("schedule", "create", "nowcast/scheduled", "--interval", "20")
    again = prefect.run("prefect", "deployment", *every)
    assert again.returncode == 0, again.stdout + again.stderr

    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [str(BIN / "prefect"), "worker", "start", "--pool", "squall"],
            cwd=folder,
            env=prefect.environment | {"PATH": f"{BIN}:/usr/bin:/bin"},
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
                finished = finished_runs(prefect, scheduled["id"])
                if len(published_init_times(root, "town")) > published:
                    published += 1
                    shutil.copy2(coming[published - 1], inbox)  # the next frame arrives
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
    assert all(run["auto_scheduled"] for run in finished), "runs came from the schedule"
    forecasts = open_forecasts(root, "town")
    assert dict(forecasts.sizes)["lead_time"] == 3
    artifacts = {a["key"] for a in api(prefect, "/artifacts/latest/filter", {})}
    assert {"nowcast-report", "nowcast-picture"} <= artifacts
