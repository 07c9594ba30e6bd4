"""The replay flow: a past period through the production code, and what came of it."""

import datetime as dt
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.settings import Settings, load_settings
from flows.verify import VerifyReport, markdown, verify_forecasts
from models.explanation import explain
from models.nowcasting import Nowcaster, NowcastSettings
from models.replay import Arrivals, ReplaySettings, Round, simulate
from models.replay import replay as replay_arrivals
from models.rounds import Outcome, Service
from models.verification import VerifySettings
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.errors import ExistsError, NoFramesError, NotFoundError
from pipelines.forecasts import folder_url
from pipelines.ingest import IngestSettings, ingest
from pipelines.latency import Latency, latency
from pipelines.progress import bar
from pipelines.sources import FrameFile, get_source
from pipelines.times import now, time_text, utc

HISTORY = pd.Timedelta("2h")
"""How much of what came before the period is in the archive when it begins."""
SHOWN = 5
"""So many timesteps without a forecast are named for each reason."""


@dataclass(frozen=True)
class ReplayReport:
    """What a replay published, and what it did not and why.

    `root` holds the replay's own archive and forecasts. `missing` has, for every timestep of the
    period without a forecast, the reason. Latency and scores are None where nothing can be counted.
    """

    root: str
    product: str
    init_times: pd.DatetimeIndex
    arrivals: Arrivals
    rounds: list[Round]
    missing: dict[pd.Timestamp, str]
    latency: Latency | None
    verification: VerifyReport | None

    @property
    def published(self) -> list[Outcome]:
        """The forecasts, every revision, in the order in which they were made."""
        outcomes = [one for done in self.rounds for one in done.outcomes]
        return [one for one in outcomes if one.state == "published"]

    @property
    def superseded(self) -> int:
        """How many forecasts a late or corrected frame superseded."""
        return sum(one.revision > 1 for one in self.published)

    def __str__(self) -> str:
        return "\n".join(f"- {line}" for line in self._lines())

    def _lines(self) -> list[str]:
        made, arrivals = self.published, self.arrivals
        quality = Counter(one.quality for one in made)
        qualities = ", ".join(f"{count} {name}" for name, count in quality.most_common())
        lines = [
            f"{len(self.init_times)} timesteps: {len(self.init_times) - len(self.missing)} with a "
            f"forecast, {len(self.missing)} without",
            f"files: {len(arrivals.files)} arrived, {len(arrivals.late)} of them late, "
            f"{len(arrivals.lost)} never",
            f"forecasts: {len(made)} published ({qualities or 'none'}), {self.superseded} of them "
            f"instead of an earlier revision, {sum(one.backfill for one in made)} after their time",
        ]
        if self.latency is not None:
            stages = ", ".join(
                f"{stage} {row['p50']:.2f}/{row['p95']:.2f}"
                for stage, row in self.latency.quantiles().iterrows()
            )
            lines.append(f"seconds from frame to forecast (p50/p95): {stages}")
        reasons: dict[str, list[pd.Timestamp]] = {}
        for time, reason in self.missing.items():
            reasons.setdefault(reason, []).append(time)
        lines += [f"without, {reason}: {_listed(times)}" for reason, times in reasons.items()]
        fallbacks = [one for one in made if one.fallback_reason]
        if fallbacks:
            times = _listed([one.init_time for one in fallbacks])
            lines.append(f"by advection: {times}, the first: {fallbacks[0].fallback_reason}")
        lines += [f"trouble at {time_text(r.began)}: {r.trouble}" for r in self.rounds if r.trouble]
        return [*lines, f"forecasts: {storage.display(folder_url(self.root, self.product))}"]


def _listed(times: list[pd.Timestamp]) -> str:
    """How many, and the first of them."""
    shown = ", ".join(map(time_text, times[:SHOWN]))
    return f"{len(times)} ({shown}{', …' * (len(times) > SHOWN)})"


@flow(name="replay")
def replay(
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    root: str | None = None,
    product: str | None = None,
    ingest: IngestSettings | None = None,
    nowcast: NowcastSettings | None = None,
    verify: VerifySettings | None = None,
    replay: ReplaySettings | None = None,
    speed: float | None = None,
    output: str | None = None,
    progress: bool = False,
) -> ReplayReport:
    """Replay the files at `ingest.location` as if they arrived now, and score the forecasts.

    Args:
        start: The first valid time, UTC; that of the first file if not given.
        end: The last valid time, UTC; that of the last file if not given.
        root: Where the models are; as squall.toml and the environment say, if not given.
        product: Which product; likewise.
        ingest: Where the files are and how they are read; likewise, each of its settings.
        nowcast: How forecasts are made; likewise.
        verify: What is scored, and how; likewise.
        replay: Delays, losses, outages.
        speed: So many times as fast as it was; as fast as possible if not given.
        output: Root of the replay's archive and forecasts; a new folder of the root if not given.
        progress: Show a bar.
    """
    report = run_replay(
        load_settings(root=root, product=product, ingest=ingest, nowcast=nowcast, verify=verify),
        utc(start) if start else None,
        utc(end) if end else None,
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
    start: pd.Timestamp | None,
    end: pd.Timestamp | None,
    replay: ReplaySettings,
    *,
    speed: float | None = None,
    output: str | None = None,
    progress: bool = False,
    tell: Callable[[Round], None] | None = None,
) -> ReplayReport:
    """See `replay`. Models come from the settings' root; nothing else there is touched.

    `tell` is called after every round. Raises `NoFramesError` where the period has no files, and
    `ExistsError` where `output` holds an archive or forecasts of the product.
    """
    before, files = _files(settings.ingest, start, end)
    first = start if start is not None else files[0].valid_time
    last = end if end is not None else files[-1].valid_time
    root = _place(settings, output)
    url = archive_url(root, settings.product)
    arrivals = simulate(files, replay)
    if before:
        usual = ReplaySettings(delay=replay.delay)
        ingest(url, settings.ingest, simulate(before, usual).files, progress=progress)
    rounds: list[Round] = []
    model = settings.nowcast.model or settings.product
    with (
        Nowcaster(settings.root, model, settings.nowcast) as nowcaster,
        bar(len(arrivals.files), "replay", "file", shown=progress) as shown,
    ):
        service = Service(root, settings.product, settings.ingest, nowcaster, since=first)
        for done in replay_arrivals(service, arrivals.files, speed=speed):
            rounds.append(done)
            shown.update(0 if done.trouble else len(done.files))
            if tell is not None:
                tell(done)
    if rounds and rounds[-1].trouble is not None and not storage.exists(url):
        raise rounds[-1].trouble
    return _summary(settings, root, first, last, arrivals, rounds, progress=progress)


def _files(
    settings: IngestSettings, start: pd.Timestamp | None, end: pd.Timestamp | None
) -> tuple[list[FrameFile], list[FrameFile]]:
    """The files just before the period and those of it, by valid time."""
    if settings.location is None:
        raise NoFramesError(
            "no location to replay from",
            found="ingest.location is not set",
            expected="a folder or URL with the provider's files",
            remedy="name it: `squall replay DIR --source NAME`, or set ingest.location",
        )
    source = get_source(settings.source)
    if start is None:
        return [], source.find(settings.location, None, end)
    files = source.find(settings.location, start - HISTORY, end)
    period = [file for file in files if file.valid_time >= start]
    if not period:
        raise NoFramesError(
            "no files in the period to replay",
            found=f"{len(files)} before it, the last at {time_text(files[-1].valid_time)}",
            expected=f"files from {time_text(start)} to {time_text(end) if end else 'any time'}",
            remedy="choose another period",
        )
    return files[: len(files) - len(period)], period


def _place(settings: Settings, output: str | None) -> str:
    """The root of the replay's own stores, where there is no product of that name yet."""
    default = storage.join(settings.root, "replays", f"{now():%Y%m%dT%H%M%SZ}")
    root = storage.normalise(output or default)
    for url in (archive_url(root, settings.product), folder_url(root, settings.product)):
        if storage.exists(url):
            raise ExistsError(
                "a replay needs a place of its own",
                found=storage.display(url),
                expected=f"no archive and no forecasts of {settings.product}",
                remedy="name another --output, or leave it out",
            )
    return root


def _summary(
    settings: Settings,
    root: str,
    start: pd.Timestamp,
    end: pd.Timestamp,
    arrivals: Arrivals,
    rounds: list[Round],
    *,
    progress: bool,
) -> ReplayReport:
    """What came of a replay, with latency and scores where there are any."""
    product = settings.product
    archive = Archive(archive_url(root, product))
    origin, timestep = archive.times[0], archive.timestep
    first = origin - (origin - start) // timestep * timestep
    init_times = pd.date_range(first, end, freq=timestep)
    try:
        how_long = latency(root, product, start, end)
    except NotFoundError:
        how_long = None
    try:
        all_that_comes = settings.verify.model_copy(update={"partial": True})
        scores = verify_forecasts(root, product, all_that_comes, progress=progress)
    except NotFoundError:
        scores = None
    missing = explain(root, product, init_times, arrivals, rounds, settings.nowcast.catch_up)
    return ReplayReport(root, product, init_times, arrivals, rounds, missing, how_long, scores)
