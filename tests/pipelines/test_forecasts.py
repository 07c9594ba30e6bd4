"""Forecasts: complete or not there, published once, and open to anyone with xarray."""

import json
import subprocess
import sys
import textwrap
import uuid

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines import once, storage
from pipelines.errors import ExistsError, NotFoundError
from pipelines.forecasts import (
    forecast_dataset,
    forecast_url,
    is_published,
    latest_init_time,
    open_forecast,
    open_forecasts,
    published_init_times,
)
from pipelines.publishing import publish

INIT_TIME = pd.Timestamp("2024-06-01T05:00")
TIMESTEP = pd.Timedelta("5min")


@pytest.fixture(scope="module")
def make(grid):
    """A forecast of 0.5 + lead-time number mm/h; the first row dry, the last one unknown."""

    def make_forecast(init_time=INIT_TIME, lead_times=3, rain_rate=0.5):
        values = np.full((lead_times, *grid.shape), float(rain_rate))
        values += np.arange(lead_times)[:, None, None]
        values[:, 0], values[:, -1] = 0.0, np.nan
        array = xr.DataArray(
            values,
            dims=("lead_time", "y", "x"),
            coords=grid.coords(lonlat=False)
            | {
                "lead_time": pd.timedelta_range(TIMESTEP, periods=lead_times, freq=TIMESTEP),
                "init_time": init_time.to_datetime64(),
            },
        )
        return forecast_dataset(
            array, {"model": "persistence", "input_times": ["2024-06-01T05:00:00Z"]}
        )

    return make_forecast


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def keys_of(forecast, monkeypatch):
    """The keys that publishing writes, in order."""
    written = []
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "create_bytes"):
            own = getattr(storage, name)
            patch.setattr(
                storage,
                name,
                lambda url, content, own=own: (written.append(url), own(url, content))[1],
            )
        publish(f"memory://{uuid.uuid4().hex}", "test", forecast)
    return written


def test_a_forecast_has_its_place(root):
    assert forecast_url(root, "knmi", INIT_TIME) == (
        f"file://{root}/forecasts/knmi/20240601T0500Z.zarr"
    )


def test_a_published_forecast_reads_as_it_was_made(root, make):
    url = publish(root, "test", make())
    opened = open_forecast(root, "test", INIT_TIME).load()
    np.testing.assert_allclose(opened["rain_rate"], make()["rain_rate"], atol=1e-9)
    assert url == forecast_url(root, "test", INIT_TIME)
    assert opened.attrs["model"] == "persistence"
    assert opened.attrs["input_times"] == ["2024-06-01T05:00:00Z"]
    assert abs(pd.Timestamp(opened.attrs["publish_time"]) - pd.Timestamp.now("UTC")) < pd.Timedelta(
        "1min"
    )


def test_rain_that_cannot_be_is_clipped_and_the_unknown_stays_unknown(root, make):
    forecast = make(rain_rate=-3.0, lead_times=2)
    assert (forecast["rain_rate"][:, 1:-1] == 0).all()
    assert forecast["rain_rate"][:, -1].isnull().all()
    assert float(make(rain_rate=1e6)["rain_rate"].max()) == pytest.approx(655.34)


STOCK_READER = """
    import sys
    import numpy as np
    import xarray as xr

    dataset = xr.open_zarr(sys.argv[1])
    ours = {name.partition(".")[0] for name in sys.modules} & {"pipelines", "models", "flows"}
    assert not ours, ours

    rain_rate = dataset["rain_rate"]
    assert rain_rate.dims == ("lead_time", "y", "x")
    assert rain_rate.attrs["units"] == "mm h-1"
    assert rain_rate.attrs["standard_name"] == "rainfall_rate"
    assert rain_rate.attrs["grid_mapping"] == "crs"
    assert dataset["crs"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
        assert dataset[name].attrs["units"] == units
    assert dataset["lead_time"].dtype.kind == "m", dataset["lead_time"].dtype
    minutes = dataset["lead_time"].values / np.timedelta64(1, "m")
    assert minutes.tolist() == [5, 10, 15]
    assert dataset["lead_time"].attrs["standard_name"] == "forecast_period"
    assert dataset["init_time"].values == np.datetime64("2024-06-01T05:00")
    assert dataset["init_time"].attrs["standard_name"] == "forecast_reference_time"
    assert (dataset["valid_time"] == dataset["init_time"] + dataset["lead_time"]).all()
    assert dataset["valid_time"].attrs["standard_name"] == "time"
    assert set(dataset.data_vars) == {"rain_rate"}

    values = rain_rate.values
    np.testing.assert_allclose(values[:, 1, 0], [0.5, 1.5, 2.5], atol=1e-9)
    assert (values[:, 0] == 0).all(), "dry is 0"
    assert np.isnan(values[:, -1]).all(), "unknown is NaN"
    assert dataset["rain_rate"].sel(lead_time="10min").shape == (8, 8)
    print("read")
"""


def test_stock_xarray_opens_a_forecast_elsewhere_and_without_us(root, make, tmp_path):
    url = publish(root, "test", make())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(STOCK_READER), url],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "read\n", done.stderr


def test_a_reader_never_sees_part_of_a_forecast(make, monkeypatch):
    keys = [key.rsplit(".zarr/", 1)[1] for key in keys_of(make(), monkeypatch) if ".zarr/" in key]
    keys = [key for key in keys if not key.isdecimal()]  # claims
    assert keys[-1] == "zarr.json"
    assert len(keys) > 10
    root = f"memory://{uuid.uuid4().hex}"
    publish(root, "test", make())
    for number, last in enumerate(keys, start=1):
        init_time = INIT_TIME + number * TIMESTEP

        with monkeypatch.context() as patch:
            patch.setattr(once, "LEASE_S", 0.2)
            for name in ("write_bytes", "create_bytes"):
                own = getattr(storage, name)

                def die(url, content, last=last, own=own):
                    if url.endswith(f".zarr/{last}"):
                        raise KeyboardInterrupt
                    return own(url, content)

                patch.setattr(storage, name, die)
            with pytest.raises(KeyboardInterrupt):
                publish(root, "test", make(init_time))
        assert not is_published(root, "test", init_time), last
        assert latest_init_time(root, "test") == INIT_TIME, last
        with pytest.raises(NotFoundError, match="no such forecast"):
            open_forecast(root, "test", init_time)
        with pytest.raises(FileNotFoundError):
            xr.open_zarr(forecast_url(root, "test", init_time))
    assert list(published_init_times(root, "test")) == [INIT_TIME]
    assert open_forecasts(root, "test").sizes["init_time"] == 1

    monkeypatch.setattr(once, "LEASE_S", 0.2)
    publish(root, "test", make(init_time))  # the next attempt succeeds
    assert list(published_init_times(root, "test")) == [INIT_TIME, init_time]


@pytest.mark.parametrize("place", ["folder", "object store"])
def test_nothing_of_an_attempt_that_died_shows_in_the_next(tmp_path, make, monkeypatch, place):
    root = str(tmp_path) if place == "folder" else f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(once, "LEASE_S", 0.2)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(once, "_stamped", die)
        with pytest.raises(KeyboardInterrupt):
            publish(root, "test", make(rain_rate=50.0, lead_times=4))
    unknown = make()
    unknown["rain_rate"][:] = np.nan
    publish(root, "test", unknown)
    opened = open_forecast(root, "test", INIT_TIME)
    assert opened.sizes["lead_time"] == 3
    assert opened["rain_rate"].isnull().all()


def test_a_forecast_is_published_once(root, make):
    publish(root, "test", make())
    with pytest.raises(ExistsError, match="forecasts are immutable"):
        publish(root, "test", make(rain_rate=9.0))
    assert float(open_forecast(root, "test", INIT_TIME)["rain_rate"][0, 1, 0]) == 0.5


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_latest_moves_only_forward(root, make, order):
    newest = None
    for number in order:
        init_time = INIT_TIME + number * TIMESTEP
        publish(root, "test", make(init_time))
        newest = init_time if newest is None else max(newest, init_time)
        assert latest_init_time(root, "test") == newest
    content = storage.read_json(storage.join(root, "forecasts", "test", "latest.json"))
    assert content == {"init_time": "2024-06-01T05:10:00Z", "forecast": "20240601T0510Z.zarr"}


def test_latest_is_moved_after_the_forecast_is_complete(make, monkeypatch):
    assert [key.rsplit("/", 1)[1] for key in keys_of(make(), monkeypatch)][-2:] == [
        "zarr.json",
        "latest.json",
    ]


def test_all_forecasts_open_as_one_by_init_time_and_lead_time(root, make):
    for number in (1, 0, 2):
        publish(root, "test", make(INIT_TIME + number * TIMESTEP, rain_rate=number))
    forecasts = open_forecasts(root, "test")
    assert forecasts["rain_rate"].dims == ("init_time", "lead_time", "y", "x")
    assert list(forecasts["init_time"].values) == [INIT_TIME + k * TIMESTEP for k in range(3)]
    assert forecasts["valid_time"].dims == ("init_time", "lead_time")
    np.testing.assert_array_equal(
        forecasts["valid_time"], forecasts["init_time"] + forecasts["lead_time"]
    )
    np.testing.assert_allclose(
        forecasts["rain_rate"][:, :, 1, 0], [[0, 1, 2], [1, 2, 3], [2, 3, 4]], atol=1e-9
    )
    assert forecasts["rain_rate"].chunks is not None, "lazy"
    assert forecasts["lat"].dims == ("y", "x")
    assert forecasts["rain_rate"].attrs["units"] == "mm h-1"


def test_a_shorter_forecast_is_missing_at_the_lead_times_it_lacks(root, make):
    publish(root, "test", make(lead_times=3))
    publish(root, "test", make(INIT_TIME + TIMESTEP, lead_times=2))
    forecasts = open_forecasts(root, "test")
    assert forecasts.sizes["lead_time"] == 3
    assert forecasts["rain_rate"][1, 2].isnull().all()
    assert forecasts["rain_rate"][1, 1, 1:-1].notnull().all()


def test_products_do_not_mix(root, make):
    publish(root, "one", make())
    assert not is_published(root, "other", INIT_TIME)
    with pytest.raises(NotFoundError, match="no forecasts"):
        open_forecasts(root, "other")
    assert latest_init_time(root, "other") is None
    assert len(published_init_times(root, "other")) == 0


def test_what_else_lies_in_the_folder_is_no_forecast(root, make, tmp_path):
    publish(root, "test", make())
    for name in ("notes.zarr", "20240601T0505Z.zarr", "20240601T0510Z.zip"):
        (tmp_path / "forecasts/test" / name).mkdir()
    assert list(published_init_times(root, "test")) == [INIT_TIME]


def test_lead_times_are_stored_in_seconds(root, make):
    url = publish(root, "test", make())
    stored = xr.open_zarr(url, decode_timedelta=False, decode_times=False)
    assert stored["lead_time"].attrs["units"] == "seconds"
    assert stored["lead_time"].values.tolist() == [300, 600, 900]
    assert stored["init_time"].attrs["units"] == "seconds since 1970-01-01"


def test_chunks_are_one_lead_time_each(root, make):
    url = publish(root, "test", make())
    metadata = json.loads(storage.read_bytes(f"{url}/rain_rate/zarr.json"))
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 8, 8]
    assert metadata["data_type"] == "uint16"
    assert metadata["fill_value"] == 65535
