"""The prune flow: old forecasts into a store a day, very old ones away."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.settings import load_settings
from flows.tasks import retrying
from pipelines.retention import RetentionReport, RetentionSettings, retain

retain_task = retrying(retain, "retain forecasts")


@flow(name="prune")
def prune(
    root: str | None = None,
    product: str | None = None,
    retention: RetentionSettings | None = None,
    progress: bool = False,
) -> RetentionReport:
    """Put old forecasts into a store a day, and remove those older than is kept.

    Run it as often as you like, and beside the nowcast: every forecast reads as before.

    Args:
        root: Where the forecasts are; as squall.toml or the environment say.
        product: Whose forecasts; as squall.toml or the environment say.
        retention: What is kept, and how long; overrides squall.toml where given.
        progress: Show a bar.
    """
    settings = load_settings(root=root, product=product, retention=retention)
    report = retain_task(settings.root, settings.product, settings.retention, progress=progress)
    create_markdown_artifact(
        key="prune-report",
        markdown=f"**{settings.product}** {report}",
        description=f"What the last pruning of {settings.product} did",
    )
    return report
