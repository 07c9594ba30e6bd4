"""Flows that look after an archive: compaction into the training layout, and validation."""

import datetime as dt

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.settings import load_settings
from flows.tasks import retrying
from pipelines.archive import archive_url
from pipelines.compact import CompactReport
from pipelines.compact import compact as compact_archive
from pipelines.ingest import IngestSettings
from pipelines.times import now, utc
from pipelines.validate import ValidationReport
from pipelines.validate import validate as validate_archive

compact_task = retrying(compact_archive, "compact")
validate_task = retrying(validate_archive, "validate")


@flow(name="compact")
def compact(
    root: str | None = None,
    product: str | None = None,
    ingest: IngestSettings | None = None,
    drop_before: dt.datetime | None = None,
    keep_days: float | None = None,
    progress: bool = False,
) -> CompactReport:
    """Copy what is new into the training layout, verified; let go of old live frames if asked.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Which archive; likewise.
        ingest: Its `workers` and `scheduler` do the work.
        drop_before: Drop live frames before this time, UTC; they stay in the training layout.
        keep_days: The same, counted back from now.
        progress: Show a bar.
    """
    settings = load_settings(root=root, product=product, ingest=ingest)
    before = utc(drop_before) if drop_before else None
    if before is None and keep_days is not None:
        before = now() - dt.timedelta(days=keep_days)
    report = compact_task(
        archive_url(settings.root, settings.product),
        drop_before=before,
        workers=settings.ingest.workers,
        scheduler=settings.ingest.scheduler,
        progress=progress,
    )
    create_markdown_artifact(key="compact-report", markdown=str(report))
    return report


@flow(name="validate")
def validate(
    root: str | None = None,
    product: str | None = None,
    ingest: IngestSettings | None = None,
    repair: bool = False,
    progress: bool = False,
) -> ValidationReport:
    """Check every frame of an archive against its manifest.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Which archive; likewise.
        ingest: Its `workers` and `scheduler` do the work.
        repair: Set slots with a problem to missing; the next ingest reads their files again.
        progress: Show a bar.
    """
    settings = load_settings(root=root, product=product, ingest=ingest)
    report = validate_task(
        archive_url(settings.root, settings.product),
        repair=repair,
        workers=settings.ingest.workers,
        scheduler=settings.ingest.scheduler,
        progress=progress,
    )
    create_markdown_artifact(key="validate-report", markdown=str(report))
    return report
