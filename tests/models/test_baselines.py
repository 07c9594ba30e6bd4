"""Baselines: rain that stays, rain that moves on, and skies that crash nothing."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from models.baselines import BASELINES, Advection, Persistence, build_baseline
from models.baselines.extrapolation import motion
from pipelines.errors import UnknownNameError
from pipelines.forecasts import ensemble_mean, forecast_dataset, open_forecasts
from pipelines.grid import Grid
from pipelines.publishing import publish
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
MOVING = [cells(18.0), cells(20.0), cells(22.0), cells(24.0)]
FEW = {"steps": {"members": 3}, "linda": {"max_num_features": 3}}


def build(name):
    """Small, so that tests are fast."""
    return build_baseline(name, **FEW.get(name, {}))


@pytest.mark.parametrize("name", BASELINES)
def test_a_forecast_keeps_the_labels_of_its_frames(name):
    forecast = build(name).predict(past(*MOVING), LEAD_TIMES)
    members = ("member",) if name == "steps" else ()
    assert forecast.dims == (*members, "lead_time", "y", "x")
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


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "persistence"])
def test_all_others_beat_persistence_on_rain_that_moves(name):
    truth = np.stack([cells(24.0 + 2 * number) for number in range(1, 5)])
    errors = {}
    for forecaster in ("persistence", name):
        forecast = ensemble_mean(build(forecaster).predict(past(*MOVING), LEAD_TIMES)).values
        errors[forecaster] = np.nanmean((forecast - truth) ** 2)
    assert errors[name] < errors["persistence"] / (4 if name == "advection" else 1.5)


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
    forecast = build(name).predict(past(DRY, DRY, DRY, DRY), LEAD_TIMES)
    assert (forecast == 0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_missing_frames_give_an_unknown_forecast(name):
    forecast = build(name).predict(past(*[MISSING] * 4), LEAD_TIMES)
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
    fields = ODD_SKIES[sky]
    frames = past(fields[0], *fields)
    forecast = build(name).predict(frames, LEAD_TIMES).values
    assert forecast.shape[-3:] == (4, SIZE, SIZE)
    assert not (forecast < 0).any()
    assert not np.isinf(forecast).any()
    advected = build("advection").predict(frames, LEAD_TIMES).values
    if name != "persistence":
        assert np.isnan(forecast[..., np.isnan(advected)]).all(), "the unreachable stays unknown"
    most = np.nanmax(frames.values[-1]) if np.isfinite(frames.values[-1]).any() else 0.0
    grows = 1.0 if name in ("persistence", "advection") else 5.0
    assert not (forecast > grows * most + 1e-4).any()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", [(17, 40), (5, 3)])
def test_a_frame_may_have_any_shape(name, shape):
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), shape)
    fields = [field[: shape[0], 10 : 10 + shape[1]] for field in MOVING]
    times = pd.date_range(end="2024-06-01T05:00", periods=4, freq=TIMESTEP, name="time")
    frames = xr.DataArray(
        np.stack(fields).astype(np.float32),
        dims=("time", "y", "x"),
        coords=grid.coords(lonlat=False) | {"time": times},
    )
    assert build(name).predict(frames, LEAD_TIMES).shape[-2:] == shape


def test_an_init_time_has_one_ensemble_and_another_one_another():
    frames = past(*MOVING)
    later = frames.assign_coords(time=frames["time"] + TIMESTEP.to_timedelta64())
    np.random.seed(7)  # noqa: NPY002
    first = build("steps").predict(frames, LEAD_TIMES)
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    assert drawn == np.random.random(), "pysteps' seed stays its own"  # noqa: NPY002
    np.testing.assert_array_equal(first, build("steps").predict(frames, LEAD_TIMES))
    assert not np.array_equal(first, build("steps").predict(later, LEAD_TIMES), equal_nan=True)


def test_members_differ_where_it_rains_and_their_mean_is_near_s_prog():
    steps = build_baseline("steps", members=12).predict(past(*MOVING), LEAD_TIMES)
    assert list(steps["member"].values) == list(range(12))
    assert steps["member"].attrs["standard_name"] == "realization"
    spread = steps.std("member").where(cells(28.0) > 1).mean()
    assert spread > 0.1
    sprog = build("sprog").predict(past(*MOVING), LEAD_TIMES)
    far = build("persistence").predict(past(*MOVING), LEAD_TIMES)
    assert abs(steps.mean("member") - sprog).mean() < abs(far - sprog).mean()


def test_sprog_is_pysteps_own():
    from pysteps.nowcasts import sprog

    frames = np.stack(MOVING[1:])
    field = np.where(frames >= 0.1, 10 * np.log10(np.where(frames >= 0.1, frames, 1)), -15.0)
    moving = motion(frames.astype(np.float32))
    expected = 10 ** (sprog.forecast(field, moving, 4, precip_thr=-10.0) / 10)
    expected = np.where(expected < 0.1, 0.0, expected)
    forecast = build("sprog").predict(past(*MOVING), LEAD_TIMES).values
    known = np.isfinite(forecast)
    assert known.mean() > 0.8
    np.testing.assert_allclose(forecast[known], expected[known], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["sprog", "anvil", "steps"])
def test_some_lead_times_are_those_of_all(name):
    every = build(name).predict(past(*MOVING), LEAD_TIMES).sel(lead_time=LEAD_TIMES[[1, 3]])
    some = build(name).predict(past(*MOVING), LEAD_TIMES[[1, 3]])
    np.testing.assert_allclose(some, every, atol=1e-4)


def test_an_ensemble_is_published_and_read_with_stock_xarray(tmp_path):
    root, frames = str(tmp_path), past(*MOVING)
    later = frames.assign_coords(time=frames["time"] + TIMESTEP.to_timedelta64())
    steps = build("steps").predict(frames, LEAD_TIMES)
    url = publish(root, "p", forecast_dataset(steps, {"model": "steps"}))
    with xr.open_zarr(url) as opened:
        assert opened.rain_rate.dims == ("member", "lead_time", "y", "x")
        assert opened.member.attrs["standard_name"] == "realization"
        np.testing.assert_allclose(opened.rain_rate, steps, atol=0.0051)
    single = build("advection").predict(later, LEAD_TIMES)
    publish(root, "p", forecast_dataset(single, {"model": "advection"}))
    both = open_forecasts(root, "p").rain_rate
    assert both.sizes["member"] == 3
    np.testing.assert_allclose(both.isel(init_time=1, member=0), single, atol=0.0051)
    assert both.isel(init_time=1, member=slice(1, None)).isnull().all()


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'members'"):
        build_baseline("steps", member=3)


def test_an_unknown_baseline_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'persistence'"):
        build_baseline("persistance")
