"""Recent skill and the trust horizon, by hand and through the store."""

import dataclasses
import datetime as dt

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipelines import storage
from pipelines.score_store import folder_url, write_scores
from pipelines.skill import (
    FILE,
    SkillSettings,
    read_skill,
    recent_skill,
    skill_attributes,
    update_skill,
)

START = pd.Timestamp("2024-06-01T00:00")
LEADS = pd.to_timedelta([5, 10, 15], "min")
SETTINGS = SkillSettings(least_blocks=3, samples=200)


def sums(of, every="1h", served_by=None):
    """Sums of forecasters by name: (init_time, lead_time) hits of ten events; None: no forecast."""
    count = len(next(iter(of.values())))
    hits = np.zeros((count, len(of), 3, 1, 1))
    there = np.zeros((count, len(of), 3, 1))
    for column, rows in enumerate(of.values()):
        for row, values in enumerate(rows):
            if values is not None:
                hits[row, column, :, 0, 0], there[row, column] = values, 100.0
    dims = ("init_time", "forecaster", "lead_time", "region", "threshold")
    events = 10.0 * there[..., np.newaxis] / 100
    return xr.Dataset(
        {
            "hits": (dims, hits),
            "misses": (dims, events - hits),
            "false_alarms": (dims, hits * 0),
            "pixels": (dims[:-1], there),
        },
        {
            "init_time": pd.date_range(START, periods=count, freq=every),
            "forecaster": pd.Index(list(of), dtype=object),
            "lead_time": LEADS,
            "region": pd.Index(["domain"], dtype=object),
            "threshold": [0.5],
            "model": ("init_time", served_by or ["net/1"] * count),
        },
    )


def skill_of(name, **of):
    return recent_skill(sums(of), SETTINGS).forecasters[name]


@pytest.mark.parametrize(
    ("ours", "horizon", "is_open"),
    [
        ([9, 9, 9], 900.0, True),
        ([9, 9, 5], 600.0, False),  # a tie beats nothing
        ([9, 4, 9], 300.0, False),  # what comes after a gap does not count
        ([5, 9, 9], 0.0, False),
    ],
)
def test_the_trust_horizon_by_hand(ours, horizon, is_open):
    skill = skill_of("served", served=[ours] * 4, persistence=[[5, 5, 5]] * 4)
    assert skill.trust_horizon_seconds == horizon
    assert skill.trust_horizon_open is is_open
    assert skill.csi == tuple(hits / 10 for hits in ours)
    assert skill.forecasts == 4


def test_its_interval_is_that_of_the_events():
    # Of eight events one is much worse than persistence at the last lead time.
    settings = SETTINGS.model_copy(update={"block": dt.timedelta(hours=1)})
    of = {"served": [[9, 9, 6]] * 7 + [[9, 9, 0]], "persistence": [[5, 5, 5]] * 8}
    skill = recent_skill(sums(of), settings).forecasters["served"]
    assert skill.trust_horizon_seconds == 900
    assert skill.trust_horizon_interval_seconds == (600, 900)
    few = recent_skill(sums(of), settings.model_copy(update={"least_blocks": 9}))
    assert few.forecasters["served"].trust_horizon_interval_seconds == ()


def test_without_rain_or_persistence_there_is_no_horizon():
    dry = sums({"served": [[0, 0, 0]], "persistence": [[0, 0, 0]]})
    dry = dry.assign(misses=dry["misses"] * 0)
    skill = recent_skill(dry, SETTINGS).forecasters["served"]
    assert skill.trust_horizon_seconds is None
    assert skill.csi == (None, None, None)
    assert skill_of("served", served=[[9, 9, 9]]).trust_horizon_seconds is None


def test_only_init_times_of_both_count():
    """Persistence looks poor where there was nothing to compare it with."""
    ours = [None, [6, 6, 6], [6, 6, 6]]
    persistence = [[0, 0, 0], [7, 7, 7], [7, 7, 7]]
    skill = skill_of("net/2", served=[[1, 1, 1]] * 3, persistence=persistence, **{"net/2": ours})
    assert skill.trust_horizon_seconds == 0
    assert skill.forecasts == 2


def test_a_models_skill_is_of_what_it_served_and_of_its_shadows():
    of = sums(
        {"served": [[8, 8, 8], [2, 2, 2], [8, 8, 8]], "net/1": [None, [7, 7, 7], None]},
        served_by=["net/1", "advection", "net/1"],
    )
    skill = recent_skill(of, SETTINGS).forecasters
    assert (skill["net/1"].forecasts, skill["advection"].forecasts) == (3, 1)
    assert skill["net/1"].csi == (round(23 / 30, 4),) * 3


def test_behind_advection_since_by_hand():
    better, worse = [9, 9, 9], [3, 3, 3]
    advection = [[5, 5, 5]] * 6
    rows = [worse, better, worse, worse, worse, worse]
    skill = recent_skill(sums({"served": rows, "advection": advection}), SETTINGS)
    assert skill.forecasters["net/1"].behind_advection_since == "2024-06-01T02:00:00Z"
    assert skill.behind_advection("net/1") == pd.Timedelta("3h")
    ahead = recent_skill(sums({"served": rows[:2], "advection": advection[:2]}), SETTINGS)
    assert ahead.behind_advection("net/1") == pd.Timedelta(0)
    assert ahead.behind_advection("nobody") == pd.Timedelta(0)


def test_an_hour_without_rain_neither_interrupts_nor_counts():
    rows = [[3, 3, 3], [0, 0, 0], [3, 3, 3]]
    of = sums({"served": rows, "advection": [[5, 5, 5], [0, 0, 0], [5, 5, 5]]})
    dry = xr.DataArray([1.0, 0.0, 1.0], dims="init_time")
    skill = recent_skill(of.assign(misses=of["misses"] * dry), SETTINGS)
    assert skill.forecasters["net/1"].behind_advection_since == "2024-06-01T00:00:00Z"


@given(st.permutations(range(6)), st.integers(1, 50))
def test_neither_order_nor_unit_of_counts_changes_it(order, scale):
    rng = np.random.default_rng(0)
    of = sums({name: rng.integers(0, 9, (6, 3)).tolist() for name in ("served", "persistence")})
    skill = recent_skill(of, SETTINGS).forecasters
    other = of.isel(init_time=list(order)).sortby("init_time") * scale
    assert recent_skill(other.assign_coords(model=of["model"]), SETTINGS).forecasters == skill


def test_it_is_written_and_read(tmp_path):
    root = str(tmp_path)
    assert update_skill(root, "knmi", SETTINGS) is None
    assert read_skill(root, "knmi") is None
    of = sums({"served": [[9, 9, 5]] * 30, "persistence": [[5, 5, 5]] * 30}, every="6h")
    write_scores(root, "knmi", [of])
    skill = update_skill(root, "knmi", SETTINGS)
    assert read_skill(root, "knmi") == skill
    assert skill.since == "2024-06-01T06:00:00Z", "seven days, and no more"
    assert skill.forecasters["served"].trust_horizon_interval_seconds == (600, 600)
    assert pd.read_parquet(tmp_path / "scores" / "knmi")["init_time"].nunique() == 30


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"made": 1}', b'{"forecasters": {"a": 1}}']
)
def test_a_damaged_file_is_none_and_a_warning(tmp_path, caplog, content):
    storage.write_bytes(f"{folder_url(str(tmp_path), 'knmi')}/{FILE}", content)
    assert read_skill(str(tmp_path), "knmi") is None
    assert "cannot be read" in caplog.text


def test_attributes_say_what_is_known_and_what_is_not():
    of = sums({"served": [[9, 9, 5]] * 3, "persistence": [[5, 5, 5]] * 3})
    told = skill_attributes(recent_skill(of, SETTINGS), "net/1")
    assert told["recent_skill"] == [0.9, 0.9, 0.5]
    assert told["recent_skill_persistence"] == [0.5, 0.5, 0.5]
    assert "recent_skill_advection" not in told
    assert told["trust_horizon_seconds"] == 600
    assert "trust_horizon_interval_seconds" not in told
    assert "too few events for its interval" in told["skill_note"]
    assert (
        "net/9 has been verified"
        in skill_attributes(recent_skill(of, SETTINGS), "net/9")["skill_note"]
    )
    assert list(skill_attributes(None, "net/1")) == ["skill_note"]


def test_lead_times_without_rain_are_left_out_of_attributes():
    skill = recent_skill(sums({"served": [[9, 9, 5]]}), SETTINGS)
    own = dataclasses.replace(skill.forecasters["net/1"], csi=(0.9, None, 0.5))
    told = skill_attributes(dataclasses.replace(skill, forecasters={"net/1": own}), "net/1")
    assert told["recent_skill_lead_seconds"] == [300, 900]
    assert told["recent_skill"] == [0.9, 0.5]
