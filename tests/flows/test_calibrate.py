"""Calibration from the scores store to the probabilities of a forecast."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from flows.calibrate import calibrate_probabilities, calibration_table
from models.nowcasting import Nowcaster, NowcastSettings
from pipelines.calibration import folder_url, read_calibration
from pipelines.errors import SquallError
from pipelines.products import ProductSettings, with_products
from pipelines.publishing import publish
from pipelines.score_store import write_scores
from pipelines.storage import names
from tests.pipelines.test_calibration import SETTINGS, over_confident, sums_of

PRODUCT = "test"


def store(root, chance, cases=2000):
    """Scores of an ensemble of STEPS that was served."""
    sums = sums_of(chance, cases=cases, thresholds=(1.0, 5.0))
    counts = sums["probability_cases"].isel(threshold=0).sum("probability")
    sums = sums.assign(pixels=counts, ensemble_pixels=counts)
    sums = sums.expand_dims(forecaster=["served"], region=["domain"])
    write_scores(root, PRODUCT, [sums.assign_coords(model=("init_time", ["steps"] * 30))])


def test_what_is_proven_is_in_the_next_forecast(tmp_path, build_archive, grid):
    root = str(tmp_path)
    store(root, over_confident)
    calibration = calibrate_probabilities(root, PRODUCT, SETTINGS)
    assert read_calibration(root, PRODUCT) == calibration
    assert [row["threshold"] for row in calibration_table(calibration)] == ["1 mm/h", "5 mm/h"]
    rain = np.random.default_rng(0).gamma(2.0, 1.0, grid.shape)
    archive = build_archive(tmp_path / "a.zarr", {s: np.roll(rain, s, axis=1) for s in range(4)})
    settings = NowcastSettings(lead_time="10min")
    with Nowcaster(root, "persistence", settings) as nowcaster:
        nowcaster.begin(calibration=calibration)
        other = nowcaster.nowcast(archive, archive.times[3])
    assert "exceedance_probability" not in other, "persistence is no ensemble"
    forecast = other.assign(rain_rate=other["rain_rate"].expand_dims(member=4))
    plain, corrected = (
        with_products(forecast, ProductSettings(thresholds_mm_h=(1.0,)), known)
        for known in (None, calibration)
    )
    publish(root, PRODUCT, corrected)
    name = next(one for one in names(f"{tmp_path}/forecasts/{PRODUCT}") if one.endswith(".zarr"))
    read = xr.open_zarr(f"{tmp_path}/forecasts/{PRODUCT}/{name}")["exceedance_probability"]
    assert read.attrs["calibration"] == calibration.version
    curve = calibration.curve(1.0, pd.Timedelta(read["lead_time"].values[0]))
    wanted = np.interp(plain["exceedance_probability"], curve.probability, curve.frequency)
    np.testing.assert_allclose(read, wanted, atol=0.003)


def test_what_is_not_proven_is_stored_and_not_used(tmp_path):
    root = str(tmp_path)
    store(root, lambda p: p, cases=300)
    with pytest.raises(SquallError, match="not proven to help"):
        calibrate_probabilities(root, PRODUCT, SETTINGS)
    assert read_calibration(root, PRODUCT) is None
    assert len(names(folder_url(root, PRODUCT))) == 1
    forced = calibrate_probabilities(root, PRODUCT, SETTINGS, force=True)
    assert read_calibration(root, PRODUCT) == forced
