"""A domain forecast tile by tile looks like one that was forecast whole."""

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from models.baselines import Persistence
from models.data import batch_of
from models.forecaster import Forecaster, labelled
from models.networks import NETWORKS, build_model
from models.normalisation import RainNormalisation
from models.perturbation import Perturbed
from models.prediction import NetworkForecaster
from models.registry import Model
from models.tiling import Tiled, alignment, blend, spans
from models.training import NetworkSettings, TrainSettings
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.sources.synthetic import PROJECTION, SyntheticRadar

TIMESTEP = pd.Timedelta("5min")
LEADS = pd.timedelta_range(TIMESTEP, periods=4, freq=TIMESTEP)
PAST, SIZE = 3, 144


def past(fields):
    """Past frames (time, y, x) of any size."""
    fields = np.asarray(fields, np.float32)
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (2000.0, 2000.0), fields.shape[1:])
    times = pd.date_range(end="2024-06-01T05:00", periods=len(fields), freq=TIMESTEP, name="time")
    coords = grid.coords(lonlat=False) | {"time": times}
    return xr.DataArray(fields, dims=("time", "y", "x"), coords=coords)


def rain(shape, seed=0):
    return np.random.default_rng(seed).gamma(0.3, 5.0, size=(2, *shape)).astype(np.float32)


class OfTile(Persistence):
    """Says what it saw: the mean of the tile's newest frame everywhere; notes each tile's size."""

    def __init__(self):
        self.sizes = []

    def predict(self, past, lead_times):
        self.sizes.append(past.shape[1:])
        mean = np.nanmean(past.values[-1])
        return labelled(np.full((len(lead_times), *past.shape[1:]), mean), past, lead_times)


def model_of(network, settings):
    return Model("net", "1", network, settings, "", PAST, TIMESTEP, {})


# Where tiles lie ---------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 12), st.integers(1, 9))
def test_tiles_cover_everything_and_weights_sum_to_one(size, tile, overlap, align):
    tile, overlap = align * max(tile, overlap + 1), align * overlap
    found = list(spans(size, tile, overlap, align))
    total = np.zeros(size)
    for span in found:
        assert (span.weights > 0).all()
        assert span.pixels.start % align == 0
        assert span.pixels.stop - span.pixels.start <= tile
        total[span.pixels] += span.weights
    np.testing.assert_allclose(total, 1.0)
    assert (found[0].pixels.start, found[-1].pixels.stop) == (0, size)
    for one, following in itertools.pairwise(found):
        assert one.pixels.stop - one.pixels.start == tile
        assert one.pixels.stop - following.pixels.start >= overlap
    fewest = 1 if size <= tile else -(-(size - overlap) // (tile - overlap))
    assert fewest <= len(found) <= fewest + 1


def test_weights_fall_linearly_over_the_overlap():
    first, second = spans(12, 8, 4)
    assert (first.pixels, second.pixels) == (slice(0, 8), slice(4, 12))
    np.testing.assert_allclose(first.weights, [1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8])
    np.testing.assert_allclose(second.weights, first.weights[::-1])


def test_tiles_fall_on_the_networks_patches():
    known = {"convlstm": 4, "convlstm-strided": 16, "convgru": 30, "trajgru": 30}
    known |= {"predrnn": 4, "mcnet": 8, "c3d": 32}
    assert known.keys() == NETWORKS.keys() - {"fclstm"}  # which has one size of frame
    for name, align in known.items():
        with torch.device("meta"):
            network = build_model(name)
        forecaster = Persistence()
        forecaster.model = SimpleNamespace(network=network)
        assert alignment(forecaster) == align
        tiled = Tiled(forecaster, tile=100, overlap=33)
        assert (tiled.tile % align, tiled.overlap % align) == (0, 0)
        assert 0 <= tiled.tile - 100 < align
    assert alignment(Persistence()) == 1


def test_an_overlap_as_large_as_a_tile_is_an_error():
    with pytest.raises(SquallError, match="found an overlap of 16 pixels, tiles of 16"):
        Tiled(Persistence(), tile=13, overlap=9, align=16)
    Tiled(Persistence(), tile=13, overlap=9)


# What becomes of the forecasts -------------------------------------------------------------------


@given(
    st.tuples(st.integers(2, 60), st.integers(2, 60)),
    st.integers(4, 20),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_forecasts_that_agree_stay_as_they_are(shape, tile, overlap, align):
    frames = past(rain(shape))
    frames[:, :1, :2] = np.nan
    frames[:, 1, 0] = 0.04  # less than counts as rain
    tiled = Tiled(Persistence(), tile + overlap * align, overlap, align)
    xr.testing.assert_identical(tiled.predict(frames, LEADS), Persistence().predict(frames, LEADS))


def test_a_tiled_forecaster_is_a_forecaster():
    tiled = Tiled(Persistence(), 8, 2)
    assert isinstance(tiled, Forecaster)
    assert (tiled.name, tiled.paper) == (Persistence.name, Persistence.paper)
    assert (tiled.past_frames, tiled.model) == (1, None)


def test_a_domain_that_fits_is_not_cut():
    forecaster = OfTile()
    Tiled(forecaster, 20, 4).predict(past(rain((20, 7))), LEADS)
    Tiled(forecaster, 20, 4).predict(past(rain((21, 7))), LEADS)
    assert forecaster.sizes == [(20, 7), (20, 7), (20, 7)]


def test_between_two_tiles_the_forecast_goes_evenly_from_one_to_the_other():
    fields = np.zeros((2, 3, 12))
    fields[:, :, :4], fields[:, :, 8:] = 2.0, 8.0  # means: 1 and 4
    forecast = Tiled(OfTile(), 8, 4).predict(past(fields), LEADS)
    ramp = [1, 1, 1, 1, 1.375, 2.125, 2.875, 3.625, 4, 4, 4, 4]
    np.testing.assert_allclose(forecast, np.broadcast_to(ramp, forecast.shape), rtol=1e-6)


def test_four_tiles_meet_with_weights_that_are_products():
    fields = np.zeros((2, 12, 12), np.float32)
    fields[:, :4, :4] = 4.0
    fields[:, 8:, 8:] = 16.0
    forecast = Tiled(OfTile(), 8, 4).predict(past(fields), LEADS)[0].values
    down = np.array([1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0, 0, 0])
    up = down[::-1]
    expected = np.outer(down, down) + 4 * np.outer(up, up)
    np.testing.assert_allclose(forecast, expected, rtol=1e-5)


def test_where_one_says_nan_the_other_counts():
    nan = np.nan
    blended = np.array([[nan, 1.0, nan, 4.0, 0.04]], np.float32)
    forecast = np.array([[2.0, nan, nan, 8.0, 0.04]], np.float32)
    blend(blended, forecast, np.full((1, 5), 0.25, np.float32))
    np.testing.assert_array_equal(blended, np.array([[2.0, 1.0, nan, 5.0, 0.04]], np.float32))


def test_nan_is_left_only_where_no_tile_has_a_forecast():
    class Careful(Persistence):
        """Has nothing to say at the outermost pixels of what it sees, from the second lead on."""

        def predict(self, past, lead_times):
            forecast = super().predict(past, lead_times)
            inside = np.zeros(past.shape[1:], bool)
            inside[2:-2, 2:-2] = True
            return forecast.where(inside | (np.arange(len(lead_times)) == 0)[:, None, None])

    frames = past(rain((40, 50)))
    forecast = Tiled(Careful(), 16, 6).predict(frames, LEADS)
    xr.testing.assert_identical(forecast, Careful().predict(frames, LEADS))


def test_members_are_kept():
    frames = past(rain((20, 24)) + 1)
    ensemble = Perturbed(Persistence(), members=3)
    forecast = Tiled(ensemble, 12, 4).predict(frames, LEADS)
    assert forecast.dims == ("member", "lead_time", "y", "x")
    xr.testing.assert_identical(forecast[0], ensemble.predict(frames, LEADS)[0])
    whole = Perturbed(Tiled(Persistence(), 12, 4), members=3).predict(frames, LEADS)
    xr.testing.assert_identical(whole, ensemble.predict(frames, LEADS))


# A network ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving():
    """Synthetic rain (time, y, x) that drifts 1.6 pixels a frame, observed in a circle."""
    return SyntheticRadar(size=SIZE, frames=40, cells=20).rain_rate()


@pytest.fixture(scope="module")
def network(moving):
    """A ConvLSTM that has learnt a little of how that rain moves."""
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(8, 8), patch_size=4))
    torch.manual_seed(0)
    network = settings.build_network()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    rng, loss_of = np.random.default_rng(0), settings.build_loss()
    losses = []
    for _ in range(100):
        corners = rng.integers(0, [len(moving) - PAST - 4, SIZE - 48, SIZE - 48], (4, 3))
        crops = np.stack([moving[t : t + PAST + 4, y : y + 48, x : x + 48] for t, y, x in corners])
        batch = batch_of(torch.from_numpy(crops), PAST, RainNormalisation("log"))
        loss = loss_of(network(batch.past, 4), batch.future, batch.observed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 4
    return NetworkForecaster(model_of(network.eval(), settings))


@pytest.fixture(scope="module")
def whole(network, moving):
    return network.predict(past(moving[20 : 20 + PAST]), LEADS)


def seams(network, whole, moving, *layout):
    """What tiling does to a forecast, over the pixels with rain, and to its largest gradients.

    First: root mean square of (tiled - whole), in those of whole's differences from pixel to pixel.
    Second: mean square of the tiled forecast's differences across the lines at which tiles begin or
    end, in those across the other lines between two patches; this over the same for the whole one.
    """
    tiled = Tiled(network, *layout).predict(past(moving[20 : 20 + PAST]), LEADS).values
    whole = whole.values
    np.testing.assert_array_equal(np.isnan(tiled), np.isnan(whole))
    raining = (whole > 0.5).any(axis=0)
    error = (tiled - whole)[:, raining]
    step = np.diff(whole, axis=2)[:, raining[:, 1:]]
    found = list(spans(SIZE, *layout))
    lines = {edge for span in found for edge in (span.pixels.start, span.pixels.stop)} - {0, SIZE}
    others = set(range(4, SIZE, 4)) - lines

    def steepness(forecast, lines):
        columns = sorted(lines)
        across = forecast[:, :, columns] - forecast[:, :, [column - 1 for column in columns]]
        return np.nanmean(across[:, raining[:, columns]] ** 2)

    steeper = steepness(tiled, lines) / steepness(tiled, others)
    steeper_whole = steepness(whole, lines) / steepness(whole, others)
    return np.sqrt(np.nanmean(error**2) / np.nanmean(step**2)), steeper / steeper_whole


def test_no_seams_are_visible(network, whole, moving):
    error, steeper = seams(network, whole, moving, 64, 32, 4)
    print("tiled", error, steeper)
    assert error < 0.1
    assert steeper < 1.1


def test_without_an_overlap_seams_are_visible(network, whole, moving):
    """What the test above would find."""
    error, steeper = seams(network, whole, moving, 64, 0, 4)
    print("no overlap", error, steeper)
    assert error > 0.2
    assert steeper > 1.2


def test_tiles_that_ignore_the_patches_differ_more(network, whole, moving):
    aligned, shifted = (seams(network, whole, moving, 64, 32, align)[0] for align in (4, 1))
    print("aligned", aligned, shifted)
    assert shifted > 1.5 * aligned


def counted(network):
    """The network, and the sizes of the inputs that it is asked about."""
    sizes = []
    network.model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    return sizes


def test_dry_tiles_cost_nothing_and_show_no_seam():
    """Rain in one corner, nothing observed in another; a network that lets it drizzle."""
    settings = TrainSettings(network=NetworkSettings(hidden_channels=(4,), patch_size=4))
    network = settings.build_network().eval()
    for weights in network.parameters():
        torch.nn.init.zeros_(weights)
    torch.nn.init.constant_(network.readout.bias, 0.15)  # 0.2 mm/h everywhere
    network = NetworkForecaster(model_of(network, settings))
    sizes = counted(network)
    fields = np.zeros((PAST, 150, 201), np.float32)
    fields[:, 4:16, 2:14] = 9.0
    fields[:, 140:, 190:] = np.nan
    forecast = Tiled(network, 48, 24).predict(past(fields), LEADS)
    assert len(sizes) == 1  # of 6 × 8 tiles
    assert (np.isnan(forecast.values) == np.isnan(fields[0])).all()
    assert (forecast[:, 96:, :190] == 0).all()
    drizzle = forecast.values[:, 10]
    assert drizzle[:, :20] == pytest.approx(0.192, abs=0.001)
    assert ((drizzle == 0) | (drizzle >= 0.1)).all()  # as everywhere in a network's forecast
    assert abs(np.diff(drizzle)).max() < 0.115


@pytest.mark.slow
@pytest.mark.parametrize("where", ["made up", "mrms"])
def test_memory_is_bounded_by_the_forecast(where, request):
    """3500×7000 pixels: what the forecast needs, weights, and some tiles' worth."""
    folder = [str(request.getfixturevalue("radar_data") / where)] if where == "mrms" else []
    command = [sys.executable, "-m", "tests.models.large_domain", *folder]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["shape"] == [5, 3500, 7000]
    assert found["forecast"] == 5 * 3500 * 7000 * 4
    assert 0 < found["took"] - found["forecast"] < 3500 * 7000 * 4 + 200e6
    assert found["known"] == pytest.approx(found["observed"])
    assert found["known"] > 0.5
