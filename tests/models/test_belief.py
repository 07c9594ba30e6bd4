"""Belief: what is refused as no weather, and what is not."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from models.baselines import Persistence
from models.belief import LITTLE_RAIN_MM_H, UnbelievableError, check_believable
from pipelines.grid import Grid
from pipelines.sources.synthetic import PROJECTION

GRID = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), (4, 5))
LEADS = pd.timedelta_range("5min", periods=3, freq="5min")


def past(*rain_rates, hidden=()):
    """Frames of one rain rate each; some columns not observed."""
    times = pd.date_range(end="2024-06-01T05:00", periods=len(rain_rates), freq="5min", name="time")
    values = np.ones((len(rain_rates), *GRID.shape), np.float32)
    values *= np.array(rain_rates, np.float32)[:, None, None]
    values[:, :, list(hidden)] = np.nan
    coords = GRID.coords(lonlat=False) | {"time": times}
    return xr.DataArray(values, dims=("time", "y", "x"), coords=coords)


def forecast_of(frames):
    return Persistence().predict(frames, LEADS)


def check(forecast, frames, *, everywhere=True, most_rain_mm_h=500.0, most_growth=5.0):
    check_believable(
        forecast,
        frames,
        everywhere=everywhere,
        most_rain_mm_h=most_rain_mm_h,
        most_growth=most_growth,
    )


def test_what_stays_as_it_is_is_believed():
    frames = past(1.0, 2.0, hidden=[0])
    check(forecast_of(frames), frames)
    dry = past(0.0, 0.0)
    check(forecast_of(dry), dry)


def test_a_network_has_to_know_every_observed_pixel():
    frames = past(1.0, 2.0, hidden=[0])
    forecast = forecast_of(frames)
    forecast[1, 2, 3] = np.nan
    with pytest.raises(
        UnbelievableError, match=r"6\.2% of the observed pixels unknown at lead time 10min"
    ):
        check(forecast, frames)
    check(forecast, frames, everywhere=False)


def test_a_pixel_that_only_an_earlier_frame_observed_has_to_be_known_too():
    frames = past(1.0, 2.0)
    frames[1, 0, 0] = np.nan
    with pytest.raises(UnbelievableError, match="unknown"):
        check(forecast_of(frames), frames)


def test_a_forecast_that_knows_nothing_is_never_believed():
    frames = past(1.0, 2.0)
    forecast = forecast_of(frames)
    forecast[2] = np.nan
    with pytest.raises(UnbelievableError, match=r"100\.0% of the observed pixels unknown"):
        check(forecast, frames, everywhere=False)


def test_where_nothing_was_observed_nothing_need_be_known():
    frames = past(np.nan, np.nan)
    check(forecast_of(frames), frames)


@pytest.mark.parametrize("value", [500.1, np.inf])
def test_more_rain_than_there_is_anywhere_is_not_believed(value):
    frames = past(100.0, 200.0)
    forecast = forecast_of(frames)
    forecast[0, 0, 0] = 500.0
    check(forecast, frames)
    forecast[0, 0, 0] = value
    with pytest.raises(
        UnbelievableError, match=r"mm/h at lead time 5min; expected at most 500 mm/h"
    ):
        check(forecast, frames)


def test_what_was_observed_may_go_on():
    frames = past(100.0, 200.0)
    frames[0, 0, 0] = 650.0
    forecast = forecast_of(frames)
    forecast[0, 2, 2] = 650.0
    check(forecast, frames)
    forecast[0, 2, 2] = 651.0
    with pytest.raises(UnbelievableError, match="expected at most 650 mm/h"):
        check(forecast, frames)


def test_growth_is_against_the_wettest_past_frame():
    """3 mm/h is the wettest: at most five times as much, 15 mm/h in the mean."""
    frames = past(3.0, 1.0)
    check(forecast_of(frames) * 0 + 15.0, frames)
    with pytest.raises(UnbelievableError, match="3 mm/h at most before; expected at most 15 mm/h"):
        check(forecast_of(frames) * 0 + 15.1, frames)


def test_showers_may_come_up_in_a_dry_sky():
    frames = past(0.0, 0.0)
    check(forecast_of(frames) + 5 * LITTLE_RAIN_MM_H, frames)
    with pytest.raises(UnbelievableError, match=r"at most 2\.5 mm/h"):
        check(forecast_of(frames) + 5 * LITTLE_RAIN_MM_H + 0.01, frames)


def test_each_member_is_looked_at():
    frames = past(1.0, 1.0)
    members = xr.concat([forecast_of(frames)] * 3, dim="member")
    check(members, frames)
    members[2, 1] = 6.0
    with pytest.raises(UnbelievableError, match="at lead time 10min"):
        check(members, frames)


@given(rain_rate=st.floats(0, 500, width=32), growth=st.floats(0, 5))
def test_what_is_within_both_limits_is_believed_and_nothing_else(rain_rate, growth):
    frames = past(rain_rate)
    mean = np.float32(rain_rate * growth)
    believed = mean <= 500 and mean <= 5 * max(np.float32(rain_rate), LITTLE_RAIN_MM_H) * (1 - 1e-6)
    doubtful = mean > 500 or mean > 5 * max(np.float32(rain_rate), LITTLE_RAIN_MM_H) * (1 + 1e-6)
    forecast = forecast_of(frames) * 0 + mean
    if believed:
        check(forecast, frames)
    elif doubtful:
        with pytest.raises(UnbelievableError):
            check(forecast, frames)
