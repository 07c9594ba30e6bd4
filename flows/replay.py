"""The replay flow: a past period through the production code, and what came of it."""

import datetime as dt
from collections import Counter
from dataclasses import dataclass

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.settings import Settings, load_settings
from flows.verify import VerifyReport, markdown, verify_forecasts
from models.nowcasting import Nowcaster
from models.replay import Arrivals, ReplaySettings, simulate
from models.replay import replay as replay_arrivals
from models.rounds import Outcome, Service
from pipelines import storage
from pipelines.archive import Archive, Status, archive_url
from pipelines.errors import NoFramesError, NotFoundError
from pipelines.ingest import ingest
from pipelines.latency import Latency, latency
from pipelines.progress import bar
from pipelines.sources import get_source
from pipelines.times import format_duration, now, time_text, utc

HISTORY = pd.Timedelta("2h")
"""How much of what came before the period is in the archive when it begins."""


@dataclass(frozen=True)
class ReplayReport:
    """What a replay published, and what it did not and why.

    `root` holds the replay's own archive and forecasts. `missing` has, for every timestep of the
    period without a forecast, the reason.
    """

    root: str
    product: str
    init_times: pd.DatetimeIndex
    arrivals: Arrivals
    outcomes: list[Outcome]
    missing: dict[pd.Timestamp, str]
    latency: Latency | None
    verification: VerifyReport | None

    @property
    def published(self) -> list[Outcome]:
        """The forecasts, every revision."""
        return [one for one in self.outcomes if one.state == "published"]

    @property
    def superseded(self) -> int:
        """How many forecasts a late or corrected frame superseded."""
        return sum(one.revision > 1 for one in self.published)

    def __str__(self) -> str:
        made = self.published
        quality = Counter(one.quality for one in made)
        qualities = ", ".join(f"{count} {name}" for name, count in quality.most_common())
        lines = [
            f"{len(self.init_times)} timesteps: {len(self.init_times) - len(self.missing)} with a "
            f"forecast, {len(self.missing)} without",
            f"frames: {len(self.arrivals.files)} arrived, {len(self.arrivals.late)} of them late, "
            f"{len(self.arrivals.lost)} never",
            f"forecasts: {len(made)} published ({qualities or 'none'}), {self.superseded} "
            f"superseded by a newer revision, {sum(one.backfill for one in made)} after their time",
        ]
        if self.latency is not None:
            table = self.latency.quantiles()
            stages = ", ".join(
                f"{stage} {row['p50']:.2f}/{row['p95']:.2f}" for stage, row in table.iterrows()
            )
            lines.append(f"seconds from frame to forecast (p50/p95): {stages}")
        reasons: dict[str, list[pd.Timestamp]] = {}
        for time, reason in self.missing.items():
            reasons.setdefault(reason, []).append(time)
        for reason, times in reasons.items():
            shown = ", ".join(time_text(time) for time in times[:5])
            lines.append(f"without, {reason}: {len(times)} ({shown}{', …' * (len(times) > 5)})")
        lines.append(f"forecasts: {storage.display(self.root)}")
        return "\n".join(f"- {line}" for line in lines)


@flow(name="replay")
def replay(
    start: dt.datetime,
    end: dt.datetime,
    settings: Settings | None = None,
    replay: ReplaySettings | None = None,
    speed: float | None = None,
    output: str | None = None,
    progress: bool = False,
) -> ReplayReport:
    """Replay the files at `ingest.location` from `start` to `end` as if they arrived now.

    Parameters
    ----------
    start, end : UTC, both included
    settings : as for a nowcast; squall.toml and the environment where not given
    replay : delays, losses, outages
    speed : so many times as fast as it was; as fast as possible by default
    output : root of the replay's archive and forecasts; a new folder of the root by default
    progress : show a bar
    """
    settings = settings or load_settings()
    report = run_replay(
        settings,
        utc(start),
        utc(end),
        replay or ReplaySettings(),
        speed=speed,
        output=output,
        progress=progress,
    )
    scores = markdown(report.verification) if report.verification else ""
    create_markdown_artifact(
        key="replay-report", markdown=f"{report}\n\n{scores}", description="What a replay showed"
    )
    return report


def run_replay(
    settings: Settings,
    start: pd.Timestamp,
    end: pd.Timestamp,
    replay: ReplaySettings,
    *,
    speed: float | None = None,
    output: str | None = None,
    progress: bool = False,
) -> ReplayReport:
    """See `replay`. Models come from the settings' root; nothing else there is touched."""
    if settings.ingest.location is None:
        raise NoFramesError(
            "no location to replay from",
            found="ingest.location is not set",
            expected="a folder or URL with the provider's files",
            remedy="name it: `squall replay DIR --source NAME`, or set ingest.location",
        )
    place = storage.join(settings.root, "replays", f"{now():%Y%m%dT%H%M%SZ}")
    root = storage.normalise(output or place)
    url = archive_url(root, settings.product)
    source = get_source(settings.ingest.source)
    files = source.find(settings.ingest.location, start - HISTORY, end)
    before = [file for file in files if file.valid_time < start]
    arrivals = simulate([file for file in files if file.valid_time >= start], replay)
    if before:
        ingest(url, settings.ingest, simulate(before, ReplaySettings(delay=replay.delay)).files)
    outcomes: list[Outcome] = []
    model = settings.nowcast.model or settings.product
    with (
        Nowcaster(settings.root, model, settings.nowcast) as nowcaster,
        bar(len(arrivals.files), "replay", "frame", shown=progress) as shown,
    ):
        service = Service(root, settings.product, settings.ingest, nowcaster)
        for came, made in replay_arrivals(service, arrivals.files, speed=speed):
            outcomes += made
            shown.update(sum(file.received <= came for file in arrivals.files) - shown.n)
    return summary(settings, root, start, end, arrivals, outcomes, progress=progress)


def summary(
    settings: Settings,
    root: str,
    start: pd.Timestamp,
    end: pd.Timestamp,
    arrivals: Arrivals,
    outcomes: list[Outcome],
    *,
    progress: bool = False,
) -> ReplayReport:
    """What came of a replay, with latency and scores where there are any."""
    archive = Archive(archive_url(root, settings.product))
    init_times = pd.date_range(start.ceil(archive.timestep), end, freq=archive.timestep)
    try:
        how_long = latency(root, settings.product, start, end)
    except NotFoundError:
        how_long = None
    try:
        scores = verify_forecasts(root, settings.product, settings.verify, progress=progress)
    except NotFoundError:
        scores = None
    missing = explain(archive, init_times, arrivals, outcomes, settings.nowcast.catch_up)
    return ReplayReport(
        root, settings.product, init_times, arrivals, outcomes, missing, how_long, scores
    )


def explain(
    archive: Archive,
    init_times: pd.DatetimeIndex,
    arrivals: Arrivals,
    outcomes: list[Outcome],
    catch_up: dt.timedelta,
) -> dict[pd.Timestamp, str]:
    """Why each init_time without a forecast has none."""
    made = {one.init_time for one in outcomes if one.state == "published"}
    refused = {one.init_time: one for one in outcomes if one.state == "refused"}
    status = archive.status().reindex(init_times, fill_value=Status.MISSING)
    lost = {file.valid_time for file in arrivals.lost}
    came = {file.valid_time: file.received for file in arrivals.files}
    reasons = {}
    for time in init_times.difference(pd.DatetimeIndex(list(made))):
        if time in lost:
            reasons[time] = "the frame never came"
        elif time not in came:
            reasons[time] = "there is no file of that time"
        elif status[time] == Status.BAD:
            reasons[time] = "the frame could not be read"
        elif time in refused:
            reasons[time] = "too few past frames"
        elif _newest_by(came, came[time]) - time >= pd.Timedelta(catch_up):
            reasons[time] = f"the frame came after {format_duration(catch_up)} of newer ones"
        else:
            reasons[time] = "NOT EXPLAINED"
    return reasons


def _newest_by(came: dict[pd.Timestamp, pd.Timestamp], moment: pd.Timestamp) -> pd.Timestamp:
    return max(time for time, received in came.items() if received <= moment)
