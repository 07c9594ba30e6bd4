"""The whole loop on the real parts, and what becomes of it where they fail."""

import functools
import json
import os
import signal
import time

import numpy as np
import psutil
import pytest

from infra.stack.__main__ import deploy, prefect, run, up
from infra.stack.demo import demo, latest, put, wait
from infra.stack.parts import answer, parts
from infra.stack.place import PRODUCT
from infra.stack.processes import end, process_of
from pipelines.errors import SquallError
from pipelines.sources.synthetic import SyntheticRadar, write_archive

pytestmark = pytest.mark.slow
long = pytest.mark.skipif(
    "LONG_TESTS" not in os.environ,
    reason="minutes of waiting for servers to come back: set LONG_TESTS=1",
)


@pytest.fixture(scope="module")
def stack(place):
    """All of it, up; skipped where a part is not installed."""
    try:
        list(parts(place))
    except SquallError as error:
        pytest.skip(f"no stack: {error}")
    up(place)
    return place


@pytest.fixture(scope="module")
def forecast(stack):
    """What the demo made."""
    made = demo(stack, functools.partial(run, stack), epochs=2)
    deploy(stack)
    return made


def flow_runs(stack, **conditions):
    body = json.dumps({"flow_runs": conditions, "sort": "START_TIME_DESC"}).encode()
    return json.loads(answer(f"{stack.url('prefect')}/api/flow_runs/filter", body))


def test_the_loop_ends_in_a_forecast_that_stock_xarray_reads(stack, forecast):
    assert forecast.sizes["lead_time"] == 6
    assert forecast.attrs["model"].startswith(f"{PRODUCT}/")
    assert forecast.attrs["quality"] == "good"
    assert np.isfinite(forecast["rain_rate"].values).any()
    scheduled = [one for one in flow_runs(stack) if one["auto_scheduled"]]
    assert any(one["state_type"] == "COMPLETED" for one in scheduled)
    files = stack.bucket()
    root = stack.environment["SQUALL_ROOT"].removeprefix("s3://")
    assert any(path.endswith(".pt") for path in files.find(f"{root}/runs"))
    assert files.exists(f"{root}/scores/{PRODUCT}/_skill.json")


def test_no_credential_is_in_what_the_stack_wrote(stack, forecast):
    """Neither in the bucket, nor in a log, nor in what Prefect or Ray tell."""
    wanted = [text.encode() for text in (*stack.secrets.values(), stack.ray_token.read_text())]
    files = stack.bucket()
    for path in files.find("squall"):
        content = files.cat_file(path)
        assert not any(secret in content for secret in wanted), path
    for path in (stack.folder / "logs").iterdir():
        assert not any(secret in path.read_bytes() for secret in wanted), path
    token = {"Authorization": f"Bearer {stack.ray_token.read_text()}"}
    told = answer(f"{stack.url('ray-dashboard')}/api/jobs/", headers=token)
    for what in ("flow_runs", "task_runs", "artifacts", "logs", "deployments"):
        told += answer(f"{stack.url('prefect')}/api/{what}/filter", b"{}")
    assert not any(secret in told for secret in wanted)


def test_a_second_up_starts_nothing_and_a_dead_part_alone_is_started_again(stack):
    before = {part.name: process_of(stack.folder, part.name).pid for part in parts(stack)}
    os.kill(before["dask"], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(before["dask"])], timeout=10)
    up(stack)
    after = {part.name: process_of(stack.folder, part.name).pid for part in parts(stack)}
    assert {name for name in after if after[name] != before[name]} - {"dask-workers"} == {"dask"}


# Faults ------------------------------------------------------------------------------------------


@pytest.fixture
def more_frames(stack, forecast, tmp_path_factory):
    """Puts the next frame of the same rain into the bucket; the label of its time."""
    folder = tmp_path_factory.mktemp("later")
    write_archive(folder, SyntheticRadar(frames=120))
    newest = latest(stack.bucket(), stack.environment["SQUALL_ROOT"])["init_time"]
    known = newest.translate(str.maketrans("", "", "-:TZ"))
    later = [path for path in sorted(folder.iterdir()) if path.stem[-14:] > known]

    def next_frame():
        path = later.pop(0)
        put(stack.bucket(), [path])
        stamp = path.stem[-14:]
        return f"{stamp[:8]}T{stamp[8:12]}Z"

    return next_frame


def forecast_of(stack, label):
    """Whether the forecast of an init_time is published, whole."""
    url = f"{stack.environment['SQUALL_ROOT']}/forecasts/{PRODUCT}/{label}.zarr/zarr.json"
    return stack.bucket().exists(url.removeprefix("s3://"))


def look(stack):
    """Have the worker make a nowcast run, as a schedule does."""
    return prefect(stack, "deployment", "run", "nowcast/nowcast")


def look_until(stack, label):
    """As a schedule does, again and again; until the forecast is there."""

    def looked():
        if forecast_of(stack, label):
            return True
        look(stack)
        time.sleep(15)
        return False

    wait(looked, "a forecast", stack)


def running(stack):
    """The processes of runs that the worker has started."""
    return psutil.Process(process_of(stack.folder, "worker").pid).children(recursive=True)


@long
@pytest.mark.parametrize("name", ["postgres", "prefect"])
def test_a_database_or_server_that_restarts_is_found_again(stack, part, more_frames, name):
    label = more_frames()
    look(stack)
    time.sleep(2)
    end(stack.folder, name)
    time.sleep(5)
    part(name)
    up(stack)
    look_until(stack, label)


@long
def test_a_worker_that_is_killed_with_its_run_blocks_nothing(stack, part, more_frames):
    label = more_frames()
    look(stack)
    wait(lambda: running(stack), "a run", stack)
    for process in [process_of(stack.folder, "worker"), *running(stack)]:
        process.kill()
    part("worker")
    assert not forecast_of(stack, label), "it was killed before it had published"
    look_until(stack, label)


TRAINING = (
    "--set=train.workers=1",
    "--set=train.epochs=1",
    "--set=train.samples_per_epoch=8",
    "--set=train.batch_size=4",
    "--set=train.crop=64",
    "--set=train.past=20min",
    "--set=train.future=30min",
    "--set=train.baselines=[]",
    "--set=train.network.hidden_channels=[8]",
)
"""As little as can be."""


@long
def test_a_ray_head_that_is_gone_is_said_and_found_again(stack, part, forecast):
    end(stack.folder, "ray")
    submit = ("squall", "train", "--submit", stack.url("ray-dashboard"))
    with pytest.raises(SquallError, match="no Ray cluster to be reached"):
        run(stack, *submit, *TRAINING)
    part("ray")
    assert "model: s3://" in run(stack, *submit, *TRAINING)
