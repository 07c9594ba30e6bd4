"""The nowcast flow: new frames in, a forecast for each of them out, the newest first."""

import contextlib
import datetime as dt
from collections.abc import Iterator

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows import events
from flows.ingest import ingest_task
from flows.settings import Settings, load_settings
from flows.tasks import publish_picture, retrying
from models.evaluation import observed_after
from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import (
    NowcastReport,
    Outcome,
    Service,
    forecast_period,
    publish_nowcast,
    rounds,
)
from models.shadowing import Shadows, ShadowSettings
from pipelines.archive import Archive, archive_url
from pipelines.forecasts import ensemble_mean, open_forecast
from pipelines.ingest import IngestSettings, warm_up
from pipelines.pictures import forecast_picture
from pipelines.progress import bar
from pipelines.times import utc

nowcast_task = retrying(publish_nowcast, "nowcast")


@flow(name="nowcast")
def nowcast(
    root: str | None = None,
    product: str | None = None,
    ingest: IngestSettings | None = None,
    nowcast: NowcastSettings | None = None,
    shadow: ShadowSettings | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    progress: bool = False,
) -> NowcastReport:
    """Take in what is new at `ingest.location`, if one is set, and forecast from every new frame.

    New is every frame without a forecast, or with one from other frames than are there by now,
    that is not older than the newest by more than `nowcast.catch_up`; the newest comes first. With
    `since` or `until`, every frame of that period. Where the model fails, advection forecasts; a
    frame that nothing can be forecast from is skipped and said so.

    Args:
        root: Where the archive, models and forecasts are; as squall.toml or the environment say.
        product: Which archive; as squall.toml or the environment say.
        ingest: Where new files appear and how they are read; overrides squall.toml where given.
        nowcast: How forecasts are made; overrides squall.toml where given.
        shadow: Who forecasts beside, where no reader looks; overrides squall.toml where given.
        since: Instead, forecast from all frames at or after this time, UTC, the oldest first.
        until: Instead, forecast from all frames at or before this time, UTC, the oldest first.
        progress: Show a bar.
    """
    settings = load_settings(
        root=root, product=product, ingest=ingest, nowcast=nowcast, shadow=shadow
    )
    report = NowcastReport()
    with (
        service_of(settings) as service,
        bar(None, "nowcast", "forecast", shown=progress) as shown,
    ):
        if since is not None or until is not None:
            period = utc(since) if since else None, utc(until) if until else None
            outcomes = forecast_period(service, *period, progress=progress)
        else:
            outcomes = rounds(service)
        for outcome in outcomes:
            report.outcomes.append(outcome)
            tell(settings.product, outcome)
            shown.update()
        report.shadows = service.shadows.counts() if service.shadows else {}
    create_markdown_artifact(
        key="nowcast-report", markdown=str(report), description=f"{settings.product}: the last run"
    )
    newest = report.newest
    if newest is not None:
        png = picture_of(settings.root, settings.product, newest.init_time)
        publish_picture("nowcast-picture", png, f"Observed against forecast: {newest.url}")
    return report


@contextlib.contextmanager
def service_of(settings: Settings) -> Iterator[Service]:
    """The service that the settings describe, its steps as Prefect tasks."""
    model = settings.nowcast.model or settings.product
    if settings.ingest.location is not None and settings.ingest.scheduler is None:
        warm_up()
    with (
        Nowcaster(settings.root, model, settings.nowcast) as nowcaster,
        Shadows(settings.root, nowcaster, settings.shadow) as shadows,
    ):
        yield Service(
            settings.root,
            settings.product,
            settings.ingest,
            nowcaster,
            ingest_task,
            nowcast_task,
            shadows=shadows,
        )


def tell(product: str, outcome: Outcome) -> None:
    """Events of what became of an init_time."""
    init_time, backfill = outcome.init_time, outcome.backfill
    if outcome.state == "refused":
        events.refused(product, init_time, str(outcome.error), backfill=backfill)
    if outcome.state != "published":
        return
    events.published(
        product,
        init_time,
        outcome.revision,
        outcome.url,
        outcome.model,
        outcome.quality,
        backfill=backfill,
    )
    if outcome.fallback_reason:
        events.fell_back(product, init_time, outcome.fallback_reason, backfill=backfill)
    if outcome.revision > 1:
        earlier = outcome.revision - 1
        events.superseded(product, init_time, earlier, outcome.revision, backfill=backfill)


def picture_of(root: str, product: str, init_time: pd.Timestamp) -> bytes:
    """A published forecast against what has been observed since, as a PNG."""
    archive = Archive(archive_url(root, product))
    forecast = open_forecast(root, product, init_time)
    rain_rate = ensemble_mean(forecast["rain_rate"].load())
    lead_times = pd.TimedeltaIndex(forecast["lead_time"].values)
    observed = observed_after(archive, init_time, lead_times)
    title = f"{product}: nowcast of {init_time:%Y-%m-%d %H:%M} UTC by {forecast.attrs['model']}"
    return forecast_picture(rain_rate, observed, title)
