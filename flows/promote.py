"""The promotion flow: challengers are judged by their scores, the newest that passes is crowned."""

import contextlib
import getpass
import logging
import os
import socket
from dataclasses import dataclass

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows import events
from flows.promotion_report import markdown
from flows.settings import Settings, load_settings
from flows.tasks import retrying
from models.evidence import challengers, crown, evidence, examine
from models.registry import Reign, reigns
from models.verdict import PromotionSettings, Verdict
from pipelines.errors import NotFoundError

log = logging.getLogger(__name__)

CI_ACTORS = ("GITHUB_ACTOR", "GITLAB_USER_LOGIN", "BUILD_USER_ID")


@dataclass(frozen=True)
class PromoteReport:
    """What became of the challengers of a name, newest first, and who is the champion now."""

    name: str
    champion: str | None
    verdicts: tuple[Verdict, ...]
    promoted: str | None

    def __str__(self) -> str:
        count = len(self.verdicts)
        judged = f"{count} challenger{'s' if count != 1 else ''} judged"
        if self.promoted:
            return f"{judged}; {self.promoted} is the champion now"
        return f"{judged}, none promoted; champion: {self.champion or 'none'}"


def judge_challengers(
    root: str, product: str, name: str, settings: PromotionSettings
) -> list[tuple[Verdict, list[Reign]]]:
    """Verdicts on all versions newer than the champion, newest first, by the same scores."""
    found = challengers(root, name)
    sums = None
    if found:
        with contextlib.suppress(NotFoundError):  # each verdict says so
            sums = evidence(root, product, settings)
    return [examine(root, product, one, settings, sums) for one in found]


judge_task = retrying(judge_challengers, "judge challengers")


@flow(name="promote")
def promote(
    root: str | None = None,
    product: str | None = None,
    model: str | None = None,
    promote: PromotionSettings | None = None,
) -> PromoteReport:
    """Judge every challenger by the scores of a product, and promote the newest one that passes.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Whose scores count; likewise.
        model: Whose versions; the model's that nowcasts are made with, if not given.
        promote: What a challenger has to be better at; likewise, each of its settings.
    """
    settings = load_settings(root=root, product=product, promote=promote)
    root, product = settings.root, settings.product
    name = model or served_name(settings)
    judged = judge_task(root, product, name, settings.promote)
    promoted = None
    for verdict, history in judged:
        if verdict.passed:
            crown_and_tell(root, product, verdict, history)
            promoted = verdict.challenger
            break
    verdicts = tuple(verdict for verdict, _ in judged)
    now = reigns(root, name)
    report = PromoteReport(name, f"{name}/{now[-1].version}" if now else None, verdicts, promoted)
    create_markdown_artifact(
        key="promotion",
        markdown="\n".join([f"{report}\n", *map(markdown, verdicts)]),
        description=f"Challengers of {name}, by the scores of {product}",
    )
    return report


def served_name(settings: Settings) -> str:
    """The name of the model that nowcasts are made with."""
    return (settings.nowcast.model or settings.product).partition("/")[0]


def crown_and_tell(
    root: str,
    product: str,
    verdict: Verdict,
    history: list[Reign],
    forced_because: str | None = None,
) -> None:
    """Promote as the verdict says, or against it, and send the event."""
    crown(root, verdict, history, by=identity(), forced_because=forced_because)
    reason = str(reigns(root, verdict.challenger.partition("/")[0])[-1])
    log.info("%s is the champion: %s", verdict.challenger, reason)
    events.promoted(verdict.challenger, verdict.champion, product, reason)


def identity() -> str:
    """Who does this: a flow run, whoever started a CI job, or user@host."""
    if flow_run.id:
        return f"flow run {flow_run.name}"
    for name in CI_ACTORS:
        if actor := os.environ.get(name):
            return f"{actor} (CI)"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
