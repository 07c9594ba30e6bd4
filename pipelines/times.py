"""Times and durations: UTC, labelled, never counted.

Times inside Squall are naive `datetime64[ns]`, always UTC. Durations are `timedelta` and are
written the way people write them: ``5min``, ``1h``, ``PT5M`` or seconds.
"""

import contextlib
import datetime as dt
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Annotated, Literal

import pandas as pd
from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from pipelines.errors import SquallError

INIT_TIME_FORMAT = "%Y%m%dT%H%MZ"


def parse_duration(value: object) -> object:
    """`5min`, `1h30min`, `PT5M` or a number of seconds as a timedelta; anything else unchanged."""
    if isinstance(value, (int, float)):
        return dt.timedelta(seconds=value)
    if isinstance(value, str):
        seconds = re.fullmatch(r"-?\d+(\.\d+)?", value.strip())  # pandas takes bare numbers as ns
        try:
            duration = pd.Timedelta(f"{value}s" if seconds else value)
        except ValueError as error:
            raise ValueError(f"{value!r} is no duration; write 5min, 1h or PT5M") from error
        if duration is pd.NaT:
            raise ValueError(f"{value!r} is no duration; write 5min, 1h or PT5M")
        return duration.to_pytimedelta()
    return value


def format_duration(duration: dt.timedelta | pd.Timedelta) -> str:
    """The shortest of ``2h``, ``90min``, ``45s`` that is exact."""
    seconds = pd.Timedelta(duration).total_seconds()
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.15g}s"


Duration = Annotated[
    dt.timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
]
"""A timedelta that reads and prints as ``5min``."""


DurationOrNever = Annotated[
    Duration | None,
    BeforeValidator(lambda value: None if value == "never" else value),
    PlainSerializer(lambda v: "never" if v is None else format_duration(v), return_type=str),
]
"""A duration, or None, which reads and prints as ``never``: settings take None for not given."""


def utc(value: object) -> pd.Timestamp:
    """Any time as a naive UTC timestamp. Times without a zone are taken as UTC.

    Raises `SquallError` when `value` is no time.
    """
    try:
        time = pd.Timestamp(value)  # type: ignore[arg-type]
        if time is pd.NaT:
            raise ValueError("not a time")
    except (ValueError, TypeError) as error:
        raise SquallError(
            "not a time",
            found=repr(value),
            expected="a UTC time such as 2010-08-26T05:00",
            remedy="write it as YYYY-MM-DDTHH:MM",
        ) from error
    if time.tzinfo is not None:
        time = time.tz_convert("UTC").tz_localize(None)
    return time.as_unit("ns")


_OFFSET: ContextVar[pd.Timedelta | None] = ContextVar("clock offset", default=None)


def now(unit: Literal["s", "ms"] = "s") -> pd.Timestamp:
    """This moment, UTC, to the second or millisecond; in a replay the moment replayed."""
    moment = pd.Timestamp.now("UTC").tz_localize(None) + (_OFFSET.get() or pd.Timedelta(0))
    return moment.floor(unit).as_unit("ns")


@contextlib.contextmanager
def clock_set_to(time: pd.Timestamp) -> Iterator[None]:
    """In this block `now` starts at `time` and runs on: how a past period is replayed."""
    token = _OFFSET.set(time - pd.Timestamp.now("UTC").tz_localize(None))
    try:
        yield
    finally:
        _OFFSET.reset(token)


def init_time_label(init_time: pd.Timestamp) -> str:
    """The name of a forecast: ``20100826T0500Z``."""
    return init_time.strftime(INIT_TIME_FORMAT)


def time_text(time: pd.Timestamp) -> str:
    """ISO 8601 with the zone said: ``2010-08-26T05:00:00Z``."""
    return time.isoformat(timespec="milliseconds" if time.microsecond else "auto") + "Z"


Time = Annotated[pd.Timestamp, PlainValidator(utc), PlainSerializer(time_text)]
"""A UTC time that JSON has as ``2010-08-26T05:00:00Z``."""
Seconds = Annotated[
    pd.Timedelta,
    PlainValidator(lambda seconds: pd.Timedelta(seconds=float(seconds))),
    PlainSerializer(pd.Timedelta.total_seconds),
]
"""A duration that JSON has as a number of seconds."""


def lead_times(timestep: pd.Timedelta, until: dt.timedelta) -> pd.TimedeltaIndex:
    """The lead times of a forecast: one timestep, two timesteps, … up to and with `until`.

    Raises `SquallError` when `until` is not a positive whole number of timesteps.
    """
    return spaced(timestep, until, "lead time")


def spaced(timestep: pd.Timedelta, duration: dt.timedelta, name: str) -> pd.TimedeltaIndex:
    """Timestep, 2·timestep, … `duration`; an error where that does not come out even."""
    length = pd.Timedelta(duration)
    if length < timestep or length % timestep != pd.Timedelta(0):
        raise SquallError(
            f"{name} does not fit the timestep",
            found=format_duration(length),
            expected=f"a multiple of the archive's timestep, {format_duration(timestep)}",
            remedy=f"set the {name} to such a multiple",
        )
    return pd.timedelta_range(timestep, length, freq=timestep, name="lead_time")
