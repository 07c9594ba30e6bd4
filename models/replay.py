"""A past period through the production code, as if its frames arrived now.

Files get simulated arrival times; the clock (`pipelines.times.now`) is set to each arrival and runs
on while the service works. So forecasts come out as they would have come then: from what was known,
late frames superseding what they should have been in, with the latency that this machine gives.
"""

import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pydantic import Field

from models.rounds import Outcome, Service, run_round
from pipelines.section import Section
from pipelines.sources import FrameFile
from pipelines.times import Duration, clock_set_to, now, utc


class ReplaySettings(Section):
    """How a past period arrives again."""

    delay: Duration = Field(
        dt.timedelta(minutes=1), description="How long after its valid time a frame arrives."
    )
    late: float = Field(0.0, ge=0, le=1, description="Share of the frames that come late.")
    late_by: Duration = Field(dt.timedelta(minutes=7), description="How much later those come.")
    missing: float = Field(0.0, ge=0, le=1, description="Share of the frames that never come.")
    outages: tuple[tuple[dt.datetime, Duration], ...] = Field(
        (), description="From when, and for how long, nothing arrives; what was due comes after."
    )
    seed: int = Field(0, ge=0, description="Which frames are late and which are missing.")


@dataclass(frozen=True)
class Arrivals:
    """Files with the time at which each arrives, in that order; those that never do."""

    files: list[FrameFile]
    lost: list[FrameFile]
    late: list[FrameFile]


def simulate(files: list[FrameFile], settings: ReplaySettings) -> Arrivals:
    """When each file arrives: its valid time and the usual delay, and what goes wrong besides.

    The same files and settings give the same arrivals.
    """
    random = np.random.default_rng(settings.seed)
    draws = random.random((len(files), 2))
    arriving, lost, late = [], [], []
    for file, (miss, delay) in zip(sorted(files), draws, strict=True):
        if miss < settings.missing:
            lost.append(file)
            continue
        received = file.valid_time + pd.Timedelta(settings.delay)
        if delay < settings.late:
            received += pd.Timedelta(settings.late_by)
        for begin, length in settings.outages:
            if utc(begin) <= received < utc(begin) + pd.Timedelta(length):
                received = utc(begin) + pd.Timedelta(length)
        arriving.append(replace(file, received=received))
        if delay < settings.late:
            late.append(arriving[-1])
    return Arrivals(sorted(arriving, key=lambda file: (file.received, file)), lost, late)


def replay(
    service: Service, files: list[FrameFile], *, speed: float | None = None
) -> Iterator[tuple[pd.Timestamp, list[Outcome]]]:
    """A round for every arrival: the time at which it began, and what came of it.

    Frames that arrive while a round is under way wait for the next. `files` are in order of arrival
    (`received`). `speed` : so many times as fast as it was; None: as fast as this machine can.
    """
    waiting = list(files)
    moment = waiting[0].received if waiting else now()
    poll = pd.Timedelta(service.nowcaster.settings.poll)
    while waiting:
        due = waiting[0].received.ceil(poll)  # the service looks every so often
        if due > moment:
            if speed is not None:
                time.sleep((due - moment).total_seconds() / speed)
            moment = due
        batch = [file for file in waiting if file.received <= moment]
        waiting = waiting[len(batch) :]
        with clock_set_to(moment):
            outcomes = list(run_round(service, batch))
            ended = now("ms")
        yield moment, outcomes
        moment = ended
