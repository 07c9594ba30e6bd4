"""The ingest flow: a provider's files into the archive."""

import datetime as dt

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.settings import load_settings
from flows.tasks import retrying
from pipelines.archive import archive_url
from pipelines.ingest import IngestReport, IngestSettings
from pipelines.ingest import ingest as ingest_files
from pipelines.times import utc

ingest_task = retrying(ingest_files, "ingest files")


@flow(name="ingest")
def ingest(
    root: str | None = None,
    product: str | None = None,
    ingest: IngestSettings | None = None,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    progress: bool = False,
) -> IngestReport:
    """Take the files at a location into the archive of a product.

    Run it as often as you like: what is settled is not read again. A bad file ends as a status and
    a manifest row.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Which archive; likewise.
        ingest: Where the files are and how they are read; likewise, each of its settings.
        start: Only frames at or after this time, UTC.
        end: Only frames at or before this time, UTC.
        progress: Show a bar.
    """
    settings = load_settings(root=root, product=product, ingest=ingest)
    report = ingest_task(
        archive_url(settings.root, settings.product),
        settings.ingest,
        start=utc(start) if start else None,
        end=utc(end) if end else None,
        progress=progress,
    )
    create_markdown_artifact(
        key="ingest-report",
        markdown=f"**{settings.product}** {report}\n\n"
        + "\n".join(f"- {e}" for e in report.errors),
        description=f"What the last ingest of {settings.product} did",
    )
    return report
