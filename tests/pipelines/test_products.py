"""Products: amounts by hand, probabilities by counting, lazily the same, packed closely."""

import datetime as dt
import weakref

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import storage
from pipelines.forecasts import forecast_dataset
from pipelines.products import (
    ProductSettings,
    encodings,
    exceedance_probability,
    rain_amount,
    window_hours,
    with_products,
)

INIT_TIME = pd.Timestamp("2024-06-01T05:00")
MINUTE = dt.timedelta(minutes=1)


@pytest.fixture(scope="module")
def forecast(grid):
    """A forecast of the given rates: (lead_time) or (member, lead_time), the same everywhere."""

    def make(rates, timestep="5min"):
        rates = np.asarray(rates, "f4")
        dims = ("member", "lead_time")[-rates.ndim :]
        rain_rate = xr.DataArray(
            np.broadcast_to(rates[..., None, None], (*rates.shape, *grid.shape)),
            dims=(*dims, "y", "x"),
            coords=grid.coords(lonlat=False)
            | {
                "lead_time": pd.timedelta_range(timestep, periods=rates.shape[-1], freq=timestep),
                "init_time": INIT_TIME.to_datetime64(),
            },
        )
        return forecast_dataset(rain_rate, {"model": "persistence"})

    return make


def amounts(forecast, minutes):
    return rain_amount(forecast["rain_rate"], minutes * MINUTE)[:, 0, 0].values


def test_an_amount_is_the_rates_of_its_window_by_the_time_they_hold(forecast):
    # 12 mm/h for 5 min is 1 mm.
    made = forecast([12, 24, 36, 0, 60, 12])
    np.testing.assert_allclose(amounts(made, 15), [np.nan, np.nan, 6, 5, 8, 6], rtol=1e-6)
    np.testing.assert_allclose(amounts(made, 30), [np.nan] * 5 + [12], rtol=1e-6)
    np.testing.assert_allclose(amounts(made, 5), [1, 2, 3, 0, 5, 1], rtol=1e-6)


def test_a_window_that_is_no_multiple_of_the_timestep_takes_the_part_it_covers(forecast):
    # Of the window of 7 min that ends at 10 min, the first rate holds for 2 min: 60·2/60 + 30·5/60.
    np.testing.assert_allclose(amounts(forecast([60, 30, 0]), 7), [np.nan, 4.5, 1.0], rtol=1e-6)
    # A window shorter than the timestep.
    np.testing.assert_allclose(amounts(forecast([60, 30], "10min"), 6), [6, 3], rtol=1e-6)
    # 15 min of a timestep of 2: half of the eighth rate back.
    rates = [30.0] * 7 + [0.0]
    np.testing.assert_allclose(amounts(forecast(rates, "2min"), 15)[-1], 30 * 13 / 60, rtol=1e-6)


def test_a_missing_rate_makes_the_amount_missing_where_its_window_has_it(forecast):
    made = amounts(forecast([12, np.nan, 12, 12, 12]), 10)
    np.testing.assert_allclose(made, [np.nan, np.nan, np.nan, 2, 2], rtol=1e-6)
    assert amounts(forecast([0, 0, 0]), 15)[-1] == 0, "dry is not missing"


def test_a_lead_time_that_is_not_there_leaves_its_windows_missing(forecast):
    made = forecast([12] * 6).isel(lead_time=[0, 1, 3, 4, 5])
    np.testing.assert_allclose(amounts(made, 10), [np.nan, 2, np.nan, 2, 2], rtol=1e-6)


def test_one_lead_time_is_a_timestep(forecast):
    np.testing.assert_allclose(amounts(forecast([60], "15min"), 15), [15], rtol=1e-6)


@given(
    timestep=st.integers(1, 15),
    steps=st.integers(1, 20),
    window=st.integers(1, 120),
)
def test_a_window_is_covered_wholly_or_not_at_all(timestep, steps, window):
    lead_times = pd.timedelta_range(f"{timestep}min", periods=steps, freq=f"{timestep}min")
    found, hours = window_hours(lead_times, window * MINUTE)
    assert found == pd.Timedelta(minutes=timestep)
    begins = lead_times - pd.Timedelta(minutes=window)
    covered = np.where(begins >= pd.Timedelta(0), window / 60, 0)
    np.testing.assert_allclose(hours.sum(axis=1), covered, rtol=1e-12)
    assert (hours >= 0).all()
    assert (hours <= timestep / 60).all()
    assert not np.triu(hours, 1).any(), "nothing after the window's end counts"


@given(st.lists(st.integers(0, 200), min_size=6, max_size=12))
def test_an_amount_is_the_sum_of_shorter_ones(forecast, rates):
    made = forecast(rates)
    quarter, half = amounts(made, 15), amounts(made, 30)
    np.testing.assert_allclose(half[5:], quarter[5:] + quarter[2:-3], rtol=1e-5, atol=1e-5)


def test_of_an_ensemble_the_amount_is_of_the_mean_and_missing_where_a_member_is(forecast):
    made = with_products(forecast([[12, 12, 12], [36, 0, np.nan]]), ProductSettings())
    amount = rain_amount(made["rain_rate"], 5 * MINUTE)
    np.testing.assert_allclose(amount[:, 0, 0], [2, 0.5, np.nan], rtol=1e-6)
    assert "ensemble mean" in amount.attrs["long_name"]
    assert amount.attrs["cell_methods"].startswith("realization: mean time: sum")
    assert made["rain_amount_15min"].dims == ("lead_time", "y", "x")


def test_a_probability_is_the_share_of_members_at_or_above_the_threshold(forecast):
    ensemble = forecast([[0.1, 5.0], [0.05, 4.99], [3.0, np.nan], [0.7, 0.0]])["rain_rate"]
    made = exceedance_probability(ensemble, (5.0, 0.1, 0.7))
    assert made["threshold"].values.tolist() == [0.1, 0.7, 5.0], "in order, for CF"
    assert made.dims == ("threshold", "lead_time", "y", "x")
    np.testing.assert_allclose(
        made[..., 0, 0], [[0.75, np.nan], [0.5, np.nan], [0.0, np.nan]], rtol=1e-6
    )
    assert made["threshold"].attrs["units"] == "mm h-1"


def test_a_threshold_is_met_whether_read_in_double_or_single_precision(forecast):
    ensemble = forecast([[0.1], [0.7], [0.3]])["rain_rate"]
    double = (np.array([10, 70, 30]) * 0.01)[:, None, None, None] + xr.zeros_like(
        ensemble.astype("f8")
    )
    for rain_rate in (ensemble, double):
        made = exceedance_probability(rain_rate, (0.1, 0.3, 0.7))
        np.testing.assert_allclose(made[:, 0, 0, 0], [1, 2 / 3, 1 / 3], rtol=1e-6)


def test_products_follow_the_settings_and_the_forecasts_length(forecast):
    single = with_products(forecast([1] * 6), ProductSettings())
    assert set(single.data_vars) == {"rain_rate", "rain_amount_15min", "rain_amount_30min"}
    settings = ProductSettings(accumulations=("10min", "90s"), thresholds_mm_h=())
    ensemble = with_products(forecast(np.ones((2, 6))), settings)
    assert set(ensemble.data_vars) == {"rain_rate", "rain_amount_10min", "rain_amount_90s"}
    bare = forecast(np.ones((2, 12)))
    hour = with_products(bare, ProductSettings())
    assert {"rain_amount_60min", "exceedance_probability"} < set(hour.data_vars)
    told = {name: text for name, text in hour.attrs.items() if name not in bare.attrs}
    assert set(told) == {"calibration", "calibration_note"}
    assert told["calibration"] == "none"


@pytest.mark.parametrize("wrong", [{"accumulations": ["0min"]}, {"thresholds_mm_h": [0.0]}])
def test_settings_that_mean_nothing_are_errors(wrong):
    with pytest.raises(ValidationError, match="greater than"):
        ProductSettings(**wrong)


@pytest.mark.parametrize("members", [None, 3])
def test_lazy_products_are_those_of_numpy(forecast, members):
    rng = np.random.default_rng(1)
    rates = rng.gamma(0.5, 8, (members, 12) if members else 12)
    eager = forecast(rates)
    eager["rain_rate"][..., 2, :3, :] = np.nan
    lazy = with_products(eager.chunk(lead_time=1, y=4), ProductSettings())
    assert all(dask.is_dask_collection(variable.data) for variable in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), with_products(eager, ProductSettings()), rtol=1e-6)


def test_lazy_amounts_hold_the_frames_of_about_a_window(forecast):
    alive, most = 0, 0

    def gone():
        nonlocal alive
        alive -= 1

    def frame(number):
        nonlocal alive, most
        content = np.full((1, 8, 8), number, "f4")
        weakref.finalize(content, gone)
        alive += 1
        most = max(most, alive)
        return content

    rain_rate = forecast(np.ones(40))["rain_rate"].copy(
        data=da.concatenate(
            [
                da.from_delayed(dask.delayed(frame)(number), (1, 8, 8), dtype="f4")
                for number in range(40)
            ]
        )
    )

    class Nowhere:
        def __setitem__(self, key, value):
            pass

    amount = rain_amount(rain_rate, 30 * MINUTE)
    with dask.config.set(scheduler="synchronous"):
        da.store(amount.data, Nowhere(), lock=False)
    assert 6 <= most <= 2 * 6, "of 40"


def test_stored_products_are_what_was_made_within_their_packing(tmp_path, forecast):
    rng = np.random.default_rng(3)
    made = with_products(forecast(rng.gamma(0.5, 8, (7, 12))), ProductSettings())
    made["rain_rate"][..., :2] = np.nan
    made = with_products(made[["rain_rate"]], ProductSettings())
    url = storage.normalise(tmp_path / "forecast.zarr")
    storage.publish_store(made, url, encodings(made))
    opened = xr.open_zarr(url).load()
    for name, within in (("rain_rate", 0.0051), ("exceedance_probability", 0.00251)):
        np.testing.assert_allclose(opened[name], made[name], rtol=0, atol=within)
    for minutes in (15, 30, 60):
        name = f"rain_amount_{minutes}min"
        np.testing.assert_allclose(opened[name], made[name], rtol=0, atol=0.0051)
        assert opened[name][..., :2].isnull().all()
        assert opened[name].attrs["units"] == "mm"
    for name in ("exceedance_probability", "rain_amount_60min"):
        assert opened[name].encoding["chunks"] == (*(1,) * (made[name].ndim - 2), 8, 8)
    raw = xr.open_zarr(url, mask_and_scale=False)
    assert "_FillValue" not in raw["x"].attrs, "a coordinate has no missing values"
    assert raw["exceedance_probability"].dtype == np.uint8
    assert int(raw["exceedance_probability"][0, 0, 0, 0]) == 255


@pytest.mark.parametrize("members", [1, 2, 5, 10, 20, 40])
def test_shares_of_usual_ensembles_are_stored_exactly(tmp_path, forecast, members):
    rates = np.arange(members, dtype=float)[:, None]
    settings = ProductSettings(thresholds_mm_h=tuple(float(k) for k in range(1, members + 1)))
    made = with_products(forecast(rates), settings)
    url = storage.normalise(tmp_path / "forecast.zarr")
    storage.publish_store(made, url, encodings(made))
    shares = xr.open_zarr(url)["exceedance_probability"][:, 0, 0, 0]
    expected = np.arange(members - 1, -1, -1) / members
    np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-7)


def test_what_cannot_be_stored_is_clipped(forecast):
    made = rain_amount(forecast([655.34] * 36)["rain_rate"], 180 * MINUTE)
    assert float(made[-1, 0, 0]) == pytest.approx(655.34)
