"""The prune flow, as Prefect runs it and as the command calls it."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.forecasts import forecast_dataset, open_forecasts, published
from pipelines.publishing import publish
from pipelines.times import clock_set_to

from .conftest import Prefect

FIRST = pd.Timestamp("2024-06-01T01:00")
SCRIPT = """
from flows.forecast_commands import prune
from flows.options import Common
prune(keep="{keep}", common=Common("store", "town", ["retention.grace=0"]))
"""


@pytest.fixture
def root(tmp_path, grid):
    """A forecast a day on four days, each published at its init_time."""
    for day in range(4):
        init_time = FIRST + pd.Timedelta(days=day)
        rain_rate = xr.DataArray(
            np.full((1, *grid.shape), float(day)),
            dims=("lead_time", "y", "x"),
            coords=grid.coords(lonlat=False)
            | {"lead_time": [pd.Timedelta("5min")], "init_time": init_time.to_datetime64()},
        )
        with clock_set_to(init_time):
            publish(str(tmp_path / "store"), "town", forecast_dataset(rain_rate, {"model": "none"}))
    return tmp_path / "store"


@pytest.mark.slow
def test_old_days_are_compacted_and_older_ones_removed(prefect: Prefect, root):
    def run(keep):
        done = prefect.run("python", "-c", SCRIPT.format(keep=keep), cwd=root.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "3 days compacted, 3 forecasts in all; 3 single stores removed" in run("36500d")
    forecasts = open_forecasts(str(root), "town")
    np.testing.assert_array_equal(forecasts["rain_rate"][:, 0, 0, 0], [0.0, 1.0, 2.0, 3.0])
    assert [one.day is not None for one in published(str(root), "town")] == [True] * 3 + [False]
    age = pd.Timestamp.now("UTC").tz_localize(None) - (FIRST.floor("D") + pd.Timedelta("2D"))
    assert "2 forecasts of 2 days removed" in run(f"{age.total_seconds() - 3600:.0f}s")
    assert open_forecasts(str(root), "town").sizes["init_time"] == 2
