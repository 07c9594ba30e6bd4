"""Which forecasts are due: each once its frames have come, and again when something changed."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import due, storage
from pipelines.archive import Status, archive_url
from pipelines.due import agenda
from pipelines.forecasts import FIRST, folder_url, forecast_name
from pipelines.manifest import ManifestRow
from pipelines.score_store import read_rows, write_scores
from pipelines.shadows import shadow_forecasters, shadow_root
from pipelines.times import time_text
from pipelines.units import pack
from tests.service import PRODUCT, publish_by_hand

START = pd.Timestamp("2024-06-01T00:00")
STEP = pd.Timedelta("5min")
LEADS = pd.timedelta_range("5min", periods=2, freq="5min")
"""Of `publish_by_hand`: two lead times."""


class World:
    """Frames at slots 0 to 9, and whatever is published; scored when it says so."""

    def __init__(self, root, grid, build_archive):
        self.root, self.grid = str(root), grid
        self.archive = build_archive(archive_url(self.root, PRODUCT), {}, slots=300)
        for slot in range(10):
            self.frame(slot)

    def frame(self, slot, content="first"):
        """A frame comes, with its manifest row."""
        time = self.archive.times[slot]
        self.archive.write_frame(time, pack(np.ones(self.grid.shape))[0])
        text = time_text(time)
        row = ManifestRow(text, "ok", f"file {slot}", 1, text, content, "s", "d", text)
        others = ManifestRow(text, "superseded", f"file {slot}", 1, text, "first", "s", "d", text)
        rows = [row] if content == "first" else [others, row]
        self.archive.commit(rows, {time: Status.OK})

    def publish(self, *slots, shadow=None, revision=1):
        root = shadow_root(self.root, shadow) if shadow else self.root
        for slot in slots:
            publish_by_hand(root, self.grid, START + slot * STEP, revision)

    def agenda(self, rules="rules", remade=("persistence",), **options):
        return agenda(self.root, PRODUCT, rules, remade, **options)

    def slots(self, **options):
        """The slots of the forecasts that are due."""
        return [int((one.init_time - START) / STEP) for one in self.agenda(**options).due]

    def score(self, **options):
        """As the verification does, but for the sums, which are none."""
        for one in self.agenda(**options).due:
            told = {"digest": one.digest, "shadows": json.dumps(one.shadows)}
            names = ["served", *one.shadows]
            pixels = xr.DataArray(
                np.zeros((1, len(names), len(one.lead_times), 1)),
                [
                    ("init_time", [one.init_time]),
                    ("forecaster", names),
                    ("lead_time", one.lead_times),
                    ("region", ["domain"]),
                ],
            )
            sums = xr.Dataset({"pixels": pixels})
            told = {name: ("init_time", [value]) for name, value in told.items()}
            write_scores(self.root, PRODUCT, [sums.assign_coords(told)])


@pytest.fixture
def world(tmp_path, grid, build_archive):
    return World(tmp_path, grid, build_archive)


def test_a_forecast_is_due_once_a_frame_of_its_last_valid_time_has_come(world):
    world.publish(6, 7, 8, 9)  # valid until slots 8, 9, 10 and 11
    plan = world.agenda()
    assert world.slots() == [6, 7]
    assert (plan.waiting, plan.unchanged, plan.missing) == (2, 0, set())
    assert [list(one.lead_times) for one in plan.due] == [list(LEADS)] * 2
    world.frame(10)
    assert world.slots() == [6, 7, 8]


def test_a_missing_frame_is_counted_and_not_waited_for(world):
    world.publish(8)
    world.frame(11)
    plan = world.agenda()
    assert len(plan.due) == 1
    assert plan.missing == {START + 10 * STEP}


def test_what_is_scored_is_not_due_again(world):
    world.publish(3, 4, 9)
    world.score()
    plan = world.agenda()
    assert (plan.due, plan.unchanged, plan.waiting) == ([], 2, 1)


def test_a_corrected_observation_has_those_scored_again_that_it_is_an_observation_of(world):
    world.publish(*range(8))
    world.score()
    world.frame(5, "corrected")
    assert world.slots() == [3, 4]
    world.score()
    assert world.slots() == []


def test_a_late_observation_too(world):
    world.publish(8)
    world.frame(11)
    world.score()
    world.frame(10)
    assert world.slots() == [8]
    world.score()
    assert world.slots() == []


def test_an_observation_that_turns_out_bad_too(world):
    world.publish(3, 4)
    world.score()
    world.archive.commit([], {world.archive.times[4]: Status.BAD})
    assert world.slots() == [3]


def test_a_frame_that_was_moved_into_the_training_layout_changes_nothing(world):
    world.publish(3, 4, 5)
    world.score()
    world.archive.commit([], dict.fromkeys(world.archive.times[:6], Status.MOVED))
    assert world.slots() == []
    assert world.slots(rules="others") == [5], "with it nothing can be compared any more"


def test_a_shadow_that_was_made_later_has_its_init_time_scored_again(world):
    world.publish(3, 4)
    world.score()
    world.publish(4, shadow="net/2")
    (one,) = world.agenda().due
    assert (one.init_time, one.shadows) == (START + 4 * STEP, ("net/2",))
    world.score()
    assert world.slots() == []


def test_a_shadow_of_an_init_time_that_was_not_served_is_none_of_ours(world):
    world.publish(3)
    world.publish(3, 4, shadow="persistence")
    (one,) = world.agenda().due
    assert one.shadows == ("persistence",)


def test_a_shadow_that_is_not_complete_does_not_count(world):
    world.publish(3)
    world.publish(3, shadow="net/2")
    place = folder_url(shadow_root(world.root, "net/2"), PRODUCT)
    storage.remove(f"{place}/{forecast_name(START + 3 * STEP)}/{storage.ROOT_METADATA}")
    assert world.agenda().due[0].shadows == ()
    world.score()
    assert world.slots() == []


def test_a_shadow_that_is_gone_changes_nothing_until_an_observation_is_corrected(world):
    world.publish(3, 4)
    for name in ("net/2", "persistence"):
        world.publish(3, 4, shadow=name)
    world.score()
    storage.remove(shadow_root(world.root, "net/2"))
    assert world.slots() == []
    assert world.slots(rules="others") == [], "it would lose the challenger's scores"
    world.frame(6, "corrected")
    (one,) = world.agenda().due
    assert (one.init_time, one.shadows) == (START + 4 * STEP, ("persistence",))
    world.score()
    assert world.slots() == []


def test_another_challenger_is_scored_though_an_earlier_ones_shadow_is_gone(world):
    world.publish(3)
    world.publish(3, shadow="net/2")
    world.score()
    storage.remove(shadow_root(world.root, "net/2"))
    world.publish(3, shadow="net/3")
    assert world.agenda().due[0].shadows == ("net/3",)


def test_baselines_whose_shadow_is_gone_are_made_again_when_settings_change(world):
    world.publish(3)
    world.publish(3, shadow="persistence")
    world.score()
    storage.remove(storage.join(world.root, "shadows"))
    assert world.slots() == []
    assert world.slots(rules="others") == [3]


def test_other_settings_have_all_scored_again(world):
    world.publish(3, 4)
    world.score()
    assert world.slots(rules="others") == [3, 4]


def test_a_later_revision_changes_nothing(world):
    world.publish(3)
    world.score()
    world.publish(3, revision=2)
    assert world.slots() == []


def test_in_part_what_has_come_is_due_and_again_when_more_comes(world):
    world.publish(7, 8, 9)
    assert world.slots(partial=True) == [7, 8]
    assert world.agenda(partial=True).waiting == 1
    world.score(partial=True)
    assert world.slots(partial=True) == []
    assert world.slots() == [], "and without it what was scored in part waits"
    world.frame(10)
    assert world.slots(partial=True) == [8, 9]
    assert world.slots() == [8]


def test_all_lead_times_are_remembered_of_what_was_scored_in_part(world):
    world.publish(8)
    world.score(partial=True)
    rows = read_rows(world.root, PRODUCT)
    assert list(rows["lead_time"]) == list(LEADS)


def test_only_recent_ones_where_that_is_said(world):
    world.publish(*range(8))
    plan = world.agenda(since=3 * STEP)
    assert plan.start == START + 4 * STEP
    assert world.slots(since=3 * STEP) == [4, 5, 6, 7]


def test_of_forecasts_that_were_scored_none_is_opened(world, monkeypatch):
    world.publish(*range(8))
    world.score()
    monkeypatch.setattr(due, "open_forecast", None)  # which would be called
    assert world.slots() == []


def test_a_forecast_that_is_not_complete_is_not_there(world):
    world.publish(3)
    name = forecast_name(START + 3 * STEP, FIRST)
    storage.remove(f"{folder_url(world.root, PRODUCT)}/{name}/{storage.ROOT_METADATA}")
    plan = world.agenda()
    assert (plan.due, plan.waiting, plan.unchanged) == ([], 0, 0)


def test_without_forecasts_nothing_is_due(world):
    assert world.agenda().due == []


def test_forecasters_with_shadows_are_found_by_name_and_version(world):
    world.publish(3, shadow="persistence")
    world.publish(3, shadow="net/20240601T000000Z")
    world.publish(3, shadow="net/20240602T000000Z")
    versions = ["net/20240601T000000Z", "net/20240602T000000Z"]
    assert shadow_forecasters(world.root) == [*versions, "persistence"]
    assert shadow_forecasters(f"{world.root}/nowhere") == []


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corrected=st.sets(st.integers(0, 9)), late=st.sets(st.integers(10, 13)))
def test_due_again_is_exactly_what_a_change_is_an_observation_of(
    tmp_path_factory, grid, build_archive, corrected, late
):
    world = World(tmp_path_factory.mktemp("due"), grid, build_archive)
    world.frame(14)
    world.publish(*range(0, 12, 3))
    world.score()
    for slot in corrected | late:
        world.frame(slot, "another")
    changed = corrected | late
    assert world.slots() == [k for k in range(0, 12, 3) if {k + 1, k + 2} & changed]
