"""A round of the nowcast service: take in what is new, forecast from it, the newest frame first.

What is to be done follows from what is there: every frame of the last hour (`nowcast.catch_up`)
wants a forecast from the frames that are there now. So a round that was cut short, run twice or run
beside another leaves nothing undone and does nothing twice, and a frame that comes late or is
corrected has the forecasts made from it made again.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from models.baselines import Advection
from models.nowcasting import FALLBACK_MISSING, Nowcaster
from models.shadowing import Shadows
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.calibration_store import read_calibration
from pipelines.errors import (
    ExistsError,
    GridMismatchError,
    NoFramesError,
    SquallError,
    TooFewFramesError,
)
from pipelines.forecasts import folder_url, forecast_attributes, is_published, published
from pipelines.ingest import IngestReport, IngestSettings
from pipelines.ingest import ingest as ingest_files
from pipelines.once import LostClaimError, sweep
from pipelines.publishing import CompactedError, mark_superseded, publish, refresh_latest
from pipelines.skill import read_skill
from pipelines.sources import FrameFile, get_source
from pipelines.times import time_text
from pipelines.window import Windows, recent_times, window

log = logging.getLogger(__name__)

HISTORY = pd.Timedelta("1h")
"""Files so much older than what can still be forecast from are taken in before forecasting."""
ATTEMPTS = 3
"""How often a forecast is made again because a frame of it changed meanwhile."""


State = Literal["published", "exists", "refused"]


@dataclass(frozen=True)
class Outcome:
    """What became of one init_time.

    `state` is published, exists (another round was first) or refused (`reason` says why). `model`,
    `quality`, `revision` and `fallback_reason` are the published forecast's attributes.
    """

    init_time: pd.Timestamp
    state: State
    url: str = ""
    revision: int = 0
    model: str = ""
    quality: str = ""
    fallback_reason: str = ""
    backfill: bool = False
    error: SquallError | None = None


@dataclass
class NowcastReport:
    """What became of every init_time of a round, in the order in which they were worked on."""

    outcomes: list[Outcome] = field(default_factory=list)
    shadows: dict[str, int] = field(default_factory=dict)
    """How many shadow forecasts were made, failed, or had no time."""

    @property
    def published(self) -> list[str]:
        """URLs of the forecasts that were published."""
        return [one.url for one in self.outcomes if one.state == "published"]

    @property
    def newest(self) -> Outcome | None:
        """Of the forecasts published the one with the newest init_time."""
        made = [one for one in self.outcomes if one.state == "published"]
        return max(made, key=lambda one: (one.init_time, one.revision), default=None)

    @property
    def skipped(self) -> dict[str, SquallError]:
        """Why the others were not, by init_time."""
        return {time_text(one.init_time): one.error for one in self.outcomes if one.error}

    def __str__(self) -> str:
        lines = [f"{len(self.published)} published, {len(self.skipped)} skipped"]
        for one in self.outcomes:
            if one.error:
                lines.append(f"- skipped {time_text(one.init_time)}: {one.error}")
                continue
            told = [f"revision {one.revision}"] if one.revision > 1 else []
            told += [] if one.quality == "good" else [one.quality]
            told += [one.fallback_reason] if one.fallback_reason else []
            lines.append(f"- {storage.display(one.url)}" + "".join(f", {word}" for word in told))
        if self.shadows:
            counts = ", ".join(f"{count} {what}" for what, count in sorted(self.shadows.items()))
            lines.append(f"- in shadow: {counts}")
        return "\n".join(lines)


def publish_nowcast(
    nowcaster: Nowcaster,
    archive: Archive,
    root: str,
    product: str,
    init_time: pd.Timestamp,
    *,
    backfill: bool = False,
    seconds_ingest: float = 0.0,
) -> str:
    """Forecast from the frame at `init_time` and publish; the forecast's URL.

    Made again where a frame of it came or changed meanwhile, so that what is published is from
    what is there.
    """
    for _ in range(ATTEMPTS):
        forecast = nowcaster.nowcast(
            archive, init_time, backfill=backfill, seconds_ingest=seconds_ingest
        )
        inputs = window(archive, init_time, forecast.attrs["input_window"])
        if inputs.digest == forecast.attrs["inputs_sha256"]:
            break
    return publish(root, product, forecast)


@dataclass(frozen=True)
class Service:
    """What a round works with.

    `take_in` and `make` may be Prefect tasks around `pipelines.ingest.ingest` and
    `publish_nowcast`, which then try again where storage fails.
    """

    root: str
    product: str
    ingest: IngestSettings
    nowcaster: Nowcaster
    take_in: Callable[..., IngestReport] = ingest_files
    make: Callable[..., str] = publish_nowcast
    refused: dict[pd.Timestamp, str] = field(default_factory=dict)
    """The init_times that nothing could be published for, and the digest of what was there."""
    since: pd.Timestamp | None = None
    """Frames before this are history: never forecast from by themselves."""
    shadows: Shadows | None = None
    """Who forecasts beside, in shadow; None: nobody."""

    @property
    def archive_url(self) -> str:
        """Where the product's archive is."""
        return archive_url(self.root, self.product)

    def begin(self, *, live: bool = True) -> None:
        """Before a round: what is known by now goes to who forecasts; skill if it is `live`."""
        place = self.root, self.product
        skill = read_skill(*place) if live else None
        self.nowcaster.begin(skill, read_calibration(*place))

    @property
    def catch_up(self) -> pd.Timedelta:
        """How far back a gap is filled."""
        return pd.Timedelta(self.nowcaster.settings.catch_up)


def rounds(service: Service) -> Iterator[Outcome]:
    """One round, and more of them for as long as `nowcast.watch_for` says.

    Shadows keep to that time too: the next run, with the next frame, may be due when it is over.
    """
    settings = service.nowcaster.settings
    poll_s = settings.poll.total_seconds()
    end = time.monotonic() + settings.watch_for.total_seconds()
    shadows_until = end if settings.watch_for else math.inf
    while True:
        yield from run_round(service, shadows_until=shadows_until)
        if time.monotonic() + poll_s > end:
            return
        time.sleep(poll_s)


def run_round(
    service: Service, files: list[FrameFile] | None = None, *, shadows_until: float = math.inf
) -> Iterator[Outcome]:
    """Take in the files at the location (or `files`) and forecast; the outcomes, as they come.

    The recent files first, then the newest frame's forecast, then the gap behind it for at most
    half a timestep (the next round goes on), then older files; shadow forecasts last, not beyond
    `shadows_until` (of `time.monotonic`). What hinders the taking in does not hinder forecasts of
    what is there; it is raised when they are made.
    """
    round_began = time.monotonic()
    service.begin()
    arrivals = _Arrivals(service)
    began = time.perf_counter()
    recent, older = arrivals.split(files)
    arrivals.take_in(recent)
    seconds = time.perf_counter() - began
    if storage.exists(service.archive_url):
        yield from _forecast_pending(service, seconds)
        arrivals.take_in(older)
        sweep(folder_url(service.root, service.product))
        if service.shadows is not None:
            _follow(service, service.shadows, round_began, shadows_until)
    elif arrivals.trouble is None:
        Archive(service.archive_url)  # an error that says so
    arrivals.settle()


class _Arrivals:
    """Takes files in; an error waits until the forecasts are made."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.trouble: Exception | None = None

    def split(self, files: list[FrameFile] | None) -> tuple[list[FrameFile], list[FrameFile]]:
        """What forecasts are made from, and what lies further back."""
        settings = self.service.ingest
        if files is None:
            files = []
            if settings.location is not None:
                try:
                    files = get_source(settings.source).find(settings.location)
                except Exception as error:
                    self.trouble = error
        newest = max((file.valid_time for file in files), default=pd.Timestamp(0))
        since = newest - self.service.catch_up - HISTORY
        recent = [file for file in files if file.valid_time > since]
        return recent, [file for file in files if file.valid_time <= since]

    def take_in(self, files: list[FrameFile]) -> None:
        """Take files in, unless that went wrong before."""
        if files and self.trouble is None:
            try:
                self.service.take_in(self.service.archive_url, self.service.ingest, files=files)
            except Exception as error:
                self.trouble = error

    def settle(self) -> None:
        """Raise what went wrong; only say so where there were no files of ours."""
        if self.trouble is None:
            return
        harmless = isinstance(self.trouble, (NoFramesError, GridMismatchError))
        if not harmless or not storage.exists(self.service.archive_url):
            raise self.trouble
        log.warning("nothing was ingested: %s", self.trouble)


def forecast_period(
    service: Service,
    start: pd.Timestamp | None,
    end: pd.Timestamp | None,
    *,
    progress: bool = False,
) -> Iterator[Outcome]:
    """Forecast from every frame of a period, the oldest first; those that are there stay.

    Then the shadow forecasts that are lacking, without a limit in time; `progress` shows a bar.
    Recent skill is of another time than these: it is neither told nor acted on.
    """
    service.begin(live=False)
    archive = Archive(service.archive_url)
    init_times = archive.usable_times(start, end)
    for init_time in init_times:
        yield _forecast(service, archive, init_time, backfill=True)
    if service.shadows is not None:
        place = service.root, service.product, archive
        service.shadows.follow_period(*place, init_times, progress=progress)


def _forecast_pending(service: Service, seconds_ingest: float) -> Iterator[Outcome]:
    """Forecast from the frames that wait for it, for at most half a timestep but at least one."""
    began = time.monotonic()
    archive = Archive(service.archive_url)
    frames = service.nowcaster.frames
    newest, waiting = pending(service, archive)
    for init_time in set(service.refused) - set(waiting):
        del service.refused[init_time]
    for init_time in waiting:
        if time.monotonic() - began > archive.timestep.total_seconds() / 2:
            log.warning("the gap before %s waits for the next round", time_text(init_time))
            break
        digest = window(archive, init_time, frames).digest
        if service.refused.get(init_time) == digest:
            continue  # as often as it looks, nothing has come since
        live = init_time == newest and not is_published(service.root, service.product, init_time)
        outcome = _forecast(
            service, archive, init_time, backfill=not live, seconds_ingest=seconds_ingest
        )
        if outcome.state != "published":
            service.refused[init_time] = digest
        yield outcome
    refresh_latest(service.root, service.product)


def _follow(service: Service, shadows: Shadows, began: float, until: float) -> None:
    """Shadow forecasts beside what was served of late, the newest first, while time is left."""
    archive = Archive(service.archive_url)
    recent = recent_times(archive, service.catch_up, service.since)
    if len(recent):
        place = service.root, service.product, archive
        shadows.follow(*place, recent[0], began=began, until=until)


def pending(service: Service, archive: Archive) -> tuple[pd.Timestamp | None, list[pd.Timestamp]]:
    """The newest frame, and those that wait for a forecast, the newest first.

    A frame waits if it has none, or one from other frames than are there now. Those of which no
    forecast can be made are left out, but for the newest, of which that is to be said.
    """
    root, product, frames = service.root, service.product, service.nowcaster.frames
    recent = recent_times(archive, service.catch_up, service.since)
    if len(recent) == 0:
        return None, []
    longest = max(frames, Advection.past_frames)
    windows = Windows(archive, recent[0], recent[-1], longest)
    there = itertools.groupby(published(root, product, start=recent[0]), lambda one: one.init_time)
    newest_of = {}
    for init_time, group in there:
        revisions = list(group)
        newest_of[init_time] = revisions[-1].attributes
        if len(revisions) > 1:
            mark_superseded(root, product, init_time)
    waiting = []
    for init_time in recent[::-1]:
        if init_time not in newest_of:
            if init_time == recent[-1] or _enough(service.nowcaster, windows, init_time):
                waiting.append(init_time)
        elif _out_of_date(newest_of[init_time], windows, init_time, longest):
            waiting.append(init_time)
    return recent[-1], waiting


def _enough(nowcaster: Nowcaster, windows: Windows, init_time: pd.Timestamp) -> bool:
    """Whether there are enough frames for advection, or for the forecaster that was asked for."""
    needs = (
        (Advection.past_frames, FALLBACK_MISSING),
        (nowcaster.frames, nowcaster.settings.most_missing),
    )
    return any(len(windows.ending_at(init_time, n).missing) <= most for n, most in needs)


def _out_of_date(
    attributes: dict[str, Any], windows: Windows, init_time: pd.Timestamp, longest: int
) -> bool:
    """Whether a forecast is from other frames than are there now."""
    frames = min(int(attributes.get("input_window", 0)), longest)
    if not frames:  # made by an earlier version, which did not say
        return False
    return bool(attributes["inputs_sha256"] != windows.ending_at(init_time, frames).digest)


def _forecast(
    service: Service,
    archive: Archive,
    init_time: pd.Timestamp,
    *,
    backfill: bool,
    seconds_ingest: float = 0.0,
) -> Outcome:
    """Forecast from one frame; never raises for what the frames or the model lack."""
    try:
        url = service.make(
            service.nowcaster,
            archive,
            service.root,
            service.product,
            init_time,
            backfill=backfill,
            seconds_ingest=seconds_ingest,
        )
    except (TooFewFramesError, CompactedError, ExistsError, LostClaimError) as error:
        log.warning("no nowcast at %s: %s", time_text(init_time), error)
        exists = isinstance(error, (ExistsError, LostClaimError))
        state: State = "exists" if exists else "refused"
        return Outcome(init_time, state, backfill=backfill, error=error)
    told = forecast_attributes(url)
    return Outcome(
        init_time,
        "published",
        url,
        told["revision"],
        told["model"],
        told["quality"],
        told["fallback_reason"],
        backfill,
    )
