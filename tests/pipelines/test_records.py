"""Records: which revisions of which forecasts there are, by their root metadata alone."""

import pandas as pd
import pytest

from pipelines import storage
from pipelines.forecasts import forecast_name
from pipelines.records import (
    all_revisions,
    published_names,
    read_records,
)
from tests.service import PRODUCT, publish_by_hand

TIME = pd.Timestamp("2024-06-01T05:00")
STEP = pd.Timedelta("5min")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def names_of(revisions):
    return {time: [record.name for record in found] for time, found in revisions.items()}


def test_names_are_listed_by_init_time_and_revision(root, grid):
    for time, revision in ((TIME + STEP, 1), (TIME, 1), (TIME, 10), (TIME, 2)):
        publish_by_hand(root, grid, time, revision)
    assert published_names(root, PRODUCT) == {
        TIME: [forecast_name(TIME, revision) for revision in (1, 2, 10)],
        TIME + STEP: [forecast_name(TIME + STEP)],
    }
    assert published_names(root, "nothing") == {}


def test_a_record_has_the_attributes_and_times_of_its_forecast(root, grid):
    name = publish_by_hand(root, grid, TIME, quality="degraded", input_age_seconds=[60.0, 360.0])
    (record,) = read_records(root, PRODUCT, [name])
    assert (record.name, record.init_time, record.revision) == (name, TIME, 1)
    assert record.quality == "degraded"
    assert record.attributes["input_age_seconds"] == [60.0, 360.0]
    assert record.time("publish_time") == TIME + pd.Timedelta("70s")
    assert record.time("superseded_time") is None


def test_a_forecast_that_is_not_complete_has_no_record(root, grid, tmp_path):
    whole, half = (publish_by_hand(root, grid, time) for time in (TIME, TIME + STEP))
    (tmp_path / "forecasts" / PRODUCT / half / "zarr.json").unlink()
    names = [half, forecast_name(TIME + 9 * STEP), "latest.json", whole]
    assert [record.name for record in read_records(root, PRODUCT, names)] == [whole]


def test_an_unreadable_store_is_an_error_and_no_missing_forecast(root, grid, tmp_path):
    name = publish_by_hand(root, grid, TIME)
    metadata = tmp_path / "forecasts" / PRODUCT / name / "zarr.json"
    metadata.unlink()
    metadata.mkdir()
    with pytest.raises(IsADirectoryError):
        read_records(root, PRODUCT, [name])


def test_revisions_are_found_one_from_the_other_without_a_listing(root, grid, monkeypatch):
    for revision in (1, 2, 3):
        publish_by_hand(root, grid, TIME, revision)
    publish_by_hand(root, grid, TIME + STEP)
    monkeypatch.setattr(storage, "names", None)  # which would be called
    assert names_of(all_revisions(root, PRODUCT, [TIME, TIME + STEP])) == {
        TIME: [forecast_name(TIME, revision) for revision in (1, 2, 3)],
        TIME + STEP: [forecast_name(TIME + STEP)],
    }


def test_a_revision_that_names_itself_is_followed_no_further(root, grid):
    publish_by_hand(root, grid, TIME, superseded_by=forecast_name(TIME))
    assert names_of(all_revisions(root, PRODUCT, [TIME])) == {TIME: [forecast_name(TIME)]}


def test_an_object_store_is_read_alike(grid):
    root = "memory://watched"
    publish_by_hand(root, grid, TIME)
    publish_by_hand(root, grid, TIME, 2)
    found = names_of(all_revisions(root, PRODUCT, [TIME, TIME + STEP]))
    assert found == {TIME: [forecast_name(TIME), forecast_name(TIME, 2)]}
    assert list(published_names(root, PRODUCT)) == [TIME]
