"""The nowcast flow: new frames in, a forecast for each of them out."""

import datetime as dt
import logging
from dataclasses import dataclass, field
from functools import lru_cache

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.ingest import ingest_task
from flows.settings import Settings, load_settings
from flows.tasks import publish_picture, retrying
from models.baselines import BASELINES
from models.forecaster import Forecaster
from models.prediction import NowcastSettings, get_forecaster, make_nowcast
from models.registry import champion
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.errors import (
    ExistsError,
    GridMismatchError,
    NoFramesError,
    SquallError,
    TooFewFramesError,
)
from pipelines.forecasts import ensemble_mean, is_published, open_forecast
from pipelines.ingest import IngestSettings
from pipelines.pictures import forecast_picture
from pipelines.progress import bar
from pipelines.publishing import publish
from pipelines.times import time_text, utc

log = logging.getLogger(__name__)


@dataclass
class NowcastReport:
    """Forecasts published (URLs, in the order of publishing) and init_times skipped, with why."""

    published: list[str] = field(default_factory=list)
    skipped: dict[str, SquallError] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.published)} published, {len(self.skipped)} skipped"]
        lines += [f"- {storage.display(url)}" for url in self.published]
        lines += [f"- skipped {time}: {reason}" for time, reason in self.skipped.items()]
        return "\n".join(lines)


@flow(name="nowcast")
def nowcast(
    root: str | None = None,
    product: str | None = None,
    ingest: IngestSettings | None = None,
    nowcast: NowcastSettings | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    progress: bool = False,
) -> NowcastReport:
    """Take in what is new at `ingest.location`, if one is set, and forecast from every new frame.

    New is every frame without a forecast that is not older than the newest by more than
    `nowcast.catch_up`; the newest comes first. With `since` or `until`, every frame of that period.
    A frame that cannot be forecast from is skipped and said so; nothing stops the rest.

    Parameters
    ----------
    root, product, ingest, nowcast : override squall.toml and the environment where given
    since, until : forecast from all frames of this period instead, UTC, oldest first
    progress : show a bar
    """
    settings = load_settings(root=root, product=product, ingest=ingest, nowcast=nowcast)
    url = archive_url(settings.root, settings.product)
    if settings.ingest.location is not None:
        try:
            ingest_task(url, settings.ingest, progress=progress)
        except (NoFramesError, GridMismatchError) as error:
            if not storage.exists(url):
                raise
            log.warning("nothing was ingested: %s", error)
    archive = Archive(url)
    if since is not None or until is not None:
        init_times = archive.usable_times(
            utc(since) if since else None, utc(until) if until else None
        )
    else:
        init_times = pending(archive, settings.root, settings.product, settings.nowcast)
    report = NowcastReport()
    with bar(len(init_times), "nowcast", "forecast", shown=progress) as shown:
        for init_time in init_times:
            nowcast_frame(settings, init_time, report)
            shown.update()
    create_markdown_artifact(
        key="nowcast-report", markdown=str(report), description=f"{settings.product}: the last run"
    )
    if report.published:
        newest = max(report.published)
        png = picture_of(settings.root, settings.product, _init_time_of(newest))
        publish_picture("nowcast-picture", png, f"Observed against forecast: {newest}")
    return report


def nowcast_frame(settings: Settings, init_time: pd.Timestamp, report: NowcastReport) -> None:
    """Forecast from one frame and note the outcome."""
    model = settings.nowcast.model or settings.product
    try:
        url = nowcast_task(settings.root, settings.product, model, init_time, settings.nowcast)
        report.published.append(url)
    except (TooFewFramesError, ExistsError) as error:
        report.skipped[time_text(init_time)] = error
        log.warning("no nowcast at %s: %s", time_text(init_time), error)


def publish_nowcast(
    root: str, product: str, model: str, init_time: pd.Timestamp, settings: NowcastSettings
) -> str:
    """Forecast from the frame at `init_time` and publish; the forecast's URL."""
    archive = Archive(archive_url(root, product))
    forecast = make_nowcast(archive, _forecaster(root, _pinned(root, model)), init_time, settings)
    return publish(root, product, forecast)


nowcast_task = retrying(publish_nowcast, "nowcast")


def _pinned(root: str, model: str) -> str:
    """A model by name/version: the champion's where only the name is given."""
    return model if model in BASELINES or "/" in model else f"{model}/{champion(root, model)}"


@lru_cache(maxsize=2)
def _forecaster(root: str, model: str) -> Forecaster:
    """Loaded once per process: versions never change."""
    return get_forecaster(root, model)


def pending(
    archive: Archive, root: str, product: str, settings: NowcastSettings
) -> pd.DatetimeIndex:
    """The frames that wait for their forecast, newest first."""
    times = archive.usable_times()
    if len(times) == 0:
        return times
    recent = times[times > times[-1] - pd.Timedelta(settings.catch_up)][::-1]
    return recent[[not is_published(root, product, time) for time in recent]]


def picture_of(root: str, product: str, init_time: pd.Timestamp) -> bytes:
    """A published forecast against what has been observed since, as a PNG."""
    archive = Archive(archive_url(root, product))
    forecast = open_forecast(root, product, init_time).load()
    lead_times = pd.TimedeltaIndex(forecast["lead_time"].values)
    came = lead_times[(init_time + lead_times).isin(archive.usable_times())]
    observed = archive.read_frames(init_time + came).rename(time="lead_time")
    title = f"{product}: nowcast of {init_time:%Y-%m-%d %H:%M} UTC by {forecast.attrs['model']}"
    rain_rate = ensemble_mean(forecast["rain_rate"])
    return forecast_picture(rain_rate, observed.assign_coords(lead_time=came), title)


def _init_time_of(url: str) -> pd.Timestamp:
    label = url.rsplit("/", 1)[-1].removesuffix(".zarr")
    return utc(label)
