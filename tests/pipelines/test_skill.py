"""Recent skill, by forecaster: from sums, from the store, and back from its file."""

import logging

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import score_store, storage
from pipelines.score_store import open_scores, write_scores
from pipelines.skill import (
    RecentSkill,
    SkillSettings,
    read_skill,
    recent_skill,
    skill_url,
    update_skill,
)
from tests.verified import verified

START = pd.Timestamp("2024-06-01T00:00")
HOUR = pd.Timedelta("1h")
MADE = pd.Timestamp("2024-06-09T12:00")
MINUTES = {n: pd.Timedelta(minutes=n) for n in (0, 5, 10)}
NAN = np.nan
SETTINGS = SkillSettings(least_chunks=1)


def hours(count, start=START):
    return pd.date_range(start, periods=count, freq="h")


def served_by_net(count=48, net=(0.6, 0.4), **options):
    """Of net/1, behind persistence at the second lead time, and behind advection."""
    csi = {"served": [net], "persistence": [(0.5, 0.5)], "advection": [(0.7, 0.6)]}
    return verified(hours(count), csi, served="net/1", **options)


def test_recent_skill_by_hand():
    recent = recent_skill(served_by_net(), SETTINGS, MADE)
    assert (recent.made, recent.since, recent.until) == (MADE, START, START + 47 * HOUR)
    assert recent.threshold_mm_h == 0.5
    assert recent.lead_times == (MINUTES[5], MINUTES[10])
    assert list(recent.forecasters) == ["served", "advection", "net/1", "persistence"]
    skill = recent.of("net/1")
    assert skill.forecasts == 48
    assert skill.csi == pytest.approx((0.6, 0.4))
    assert skill.persistence == (0.5, 0.5)
    assert skill.advection == pytest.approx((0.7, 0.6))
    assert (skill.trust_horizon, skill.trust_horizon_reached) == (MINUTES[5], True)
    assert skill.trust_horizon_interval == (MINUTES[5], MINUTES[5])
    assert skill.behind_advection_since == START
    assert skill.behind.until == START + 47 * HOUR, "the last hour is not over"
    assert recent.of("served") == skill
    assert recent.of("nobody") is None


def test_baselines_have_theirs():
    recent = recent_skill(served_by_net(), SETTINGS)
    advection, persistence = recent.of("advection"), recent.of("persistence")
    assert (advection.trust_horizon, advection.trust_horizon_reached) == (MINUTES[10], False)
    assert advection.behind is None
    assert (persistence.trust_horizon, persistence.trust_horizon_reached) == (MINUTES[0], True)
    assert persistence.behind_advection_since == START


def test_a_model_is_judged_by_what_it_served_and_by_its_shadow_forecasts():
    """Served for two hours with 0.6, then advection instead of it, and it in shadow with 0.2."""
    csi = {
        "served": [0.6, 0.6, 0.7, 0.7],
        "net/1": [NAN, NAN, 0.2, 0.2],
        "persistence": 0.5,
        "advection": 0.7,
    }
    sums = verified(hours(4), csi, served=["net/1", "net/1", "advection", "advection"])
    recent = recent_skill(sums, SETTINGS)
    assert recent.of("net/1").forecasts == 4
    assert recent.of("net/1").csi == pytest.approx((0.4, 0.4))
    assert recent.of("served").csi == pytest.approx((0.65, 0.65))
    assert recent.of("advection").csi == pytest.approx((0.7, 0.7))


def test_all_are_compared_on_the_forecasts_that_all_of_them_have():
    csi = {
        "served": [0.9, 0.3, 0.3, 0.9],
        "persistence": [NAN, 0.2, 0.2, 0.2],
        "advection": [0.4, 0.4, 0.4, NAN],
    }
    skill = recent_skill(verified(hours(4), csi, served="net/1"), SETTINGS).of("net/1")
    assert skill.forecasts == 2
    assert (skill.since, skill.until) == (START + HOUR, START + 2 * HOUR)
    assert skill.csi == pytest.approx((0.3, 0.3))
    assert skill.advection == pytest.approx((0.4, 0.4))


def test_a_lead_time_that_has_not_come_yet_does_not_count():
    own = [[0.6, 0.4], [0.6, NAN]]
    csi = {"served": own, "persistence": [[0.2, 0.2], [0.2, NAN]]}
    skill = recent_skill(verified(hours(2), csi, served="net/1"), SETTINGS).of("net/1")
    assert (skill.forecasts, skill.csi) == (2, pytest.approx((0.6, 0.4)))


def test_without_baselines_there_is_skill_and_nothing_to_compare_it_with():
    sums = verified(hours(8), {"served": [(0.6, 0.4)]}, served="net/1")
    skill = recent_skill(sums, SETTINGS).of("net/1")
    assert skill.csi == pytest.approx((0.6, 0.4))
    assert (skill.persistence, skill.advection) == ((), ())
    assert (skill.trust_horizon, skill.trust_horizon_interval, skill.behind) == (None,) * 3


def test_without_rain_nothing_is_known():
    skill = recent_skill(served_by_net(observed=0.0), SETTINGS).of("net/1")
    np.testing.assert_array_equal(skill.csi, [NAN, NAN])
    assert (skill.trust_horizon, skill.trust_horizon_interval, skill.behind) == (None,) * 3
    assert not skill.trust_horizon_reached
    assert skill.forecasts == 48


def test_one_that_has_no_forecast_in_common_is_left_out():
    csi = {"served": 0.5, "net/2": NAN, "persistence": 0.5}
    assert "net/2" not in recent_skill(verified(hours(3), csi), SETTINGS).forecasters


def test_only_the_window_up_to_the_newest_counts():
    csi = {"served": [0.1] * 12 + [0.6] * 12, "persistence": 0.5}
    settings = SkillSettings(window="11h")
    recent = recent_skill(verified(hours(24), csi, served="net/1"), settings)
    assert (recent.since, recent.until) == (START + 12 * HOUR, START + 23 * HOUR)
    assert recent.of("net/1").csi == pytest.approx((0.6, 0.6))


@pytest.mark.parametrize(("wanted", "stored"), [(0.5, 0.5), (1.0, 0.5), (4.0, 5.0), (99, 5.0)])
def test_the_threshold_is_the_nearest_that_is_scored(tmp_path, wanted, stored):
    settings = SkillSettings(threshold_mm_h=wanted)
    assert recent_skill(served_by_net(), settings).threshold_mm_h == stored
    write_scores(str(tmp_path), "knmi", [served_by_net()])
    assert update_skill(str(tmp_path), "knmi", settings).threshold_mm_h == stored


@settings(max_examples=15)
@given(st.permutations(range(9)), st.sampled_from([0.25, 3.0]))
def test_neither_the_order_nor_the_size_of_the_domain_changes_it(order, scale):
    csi = {"served": [0.75, 0.25, 0.5] * 3, "persistence": 0.5, "advection": [0.25, 0.5, 0.75] * 3}
    sums = verified(hours(9), csi, served="net/1", observed=64.0)
    shuffled = sums.isel(init_time=list(order), forecaster=[2, 0, 1], lead_time=[1, 0]) * scale
    how = SkillSettings(least_chunks=1, least_blocks=2, block="1h", samples=100)
    assert recent_skill(shuffled, how, MADE) == recent_skill(sums, how, MADE)


# Stored ------------------------------------------------------------------------------------------


def test_from_the_store_is_what_it_is_from_the_sums(tmp_path, monkeypatch):
    """Over midnights; only the rows and columns that are needed are read."""
    root = str(tmp_path)
    sums = served_by_net(60)
    elsewhere = (0 * sums).assign(pixels=sums["pixels"]).assign_coords(region=["coast"])
    everything = xr.concat([sums, elsewhere], "region")
    write_scores(root, "knmi", [everything.assign(squared_error=everything["pixels"])])
    asked = []
    parquet = score_store.pd.read_parquet

    def watched(content, columns=None):
        asked.append(columns)
        return parquet(content, columns=columns)

    monkeypatch.setattr(score_store.pd, "read_parquet", watched)
    settings = SkillSettings(window="30h", least_chunks=1)
    found = update_skill(root, "knmi", settings)
    read = list(asked)
    assert found == recent_skill(sums, settings, found.made)
    assert found == recent_skill(open_scores(root, "knmi"), settings, found.made)
    assert found.since == START + 29 * HOUR
    assert len(read) >= 2
    assert not any(names is None or "squared_error" in names for names in read)
    assert read_skill(root, "knmi") == found


def test_stock_pandas_still_reads_the_scores_folder(tmp_path):
    write_scores(str(tmp_path), "knmi", [served_by_net(3)])
    before = len(pd.read_parquet(tmp_path / "scores" / "knmi"))
    update_skill(str(tmp_path), "knmi", SETTINGS)
    assert len(pd.read_parquet(tmp_path / "scores" / "knmi")) == before > 0


@pytest.mark.parametrize("observed", [0.0, 100.0])
def test_what_is_written_comes_back_and_is_json(tmp_path, observed):
    root = f"memory://skill-{observed}"
    write_scores(root, "knmi", [served_by_net(observed=observed)])
    found = update_skill(root, "knmi", SETTINGS)
    again = read_skill(root, "knmi")
    assert repr(again) == repr(found)  # in which NaN is NaN
    content = storage.read_bytes(skill_url(root, "knmi")).decode()
    assert "NaN" not in content
    told = storage.read_json(skill_url(root, "knmi"))
    assert told["until"] == "2024-06-02T23:00:00Z"
    assert told["lead_times"] == [300, 600]
    assert told["forecasters"]["net/1"]["csi"][0] == (None if observed == 0 else pytest.approx(0.6))


def test_nothing_verified_is_no_skill(tmp_path):
    root = str(tmp_path)
    assert update_skill(root, "knmi", SETTINGS) is None
    write_scores(root, "knmi", [verified(hours(2), {"served": NAN, "persistence": NAN})])
    assert update_skill(root, "knmi", SETTINGS) is None
    assert read_skill(root, "knmi") is None


DAMAGED = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "something else": lambda text: "[1, 2]",
    "no text": lambda text: "\xff\xfe",
    "a score too few": lambda text: text.replace('"lead_times": [\n  300.0,', '"lead_times": ['),
    "no time": lambda text: text.replace("2024-06-02T23:00:00Z", "yesterday"),
    "a name": lambda text: text.replace('"csi"', '"pod"'),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_a_warning_and_none(tmp_path, caplog, how):
    root = str(tmp_path)
    write_scores(root, "knmi", [served_by_net()])
    update_skill(root, "knmi", SETTINGS)
    url = skill_url(root, "knmi")
    text = storage.read_bytes(url).decode()
    assert DAMAGED[how](text) != text
    storage.write_bytes(url, DAMAGED[how](text).encode("latin1"))
    with caplog.at_level(logging.WARNING):
        assert read_skill(root, "knmi") is None
    (record,) = caplog.records
    assert "cannot be read" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_storage_that_cannot_be_reached_is_none_too(monkeypatch, caplog):
    def fail(url):
        raise OSError("no route to host")

    monkeypatch.setattr(storage, "read_bytes", fail)
    assert read_skill("memory://far", "knmi") is None
    assert "no route to host" in caplog.text


def test_a_score_for_each_lead_time_or_it_is_none():
    skill = recent_skill(served_by_net(), SETTINGS).of("net/1")
    with pytest.raises(ValueError, match="net/1 has not a score for each of 1 lead times"):
        RecentSkill(MADE, START, START, 0.5, (MINUTES[5],), {"net/1": skill})
