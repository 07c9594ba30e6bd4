"""Pictures: a PNG for any sky."""

import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from PIL import Image

from pipelines.pictures import (
    COLOURS,
    NOT_OBSERVED,
    forecast_picture,
    frame_picture,
    sequence_picture,
)

LEAD_TIMES = pd.timedelta_range("5min", periods=3, freq="5min")
SKIES = {"rain": 5.0, "dry": 0.0, "nothing seen": np.nan}


def forecast_of(rain_rate, grid):
    values = np.full((3, *grid.shape), rain_rate, np.float32)
    values[:, 0] = np.nan
    coords = {"lead_time": LEAD_TIMES, "init_time": np.datetime64("2024-06-01T05:00")}
    return xr.DataArray(values, grid.coords(lonlat=False) | coords, ("lead_time", "y", "x"))


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("sky", SKIES)
def test_a_frame_of_any_sky_becomes_a_picture(grid, sky):
    width, height = size_of(frame_picture(forecast_of(SKIES[sky], grid)[0], "title"))
    assert min(width, height) > 300


@pytest.mark.parametrize(("sky", "came"), [("rain", 0), ("rain", 2), ("nothing seen", 3)])
def test_a_forecast_becomes_a_picture_before_and_after_it_was_observed(grid, sky, came):
    forecast = forecast_of(SKIES[sky], grid)
    width, height = size_of(forecast_picture(forecast, forecast[:came], "title", columns=2))
    assert min(width, height) > 300


def share_of(colour, png):
    """In the upper and the lower half, left of the colour bar."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255
    rows, columns = pixels.shape[:2]
    same = np.isclose(pixels[:, : columns // 2], to_rgb(colour), atol=0.01).all(-1)
    return same[: rows // 2].mean(), same[rows // 2 :].mean()


@pytest.mark.parametrize("lead_times", [1, 3, 12])
def test_a_sequence_without_a_place_shows_what_was_observed_and_what_was_forecast(lead_times):
    times = [f"{5 * k}min" for k in range(1, lead_times + 1)]
    light, heavy, unseen = (np.full((lead_times, 8, 8), rain) for rain in (0.15, 60.0, np.nan))
    png = sequence_picture(heavy, light, times, "title")
    assert min(size_of(png)) > 300
    (light_above, light_below), (heavy_above, heavy_below) = (
        share_of(colour, png) for colour in (COLOURS[0], COLOURS[-1])
    )
    assert min(light_above, heavy_below) > 0.3
    assert max(light_below, heavy_above) < 0.1
    grey_above, grey_below = share_of(NOT_OBSERVED, sequence_picture(heavy, unseen, times, "title"))
    assert grey_above > 0.3 > 0.1 > grey_below
