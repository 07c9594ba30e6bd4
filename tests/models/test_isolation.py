"""A forecaster in a child process: whatever it does, the caller goes on."""

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr

from models.baselines import Persistence
from models.forecaster import Forecaster
from models.isolation import (
    ForecasterDiedError,
    ForecasterLostError,
    ForecasterTimeoutError,
    Isolated,
)
from models.prediction import get_forecaster
from models.registry import save_model
from models.training import NetworkSettings, TrainSettings
from pipelines.errors import NotFoundError, SquallError
from pipelines.grid import Grid
from pipelines.sources.synthetic import PROJECTION

from . import wayward
from .wayward import Counting, Wayward

pytestmark = pytest.mark.slow

TIMESTEP = pd.Timedelta("5min")
LEADS = pd.timedelta_range(TIMESTEP, periods=3, freq=TIMESTEP)
GRID = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), (6, 5))


def past(what=wayward.WELL, grid=GRID):
    times = pd.date_range(end="2024-06-01T05:00", periods=2, freq=TIMESTEP, name="time")
    values = np.random.default_rng(0).gamma(1, size=(2, *grid.shape)).astype(np.float32)
    values[-1, 0, 0], values[-1, 0, 1] = what, np.nan
    coords = grid.coords(lonlat=False) | {"time": times}
    return xr.DataArray(values, dims=("time", "y", "x"), coords=coords)


@pytest.fixture(scope="module")
def isolated():
    """One for all tests: each leaves it usable, which is what they are about."""
    isolated = Isolated(Wayward, timeout_s=60.0, threads=1)
    yield isolated
    isolated.close()


def assert_well(isolated):
    expected = Persistence().predict(past(), LEADS)
    xr.testing.assert_identical(isolated.predict(past(), LEADS), expected)


def gone(pid, within_s=20.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_it_is_the_forecaster_that_it_runs(isolated):
    assert isinstance(isolated, Forecaster)
    assert (isolated.name, isolated.past_frames) == ("wayward", 2)
    assert isolated.paper == Persistence.paper
    assert isolated.about.device == "cpu"
    assert isolated.about.pid != os.getpid()
    assert_well(isolated)
    assert 10e6 < isolated.peak_bytes < 4e9


def test_a_forecast_can_be_written_to(isolated):
    forecast = isolated.predict(past(), LEADS)
    forecast[:] = 1.0
    assert (forecast == 1).all()


@pytest.mark.parametrize("what", [wayward.HANG, wayward.HANG_DEAF])
def test_a_forecaster_that_hangs_is_ended_by_the_deadline(isolated, what):
    pid = isolated.about.pid
    began = time.monotonic()
    with pytest.raises(ForecasterTimeoutError, match=r"did not forecast in time.*starts anew"):
        isolated.predict(past(what), LEADS, timeout_s=1.0)
    assert 1.0 <= time.monotonic() - began < 5.0
    assert gone(pid)
    assert_well(isolated)
    assert isolated.about.pid != pid


@pytest.mark.parametrize(
    ("what", "how"),
    [
        (wayward.KILLED, "found SIGKILL"),
        (wayward.SEGFAULT, "found SIGSEGV"),
        (wayward.EXIT, "found exit 3"),
    ],
)
def test_a_forecaster_that_dies_is_noticed_at_once(isolated, what, how):
    isolated.about  # noqa: B018 (loaded)
    began = time.monotonic()
    with pytest.raises(ForecasterDiedError, match=how) as raised:
        isolated.predict(past(what), LEADS)
    assert time.monotonic() - began < 10
    assert isinstance(raised.value, ForecasterLostError)
    assert_well(isolated)


def test_one_that_was_killed_between_two_forecasts_is_started_anew(isolated):
    pid = isolated.about.pid
    psutil.Process(pid).kill()
    isolated._child.process.join(20)
    assert_well(isolated)
    assert isolated.about.pid != pid


def test_what_the_forecaster_raises_comes_back_as_it_was(isolated):
    pid = isolated.about.pid
    with pytest.raises(SquallError) as raised:
        isolated.predict(past(wayward.RAISE), LEADS)
    error = raised.value
    assert (error.problem, error.found, error.expected) == ("it is wayward", 1, 2)
    assert "wayward.py" in error.__notes__[0]
    with pytest.raises(Exception, match="this and that"):
        isolated.predict(past(wayward.RAISE_ODDLY), LEADS)
    assert_well(isolated)
    assert isolated.about.pid == pid


def test_nothing_is_left_of_many_forecasts(isolated):
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), (400, 500))
    frames, leads = past(grid=grid), pd.timedelta_range(TIMESTEP, periods=12, freq=TIMESTEP)
    here, child = psutil.Process(), psutil.Process(isolated.about.pid)

    def counted():
        for _ in range(15):
            isolated.predict(frames, leads)  # 9.6 MB each
        folder = Path(isolated._child.folder.name)
        memory = [process.memory_info().rss for process in (here, child)]
        return [here.num_fds(), child.num_fds(), len(list(folder.iterdir()))], memory

    (before, memory_before), (after, memory_after) = counted(), counted()
    assert after == before
    assert after[-1] == 0
    assert np.subtract(memory_after, memory_before).max() < 30e6


def test_an_interrupted_forecast_is_not_taken_for_the_next(isolated, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    isolated.about  # noqa: B018 (loaded)
    with monkeypatch.context() as patch:
        patch.setattr("models.isolation.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            isolated.predict(past() + 1, LEADS)
    assert_well(isolated)


def test_threads_take_turns(isolated):
    forecasts = {}

    def forecast(rain_rate):
        frames = past()
        frames[:, 1:] = rain_rate
        forecasts[rain_rate] = isolated.predict(frames, LEADS)

    threads = [threading.Thread(target=forecast, args=(rain_rate,)) for rain_rate in (3.0, 5.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert forecasts.keys() == {3.0, 5.0}
    assert all((forecasts[rain_rate][:, 1:] == rain_rate).all() for rain_rate in forecasts)


# Loading -----------------------------------------------------------------------------------------


def test_loading_begins_at_once_and_nobody_waits_for_it():
    began = time.monotonic()
    isolated = Isolated(partial(wayward.slow_to_load, 3.0))
    assert time.monotonic() - began < 2
    with pytest.raises(ForecasterTimeoutError, match="it goes on loading"):
        isolated.predict(past(), LEADS, timeout_s=0.2)
    pid = isolated._child.process.pid
    assert_well(isolated)
    assert isolated.about.pid == pid
    isolated.close()
    assert gone(pid)


def test_loading_has_a_limit_of_its_own():
    isolated = Isolated(partial(wayward.slow_to_load, 600.0), load_timeout_s=8.0)
    pid = isolated._child.process.pid
    with pytest.raises(ForecasterTimeoutError, match=r"did not load in time.*starts anew"):
        isolated.predict(past(), LEADS, timeout_s=60.0)
    assert gone(pid)
    isolated.close()


def test_what_loading_raises_comes_back_every_time(tmp_path):
    isolated = Isolated(wayward.loads_badly)
    for _ in range(2):
        with pytest.raises(SquallError, match="nothing to load"):
            isolated.predict(past(), LEADS)
    with pytest.raises(ForecasterDiedError, match=r"could load: found exit 7"):
        Isolated(wayward.dies_loading).predict(past(), LEADS)
    registry = Isolated(partial(get_forecaster, str(tmp_path), "none"))
    with pytest.raises(NotFoundError, match="no trained model called 'none'"):
        registry.past_frames  # noqa: B018


def test_it_has_its_threads_and_a_malloc_that_keeps_memory():
    isolated = Isolated(Counting, threads=2)
    pid, threads = isolated.predict(past(), LEADS)[0, 0, :2].values
    assert (pid, threads) == (isolated.about.pid, 2)
    assert "MALLOC_TRIM_THRESHOLD_" in psutil.Process(int(pid)).environ()
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    isolated.close()


def test_a_network_forecasts_as_it_does_here(tmp_path):
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(4,)))
    known = {"past_frames": 2, "timestep": TIMESTEP, "archive": {}, "metrics": {}}
    weights = settings.build_network().state_dict()
    name = f"net/{save_model(str(tmp_path), 'net', weights, settings, **known)}"
    here = get_forecaster(str(tmp_path), name)
    isolated = Isolated(partial(get_forecaster, str(tmp_path), name), threads=1)
    xr.testing.assert_allclose(isolated.predict(past(), LEADS), here.predict(past(), LEADS))
    assert (isolated.name, isolated.past_frames) == (name, 2)
    assert isolated.about.weights_sha256 == here.model.weights_sha256
    isolated.close()


# The parent's end --------------------------------------------------------------------------------

PARENT = """
from models.isolation import Isolated
from tests.models.wayward import Wayward
from tests.models.test_isolation import LEADS, past
if __name__ == "__main__":
    isolated = Isolated(Wayward, timeout_s={timeout})
    print(isolated.about.pid, isolated._child.folder.name, flush=True)
    isolated.predict(past({what}), LEADS)
    {end}
"""


@pytest.mark.parametrize(
    ("what", "timeout"), [(wayward.WELL, 60), (wayward.HANG, 60), (wayward.HANG_DEAF, 3)]
)
def test_the_child_ends_with_a_parent_that_is_killed(tmp_path, what, timeout):
    """One that lets no thread run, GRACE_S after the deadline that it was given."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(timeout=timeout, what=what, end="input()"))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as parent:
        pid, folder = parent.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        time.sleep(1.5)  # into the forecast
        parent.kill()
    assert gone(int(pid), within_s=30)
    assert what == wayward.HANG_DEAF or not Path(folder.decode()).exists()


def test_a_parent_that_ends_leaves_nothing(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(timeout=60, what=wayward.WELL, end=""))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, timeout=120
    )
    pid, folder = done.stdout.split()
    assert (done.returncode, done.stderr) == (0, b"")
    assert gone(int(pid))
    assert not Path(folder.decode()).exists()
