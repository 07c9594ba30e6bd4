"""A past period through the production code, as if its frames arrived now.

Files get simulated arrival times; the clock (`pipelines.times.now`) is set to each arrival and runs
on while the service works. So forecasts come out as they would have come then: from what was known,
late frames superseding what they should have been in, with the latency that this machine gives.
"""

import datetime as dt
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pydantic import Field

from models.rounds import Outcome, Service, run_round
from pipelines.errors import SquallError
from pipelines.section import Section
from pipelines.sources import FrameFile
from pipelines.times import Duration, clock_set_to, now, utc

log = logging.getLogger(__name__)

CORRECTED_WITHIN = pd.Timedelta("1D")
"""A second file of a valid time comes so much after the first as it did then, if that is less."""


class Outage(Section):
    """A time in which nothing arrives; what was due comes at its end."""

    begin: dt.datetime = Field(description="From when on nothing arrives, UTC.")
    length: Duration = Field(description="For how long.")


class ReplaySettings(Section):
    """How a past period arrives again."""

    delay: Duration = Field(
        dt.timedelta(minutes=1), description="How long after its valid time a frame arrives."
    )
    late: float = Field(0.0, ge=0, le=1, description="How likely a frame is to come late.")
    late_by: Duration = Field(dt.timedelta(minutes=7), description="How much later those come.")
    missing: float = Field(0.0, ge=0, le=1, description="How likely a frame is never to come.")
    outages: tuple[Outage, ...] = Field(
        (), description="When nothing arrives; what was due comes after."
    )
    seed: int = Field(0, ge=0, description="Which frames are late and which are missing.")
    shadows: bool = Field(
        False, description="Forecast in shadow too (`shadow.…`), in the time that is left."
    )


@dataclass(frozen=True)
class Arrivals:
    """Files with the time at which each arrives (`received`), in that order; those that never do.

    `late` are those of `files` that come late.
    """

    files: list[FrameFile]
    lost: list[FrameFile]
    late: list[FrameFile]


def simulate(files: list[FrameFile], settings: ReplaySettings) -> Arrivals:
    """When each file arrives: its valid time and the usual delay, and what goes wrong besides.

    What becomes of a frame follows from the settings and its valid time alone, whatever the period.
    Files of the same valid time, a frame and its correction, share it.
    """
    arriving, lost, late = [], [], []
    for valid_time, group in itertools.groupby(sorted(files), lambda file: file.valid_time):
        same_time = list(group)
        seed = settings.seed, valid_time.value // 10**9
        misses, delays = np.random.default_rng(seed).random(2)
        if misses < settings.missing:
            lost += same_time
            continue
        received = valid_time + pd.Timedelta(settings.delay)
        if delays < settings.late:
            received += pd.Timedelta(settings.late_by)
        came = [
            _after_outages(received + _after(same_time[0], file), settings) for file in same_time
        ]
        arriving += [replace(file, received=r) for file, r in zip(same_time, came, strict=True)]
        if delays < settings.late:
            late += arriving[-len(same_time) :]
    return Arrivals(sorted(arriving, key=lambda file: (file.received, file)), lost, late)


def _after(first: FrameFile, file: FrameFile) -> pd.Timedelta:
    after = file.received - first.received
    return after if after < CORRECTED_WITHIN else pd.Timedelta(0)


def _after_outages(received: pd.Timestamp, settings: ReplaySettings) -> pd.Timestamp:
    for outage in sorted(settings.outages, key=lambda outage: utc(outage.begin)):
        end = utc(outage.begin) + pd.Timedelta(outage.length)
        if utc(outage.begin) <= received < end:
            received = end
    return received


@dataclass(frozen=True)
class Round:
    """A round of a replay: from when to when (UTC), the files it was given, what came of it.

    `trouble` is what it raised in the end; its files then go to the next round.
    """

    began: pd.Timestamp
    ended: pd.Timestamp
    files: list[FrameFile]
    outcomes: list[Outcome]
    trouble: SquallError | None = None

    @property
    def took(self) -> pd.Timedelta:
        """How long it went on."""
        return self.ended - self.began


def replay(
    service: Service, files: list[FrameFile], *, speed: float | None = None
) -> Iterator[Round]:
    """A round for every arrival, as the service makes them that looks every `nowcast.poll`.

    Frames that arrive while a round is under way wait for the next. After a round that took longer
    than `nowcast.poll` it looks again, as it may have left something for later. `files` are in
    order of arrival (`received`). `speed` : so many times as fast as it was; None: as fast as this
    machine can.
    """
    waiting = deque(files)
    poll = pd.Timedelta(service.nowcaster.settings.poll)
    moment = waiting[0].received if waiting else now()
    left: list[FrameFile] = []
    again: pd.Timestamp | None = None
    while waiting or again is not None:
        looks = [waiting[0].received.ceil(poll)] if waiting else []
        due = max(moment, min([*looks, again] if again is not None else looks))
        if speed is not None:
            time.sleep((due - moment).total_seconds() / speed)
        arrived = left
        while waiting and waiting[0].received <= due:
            arrived.append(waiting.popleft())
        done = _round(service, due, arrived)
        yield done
        moment = done.ended
        left = list(arrived) if done.trouble else []
        again = moment + poll if done.outcomes and done.took > poll else None


def _round(service: Service, moment: pd.Timestamp, files: list[FrameFile]) -> Round:
    outcomes: list[Outcome] = []
    trouble = None
    with clock_set_to(moment):
        try:
            for outcome in run_round(service, files):
                outcomes.append(outcome)
        except SquallError as error:  # ends a run of the service; the next one goes on
            log.warning("the round at %s: %s", moment, error)
            trouble = error
        return Round(moment, now("ms"), files, outcomes, trouble)
