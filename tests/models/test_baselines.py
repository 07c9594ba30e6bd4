"""Baselines: rain that stays, rain that moves on, and skies that crash nothing."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from models.baselines import BASELINES, Advection, Persistence, build_baseline
from pipelines.errors import UnknownNameError
from pipelines.grid import Grid
from pipelines.sources.synthetic import PROJECTION

TIMESTEP = pd.Timedelta("5min")
LEAD_TIMES = pd.timedelta_range(TIMESTEP, periods=4, freq=TIMESTEP, name="lead_time")
SIZE = 64
GRID = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), (SIZE, SIZE))


def past(*fields):
    """Past frames (time, y, x), five minutes apart, the last one at 05:00."""
    times = pd.date_range(end="2024-06-01T05:00", periods=len(fields), freq=TIMESTEP, name="time")
    return xr.DataArray(
        np.stack(fields).astype(np.float32),
        dims=("time", "y", "x"),
        coords=GRID.coords(lonlat=False) | {"time": times},
    )


def cells(column, row=30.0):
    """Three rain cells whose middle one is at (row, column)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    field = np.zeros((SIZE, SIZE))
    for dy, dx, peak in ((-14, -4, 8.0), (0, 0, 20.0), (13, 5, 12.0)):
        field += peak * np.exp(-((y - row - dy) ** 2 + (x - column - dx) ** 2) / 18)
    return np.where(field < 0.1, 0.0, field)


DRY = np.zeros((SIZE, SIZE))
MISSING = np.full((SIZE, SIZE), np.nan)
MOVING = [cells(20.0), cells(22.0), cells(24.0)]


@pytest.mark.parametrize("name", BASELINES)
def test_a_forecast_keeps_the_labels_of_its_frames(name):
    forecast = build_baseline(name).predict(past(*MOVING), LEAD_TIMES)
    assert forecast.dims == ("lead_time", "y", "x")
    assert forecast.dtype == np.float32
    assert list(forecast["lead_time"].values) == list(LEAD_TIMES)
    assert forecast["init_time"].values == np.datetime64("2024-06-01T05:00")
    assert Grid.of(forecast).matches(GRID)
    assert forecast.attrs["units"] == "mm h-1"


def test_persistence_is_the_newest_frame_at_every_lead_time():
    newest = cells(24.0)
    newest[:5] = np.nan
    forecast = Persistence().predict(past(DRY, newest), LEAD_TIMES)
    for lead_time in LEAD_TIMES:
        np.testing.assert_array_equal(forecast.sel(lead_time=lead_time), newest.astype(np.float32))


def test_advection_moves_rain_on_as_it_moved():
    # Two pixels eastward per timestep: at 20 minutes the cells are eight further.
    forecast = Advection().predict(past(*MOVING), LEAD_TIMES)
    for number, lead_time in enumerate(LEAD_TIMES, start=1):
        field = forecast.sel(lead_time=lead_time).values
        row, column = np.unravel_index(np.nanargmax(field), field.shape)
        assert row == pytest.approx(30, abs=1)
        assert column == pytest.approx(24 + 2 * number, abs=1)


def test_advection_beats_persistence_on_rain_that_moves():
    truth = np.stack([cells(24.0 + 2 * number) for number in range(1, 5)])
    errors = {}
    for name in BASELINES:
        forecast = build_baseline(name).predict(past(*MOVING), LEAD_TIMES).values
        errors[name] = np.nanmean((forecast - truth) ** 2)
    assert errors["advection"] < errors["persistence"] / 4


def test_advection_takes_lead_times_as_durations_and_not_as_counts():
    all_of_them = Advection().predict(past(*MOVING), LEAD_TIMES)
    some = Advection().predict(past(*MOVING), LEAD_TIMES[[1, 3]])
    np.testing.assert_allclose(some, all_of_them[[1, 3]], atol=1e-4)


def test_what_flows_in_from_outside_is_unknown():
    forecast = Advection().predict(past(*MOVING), LEAD_TIMES)
    assert np.isnan(forecast.values[-1, :, 0]).any()
    assert np.isfinite(forecast.values[-1, 8:-8, -1]).all()


@pytest.mark.parametrize("name", BASELINES)
def test_dry_frames_give_a_dry_forecast(name):
    forecast = build_baseline(name).predict(past(DRY, DRY, DRY), LEAD_TIMES)
    assert (forecast == 0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_missing_frames_give_an_unknown_forecast(name):
    forecast = build_baseline(name).predict(past(MISSING, MISSING, MISSING), LEAD_TIMES)
    assert forecast.isnull().all()


SPECK = DRY.copy()
SPECK[10, 10] = 5.0
EDGE = np.where(np.arange(SIZE) < 8, MISSING, cells(24.0))
ODD_SKIES = {
    "rain out of nowhere": [DRY, DRY, cells(24.0)],
    "rain that stops": [cells(20.0), cells(22.0), DRY],
    "one wet pixel": [SPECK, SPECK, SPECK],
    "rain everywhere alike": [DRY + 3, DRY + 3, DRY + 3],
    "nothing seen before": [MISSING, MISSING, cells(24.0)],
    "nothing seen now": [cells(20.0), cells(22.0), MISSING],
    "a strip never seen": [EDGE, EDGE, EDGE],
    "drizzle below the dry threshold": [DRY + 0.05, DRY + 0.05, DRY + 0.05],
    "the same frame three times": [cells(20.0)] * 3,
}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("sky", ODD_SKIES)
def test_no_sky_crashes_a_baseline_or_makes_rain_that_cannot_be(name, sky):
    frames = past(*ODD_SKIES[sky])
    forecast = build_baseline(name).predict(frames, LEAD_TIMES).values
    assert forecast.shape == (4, SIZE, SIZE)
    assert not (forecast < 0).any()
    assert not np.isinf(forecast).any()
    most = np.nanmax(frames.values[-1]) if np.isfinite(frames.values[-1]).any() else 0.0
    assert not (forecast > most + 1e-4).any()


def test_an_unknown_baseline_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'persistence'"):
        build_baseline("persistance")
