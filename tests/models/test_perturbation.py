"""Ensembles by perturbed past frames."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from models.baselines import Advection, Persistence, build_baseline
from models.forecaster import Forecaster
from models.perturbation import Perturbed, moved, smooth_noise
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.sources.synthetic import PROJECTION

TIMESTEP = pd.Timedelta("5min")
LEADS = pd.timedelta_range(TIMESTEP, periods=3, freq=TIMESTEP)
INIT_TIME = "2024-06-01T05:00"
GRID = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 1000.0), (80, 60))


def past(frames=3, init_time=INIT_TIME):
    """Rain that moves a pixel a frame, dry around it, a corner not observed."""
    y, x = np.mgrid[:80, :60]
    fields = np.zeros((frames, 80, 60), np.float32)
    for k, field in enumerate(fields):
        rain = 20 * np.exp(-((y - 40) ** 2 + (x - 28 - k) ** 2) / 200)
        field[:] = np.where(rain < 0.1, 0.05, rain)
        field[:10, :10] = np.nan
    times = pd.date_range(end=init_time, periods=frames, freq=TIMESTEP, name="time")
    coords = GRID.coords(lonlat=False) | {"time": times}
    return xr.DataArray(fields, dims=("time", "y", "x"), coords=coords)


def test_an_ensemble_is_a_forecaster_and_keeps_labels():
    ensemble = Perturbed(Persistence(), members=3)
    assert isinstance(ensemble, Forecaster)
    assert (ensemble.name, ensemble.past_frames, ensemble.model) == ("persistence", 1, None)
    forecast = ensemble.predict(past(), LEADS)
    assert forecast.dims == ("member", "lead_time", "y", "x")
    assert forecast["member"].values.tolist() == [0, 1, 2]
    assert forecast.dtype == np.float32
    assert Grid.of(forecast).matches(GRID)
    assert forecast["init_time"].values == np.datetime64(INIT_TIME)


def test_member_0_is_the_forecast_without_perturbation():
    forecast = Perturbed(Advection(), members=2, motion_km_h=5.0).predict(past(), LEADS)
    single = Advection().predict(past(), LEADS)
    np.testing.assert_array_equal(forecast[0], single)
    assert np.nanmax(abs(forecast[1] - single)) > 0.5


def test_the_same_init_time_gives_the_same_ensemble_and_another_one_another():
    small, large = (Perturbed(Persistence(), members=n, motion_km_h=3.0) for n in (3, 5))
    first = small.predict(past(), LEADS)
    small.predict(past(init_time="2024-06-01T05:05"), LEADS)
    xr.testing.assert_identical(small.predict(past(), LEADS), first)
    xr.testing.assert_identical(large.predict(past(), LEADS)[:3], first)
    other = small.predict(past(init_time="2024-06-01T05:05"), LEADS)
    reseeded = Perturbed(Persistence(), members=3, seed=1).predict(past(), LEADS)
    for forecast in (other, reseeded):
        assert np.nanmax(abs(forecast.values[1:] - first.values[1:])) > 0.1
    members = first.values[:, 0, 40, 30]
    assert len(set(members.tolist())) == 3


def test_dry_stays_dry_rain_stays_rain_and_nan_stays_nan():
    frames = past()
    for member in range(1, 6):
        seen = Perturbed(Persistence(), 6, noise_db=8.0).perturbed(frames, member)
        wet = frames.values >= 0.1
        assert (seen.values[wet] >= 0.1).all()
        assert (seen.values[wet] != frames.values[wet]).any()
        np.testing.assert_array_equal(seen.values[~wet], frames.values[~wet])


def test_all_past_frames_of_a_member_are_perturbed_alike():
    frames = past() * 0 + 3.0
    seen = Perturbed(Persistence(), 2).perturbed(frames, 1).values
    np.testing.assert_array_equal(seen[1:], np.broadcast_to(seen[0], seen[1:].shape))
    assert np.nanstd(seen[0]) > 0.1


def test_spread_grows_with_the_noise_and_the_mean_stays():
    """Uniform rain forecast by persistence: what members see is what they say."""
    frames = past() * 0 + 3.0
    spreads = []
    for noise_db in (0.5, 1.0, 2.0, 4.0):
        ensemble = Perturbed(Persistence(), 400, noise_db=noise_db, scale_km=3.0)
        forecast = ensemble.predict(frames, LEADS[:1])[1:, 0]
        spreads.append(float(forecast.std("member").mean()))
        assert float(forecast.mean()) == pytest.approx(3.0, rel=0.01)
        decibels = 10 * np.log10(forecast.values)
        assert np.nanstd(decibels) == pytest.approx(noise_db, rel=0.03)
    assert (np.diff(np.log2(spreads)) > 0.9).all()


@given(
    st.tuples(st.integers(2, 70), st.integers(2, 70)),
    st.tuples(st.floats(0.1, 40.0), st.floats(0.1, 40.0)),
)
def test_noise_has_variance_one_whatever_its_scale_and_domain(shape, scale):
    """A pixel's variance is the sum of squares of what each pixel gives it: noise is linear."""

    class OnePixel(np.random.Generator):
        def __init__(self, place):
            super().__init__(np.random.PCG64())
            self.place = place

        def standard_normal(self, shape, dtype):
            field = np.zeros(shape, dtype)
            field.flat[self.place] = 1
            return field

    for place in (0, shape[0] * shape[1] - 1):
        response = smooth_noise(OnePixel(place), shape, scale)
        assert (response**2).sum() == pytest.approx(1.0, rel=1e-3)


def test_noise_is_correlated_as_it_says():
    rng = np.random.default_rng(3)
    fields = np.stack([smooth_noise(rng, (64, 96), (4.0, 8.0)) for _ in range(60)])
    for axis, scale in ((1, 4.0), (2, 8.0)):
        for pixels in (2, 6):
            found = (fields * np.roll(fields, pixels, axis=axis)).mean()
            assert found == pytest.approx(np.exp(-(pixels**2) / (4 * scale**2)), abs=0.06)


def test_another_velocity_moves_older_frames_and_not_the_newest():
    frames = past(4)
    seen = Perturbed(Persistence(), 2, noise_db=0.0, motion_km_h=15.0).perturbed(frames, 1)
    np.testing.assert_array_equal(np.isnan(seen), np.isnan(frames))
    np.testing.assert_allclose(seen[-1], frames[-1], rtol=1e-6)
    y, x = np.mgrid[:80, :60]
    moves = []
    for old, new in zip(frames.values[:-1], seen.values[:-1], strict=True):
        weights = [np.where(np.isnan(f) | (f < 0.1), 0, f) for f in (old, new)]
        centres = [[(w * c).sum() / w.sum() for c in (y, x)] for w in weights]
        moves.append(np.subtract(centres[1], centres[0]))
    assert abs(moves[0]).max() > 1
    for k in (3, 2, 1):  # as far before the newest
        np.testing.assert_allclose(moves[3 - k], moves[2] * k, atol=0.3)


def test_a_frame_moves_downwards_and_to_the_right():
    frame = np.zeros((5, 5), np.float32)
    frame[1, 1], frame[0, 4] = 8.0, np.nan
    there = moved(frame, 2.0, 1.0)
    assert there[3, 2] == 8
    assert np.isnan(there[0, 4])
    assert np.isnan(there).sum() == 1
    assert moved(frame, 0.5, 0.0)[1:3, 1].tolist() == [4, 4]


def test_what_cannot_be_an_ensemble_is_an_error():
    with pytest.raises(SquallError, match="found 1 member"):
        Perturbed(Persistence(), members=1)
    steps = build_baseline("steps", members=2)
    with pytest.raises(SquallError, match="steps is an ensemble already: found 2 members"):
        Perturbed(steps, members=2).predict(past(), LEADS)
