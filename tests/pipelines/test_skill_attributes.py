"""What a forecast tells of its model's recent skill: flat, whole, and read by everyone."""

import json

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines.skill import SkillSettings, recent_skill
from pipelines.skill_attributes import NOTHING, horizon_text, skill_attributes
from tests.verified import verified

START = pd.Timestamp("2024-06-01T00:00")
INIT_TIME = START + pd.Timedelta("50h")
EXPIRES = pd.Timedelta("6h").to_pytimedelta()
LEADS = ("5min", "10min", "15min")


def recent(net=(0.6, 0.4, 0.3), *, observed=100.0, count=48, compared=True):
    rivals = {"persistence": [(0.5, 0.5, 0.2)], "advection": [(0.7, 0.61234567, 0.5)]}
    csi = {"served": [net], **(rivals if compared else {})}
    times = pd.date_range(START, periods=count, freq="h")
    sums = verified(times, csi, served="net/1", leads=LEADS, observed=observed)
    return recent_skill(sums, SkillSettings())


def of(*, init_time=INIT_TIME, model="net/1", **options):
    return skill_attributes(recent(**options), model, init_time, EXPIRES)


CASES = {
    "known": of(),
    "no interval": of(count=20),
    "never better": of(net=(0.1, 0.1, 0.1)),
    "always better": of(net=(0.9, 0.9, 0.9)),
    "a lead time without rain": of(observed=[[9.0, 9.0, 0.0]]),
    "one lead time": of(observed=[[9.0, 0.0, 0.0]]),
    "dry": of(observed=0.0),
    "not compared": of(compared=False),
    "not verified": of(model="net/2"),
    "not recent": of(init_time=START + pd.Timedelta("53h1min")),
    "nothing": skill_attributes(None, "net/1", INIT_TIME, EXPIRES),
}


def test_all_that_is_known_is_told():
    assert CASES["known"] == {
        "recent_skill_score": "CSI at 0.5 mm h-1",
        "recent_skill_lead_seconds": [300, 600, 900],
        "recent_skill": [0.6, 0.4, 0.3],
        "recent_skill_persistence": [0.5, 0.5, 0.2],
        "recent_skill_advection": [0.7, 0.6123, 0.5],
        "recent_skill_forecasts": 48,
        "recent_skill_since": "2024-06-01T00:00:00Z",
        "recent_skill_until": "2024-06-02T23:00:00Z",
        "trust_horizon_seconds": 300,
        "trust_horizon_interval_seconds": [300, 300],
        "trust_horizon_reached": 1,
        "skill_note": "48 forecasts verified, 2024-06-01T00:00:00Z to 2024-06-02T23:00:00Z; trust "
        "horizon 5min (5min to 5min); behind advection since 2024-06-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("no interval", "trust horizon 5min (interval unknown)"),
        ("never better", "trust horizon 0s (0s to 0s)"),
        ("always better", "trust horizon at least 15min (15min to 15min)"),
        ("a lead time without rain", "trust horizon 5min (5min to 5min)"),
        ("dry", "without rain at that threshold"),
        ("not compared", "not compared with persistence"),
        ("not verified", "no forecasts by net/2 verified lately, up to 2024-06-02T23:00:00Z"),
        ("not recent", "to 2024-06-02T23:00:00Z: not recent; trust horizon"),
        ("nothing", "no verified forecasts known"),
    ],
)
def test_the_note_says_what_is_not_known(case, told):
    assert told in CASES[case]["skill_note"]


def test_lead_times_at_which_nothing_is_known_are_not_in_the_lists():
    attrs = CASES["a lead time without rain"]
    lists = ("", "_lead_seconds", "_persistence", "_advection")
    assert {len(attrs[f"recent_skill{name}"]) for name in lists} == {2}
    assert CASES["dry"]["recent_skill"] == []
    assert CASES["dry"]["trust_horizon_seconds"] == []
    assert CASES["dry"]["recent_skill_forecasts"] == 48
    assert CASES["not compared"]["recent_skill_persistence"] == []


def test_horizon_of_one_not_compared_is_unknown():
    assert horizon_text(recent(compared=False).of("net/1")) == "unknown"


@pytest.mark.parametrize("case", CASES)
def test_every_attribute_is_always_there_and_every_reader_has_it(tmp_path, case):
    """Strict JSON for Zarr; netCDF by both libraries, in which a list of one is that one."""
    attrs = CASES[case]
    assert attrs.keys() == NOTHING.keys()
    assert json.loads(json.dumps(attrs, allow_nan=False)) == attrs
    dataset = xr.Dataset({"rain_rate": ("y", np.zeros(2))}, attrs=attrs)
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    assert xr.open_zarr(tmp_path / "a.zarr", consolidated=False).attrs == attrs
    for engine in ("h5netcdf", "netcdf4"):
        path = tmp_path / f"{engine}.nc"
        dataset.to_netcdf(path, engine=engine)
        with netCDF4.Dataset(path) as file:
            for name, value in attrs.items():
                found = file.getncattr(name)
                expected = value[0] if isinstance(value, list) and len(value) == 1 else value
                np.testing.assert_array_equal(found, expected, err_msg=name)
