"""Calibration from the scores store to the probabilities of a forecast."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from flows.calibrate import calibration_table, fit_calibration, versions_table
from models.nowcasting import Nowcaster, NowcastSettings
from pipelines.calibration_store import make_current, read_calibration
from pipelines.products import ProductSettings, with_products
from pipelines.publishing import publish
from pipelines.score_store import write_scores
from pipelines.storage import names
from tests.flows.conftest import Prefect
from tests.pipelines.test_calibration import SETTINGS, over_confident, sums_of

PRODUCT, KEY = "test", "calibration"


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
    calibration = fit_calibration(root, PRODUCT, SETTINGS)
    make_current(root, PRODUCT, calibration)
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
    stored = xr.open_zarr(f"{tmp_path}/forecasts/{PRODUCT}/{name}")
    read = stored["exceedance_probability"]
    assert stored.attrs["calibration"] == calibration.version
    curve = calibration.curve(1.0, pd.Timedelta(read["lead_time"].values[0]))
    wanted = np.interp(plain["exceedance_probability"], curve.probability, curve.frequency)
    np.testing.assert_allclose(read, wanted, atol=0.003)


@pytest.mark.slow
def test_through_the_command_a_refusal_leaves_a_table_and_versions_can_be_used(
    prefect: Prefect, tmp_path
):
    root = str(tmp_path / "store")
    store(root, lambda p: p, cases=300)
    settings = {"block": "1h", "least_blocks": 5, "samples": 200}
    words = [f"--set=calibrate.{name}={value}" for name, value in settings.items()]

    def calibrate(*more):
        command = ("calibrate", "--product", PRODUCT, "--root", root, *words, *more)
        return prefect.run("squall", *command)

    refused = calibrate()
    assert refused.returncode == 2, refused.stderr
    assert "not proven to help" in refused.stderr
    assert read_calibration(root, PRODUCT) is None
    (artifact,) = prefect.api("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [KEY]}}})
    rows = json.loads(artifact["data"])
    assert [(row["threshold"], row["proven"]) for row in rows] == [
        ("1 mm/h", "no"),
        ("5 mm/h", "no"),
    ]
    (row,) = versions_table(root, PRODUCT)
    assert row["used, mm/h"] == ""
    assert calibrate("--use", row["version"]).returncode == 2
    assert calibrate("--use", row["version"], "--force").returncode == 0
    assert read_calibration(root, PRODUCT).version == row["version"]
    listed = calibrate("--list")
    assert listed.returncode == 0, listed.stderr
    assert "1 calibrations" in listed.stdout
    assert row["version"] in listed.stdout, "to be copied"
    assert calibrate("--use", "none").returncode == 0
    assert read_calibration(root, PRODUCT) is None
