"""Latency, from visible frame to readable forecast, by what forecasts say of themselves."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import NotFoundError
from pipelines.latency import ROWS, STAGES, latency, of_records
from pipelines.records import Record
from pipelines.times import time_text
from tests.service import PRODUCT, SECONDS, publish_by_hand

TIME = pd.Timestamp("2024-06-01T05:00")
STEP = pd.Timedelta("5min")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def record(total_s, stages, k=0, **attributes):
    received = TIME + k * STEP + pd.Timedelta("1min")
    published = received + pd.Timedelta(milliseconds=round(total_s * 1000))
    given = {f"seconds_{stage}": value for stage, value in zip(STAGES, stages, strict=True)}
    given |= {"frame_received_time": time_text(received), "publish_time": time_text(published)}
    return Record(f"{k}", TIME + k * STEP, 1, given | attributes)


def test_quantiles_worked_by_hand(root, grid):
    """Totals of 10, 20, 30, 40, 60 s: the median is 30, the 95th percentile 0.8 of 40 to 60."""
    for k, total in enumerate((20, 10, 60, 30, 40)):
        published = time_text(TIME + k * STEP + pd.Timedelta(seconds=60 + total))
        publish_by_hand(root, grid, TIME + k * STEP, publish_time=published)
    found = latency(root, PRODUCT)
    assert found.left_out == {}
    table = found.quantiles()
    assert list(table.index) == list(ROWS)
    assert table.loc["total"].to_dict() == pytest.approx({"p50": 30, "p95": 56, "max": 60})
    assert table.loc["wait"].to_dict() == pytest.approx({"p50": 23, "p95": 49, "max": 53})
    for stage, seconds in SECONDS.items():
        assert (table.loc[stage] == seconds).all()
    told = found.as_dict()
    assert told["seconds"]["total"] == {"p50": 30.0, "p95": 56.0, "max": 60.0}
    assert (told["first"], told["last"]) == (time_text(TIME), time_text(TIME + 4 * STEP))


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=5, max_size=5)),
        min_size=1,
    )
)
def test_the_stages_and_the_wait_make_up_the_total(made):
    """In thousandths of a second, as `publish_time` is stamped; in any order of forecasts."""
    records = [
        record(wait / 1e3 + sum(stages) / 1e3, [s / 1e3 for s in stages], k)
        for k, (wait, stages) in enumerate(made)
    ]
    seconds = of_records(reversed(records)).seconds
    assert seconds.index.is_monotonic_increasing
    parts = seconds[["wait", *STAGES]].sum(axis="columns")
    assert parts.to_numpy() == pytest.approx(seconds["total"].to_numpy(), abs=1e-6)
    assert seconds["wait"].to_numpy() == pytest.approx([wait / 1e3 for wait, _ in made], abs=2e-6)


def test_what_does_not_count_is_counted_with_its_reason(root, grid):
    publish_by_hand(root, grid, TIME)
    publish_by_hand(root, grid, TIME, 2, publish_time=time_text(TIME + pd.Timedelta("5h")))
    publish_by_hand(root, grid, TIME + STEP, backfill=1)
    publish_by_hand(root, grid, TIME + 2 * STEP, frame_received_time="")
    found = latency(root, PRODUCT)
    assert list(found.seconds.index) == [TIME]
    assert found.seconds.loc[TIME, "total"] == 10
    assert found.left_out == {
        "later revisions": 1,
        "backfilled": 1,
        "without times of their making": 1,
    }


def test_the_last_24_hours_before_the_newest_forecast_or_a_chosen_period(root, grid):
    hours = (-30, -25, -24, -1, 0)
    times = [TIME + pd.Timedelta(hours=hour) for hour in hours]
    for time in times:
        publish_by_hand(root, grid, time)

    def counted(**period):
        found = latency(root, PRODUCT, **period).seconds.index
        return [hour for hour, time in zip(hours, times, strict=True) if time in found]

    assert counted() == [-24, -1, 0]
    assert counted(until=times[3]) == [-25, -24, -1]
    assert counted(since=times[1]) == [-25, -24, -1, 0]
    assert counted(since=times[0], until=times[2]) == [-30, -25, -24]


def test_nothing_to_count_is_an_error_that_says_why(root, grid):
    with pytest.raises(NotFoundError, match="found no forecast from") as error:
        latency(root, PRODUCT)
    assert str(error.value).count("\n") == 0
    publish_by_hand(root, grid, TIME, backfill=1)
    with pytest.raises(NotFoundError, match="found 1 backfilled from 2024-05-31T05:00:00Z"):
        latency(root, PRODUCT)
