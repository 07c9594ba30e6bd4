"""Times are UTC and labelled; durations read and print as people write them."""

import datetime as dt

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipelines.errors import SquallError
from pipelines.times import (
    Duration,
    DurationOrNever,
    Seconds,
    Time,
    format_duration,
    init_time_label,
    lead_times,
    now,
    parse_duration,
    spaced,
    time_text,
    utc,
)

DURATION = TypeAdapter(Duration)
FIVE_MINUTES = pd.Timedelta("5min")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5min", 300),
        ("1h30min", 5400),
        ("PT5M", 300),
        ("2h", 7200),
        (90, 90),
        (0.5, 0.5),
        ("300", 300),
        ("0.5", 0.5),
        ("-60", -60),
        (dt.timedelta(minutes=1), 60),
    ],
)
def test_durations_are_read_as_people_write_them(written, seconds):
    assert DURATION.validate_python(written) == dt.timedelta(seconds=seconds)


@pytest.mark.parametrize("written", ["soon", "5 parsecs", "", "NaT", "nan"])
def test_what_is_no_duration_is_an_error_that_shows_how_to_write_one(written):
    with pytest.raises(ValidationError, match="write 5min, 1h or PT5M"):
        DURATION.validate_python(written)


def test_what_is_neither_text_nor_number_is_left_to_pydantic():
    assert parse_duration(None) is None


@pytest.mark.parametrize(
    ("duration", "text"),
    [("2h", "2h"), ("90min", "90min"), ("60min", "1h"), ("45s", "45s"), ("1500ms", "1.5s")],
)
def test_durations_print_in_the_largest_unit_that_is_exact(duration, text):
    assert format_duration(pd.Timedelta(duration)) == text


@given(st.integers(0, 10**7))
def test_a_printed_duration_reads_as_itself(seconds):
    duration = dt.timedelta(seconds=seconds)
    assert DURATION.validate_python(format_duration(duration)) == duration
    assert DURATION.validate_json(DURATION.dump_json(duration)) == duration


def test_never_and_durations_read_as_they_print():
    for duration, text in ((None, "never"), (dt.timedelta(hours=24), "24h")):
        assert TypeAdapter(DurationOrNever).dump_python(duration) == text
        assert TypeAdapter(DurationOrNever).validate_python(text) == duration


@given(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)), st.integers(0, 10**7))
def test_times_and_seconds_in_json_read_as_themselves(moment, seconds):
    time = pd.Timestamp(moment).floor("ms").as_unit("ns")
    duration = pd.Timedelta(seconds=seconds)
    for kind, value in ((Time, time), (Seconds, duration)):
        form = TypeAdapter(kind)
        assert form.validate_json(form.dump_json(value)) == value


def test_a_time_with_a_zone_becomes_utc_and_one_without_is_utc():
    five = pd.Timestamp("2010-08-26T05:00")
    for written in (
        "2010-08-26T07:00+02:00",
        "2010-08-26T05:00Z",
        "2010-08-26T05:00",
        dt.datetime(2010, 8, 26, 5),
        five.tz_localize("UTC").tz_convert("Asia/Tokyo"),
    ):
        assert utc(written) == five
        assert utc(written).tzinfo is None
        assert utc(written).unit == "ns"


@pytest.mark.parametrize("written", ["yesterday or so", object(), None, "NaT", ""])
def test_what_is_no_time_is_an_error(written):
    with pytest.raises(SquallError, match="write it as YYYY-MM-DDTHH:MM"):
        utc(written)


def test_now_is_utc_to_the_second():
    moment = now()
    assert abs(moment - pd.Timestamp(dt.datetime.now(dt.UTC)).tz_localize(None)) < pd.Timedelta(
        "5s"
    )
    assert moment == moment.floor("s")


def test_labels_say_their_zone():
    time = pd.Timestamp("2010-08-26T05:00")
    assert init_time_label(time) == "20100826T0500Z"
    assert time_text(time) == "2010-08-26T05:00:00Z"


@given(st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1)))
def test_a_time_as_text_reads_as_itself(moment):
    time = pd.Timestamp(moment).floor("s").as_unit("ns")
    assert utc(time_text(time)) == time


def test_lead_times_go_from_one_timestep_to_the_last_one_included():
    leads = lead_times(FIVE_MINUTES, dt.timedelta(minutes=20))
    assert list(leads) == [pd.Timedelta(minutes=m) for m in (5, 10, 15, 20)]
    assert leads.name == "lead_time"


@pytest.mark.parametrize("minutes", [0, 3, 7, 12, -5])
def test_a_lead_time_that_the_timestep_does_not_divide_is_an_error(minutes):
    with pytest.raises(SquallError, match="expected a multiple of the archive's timestep, 5min"):
        lead_times(FIVE_MINUTES, dt.timedelta(minutes=minutes))


@given(st.integers(1, 3600), st.integers(1, 50))
def test_spacing_gives_every_multiple_once(seconds, count):
    timestep = pd.Timedelta(seconds=seconds)
    offsets = spaced(timestep, timestep * count, "past")
    assert list(offsets) == [timestep * k for k in range(1, count + 1)]
