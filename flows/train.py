"""The training flow: an archive into a registered model, here or as a job of a Ray cluster."""

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, cast
from uuid import UUID

from prefect import Flow, flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_flow_run
from tqdm import tqdm

from flows.archive import compact_task
from flows.settings import load_settings
from flows.tasks import retrying
from flows.verify import score_table
from models import jobs
from models.card import read_card, read_scores
from models.registry import reigns
from models.run_status import RunStatus, mark_stopped, read_status, reported
from models.train import train_model
from models.training import TrainSettings
from models.verdict import PromotionSettings
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.compact import best_for_training
from pipelines.errors import SquallError
from pipelines.progress import bar

log = logging.getLogger(__name__)

POLL_S = 2.0

train_task = task(name="train model")(train_model)
submit_task = retrying(jobs.submit, "submit job")


def stop_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the Ray jobs of a flow run that was cancelled, whatever became of its process."""
    if address := flow_run.parameters.get("submit"):
        for submission_id in jobs.running(address, flow_run=str(flow_run.id)):
            jobs.stop(address, submission_id)


@flow(name="train", on_cancellation=[stop_jobs])
def train(
    root: str | None = None,
    product: str | None = None,
    train: TrainSettings | None = None,
    promote: PromotionSettings | None = None,
    submit: str | None = None,
    environment: list[str] | None = None,
    progress: bool = False,
) -> str:
    """Train a network on the archive of a product with Ray Train; the new version's id.

    It is registered as a challenger: the flow `promote`, or `squall registry promote`, makes it the
    champion once its forecasts have proven better. The first version of a name is the champion at
    once, unproven.

    Where the archive has been compacted, the training layout is brought up to date and read.
    Submitted to a cluster, the training is a Ray job that lives as long as this flow run: a retry
    of the run finds its job again, cancelling it stops the job.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Which archive; likewise.
        train: The network and how it learns; likewise, each of its settings.
        promote: Here only `first` counts: whether a first version becomes the champion.
        submit: Train on the Ray cluster whose dashboard is at this address, http://HEAD:8265.
        environment: Names of further variables that the job gets; the cluster's users see them.
        progress: Show a bar and, of a job, its log.
    """
    settings = load_settings(root=root, product=product, train=train, promote=promote)
    root, product = settings.root, settings.product
    first = settings.promote.first
    name = settings.train.model or product
    run = settings.train.run or f"{name}-{str(this_flow_run.id)[-12:]}"
    section = settings.train.model_copy(update={"run": run})
    live = archive_url(root, product)
    url = best_for_training(live)
    if url != live:
        compact_task(live, progress=progress)
    with shown_progress(root, run, as_bar=progress and submit is not None):
        if submit is None:
            model_id = reported(
                root,
                run,
                lambda: train_task(root, name, url, section, first=first, progress=progress),
            )
        else:
            passed = [*jobs.ENVIRONMENT, *(environment or [])]
            model_id = train_on_cluster(
                submit, root, product, section, run, passed, first=first, shown=progress
            )
    publish_scores(root, model_id)
    return model_id


def train_on_cluster(
    address: str,
    root: str,
    product: str,
    settings: TrainSettings,
    run: str,
    environment: list[str],
    *,
    first: bool,
    shown: bool,
) -> str:
    """Train by a Ray job, its log among this flow run's; the model's id.

    The job ends with whoever waits for it here: interrupted or terminated, this stops it.
    """
    logger = get_run_logger()

    def tell(line: str) -> None:
        logger.info(line)
        if shown:
            tqdm.write(line)

    if jobs.is_elsewhere(address, root):
        tell(f"the root is a folder here; every node of the cluster must see it too: {root}")
    labels = {"flow_run": str(this_flow_run.id)}
    job = None
    try:
        job = submit_task(
            address,
            root,
            product,
            settings,
            run,
            first=first,
            environment=environment,
            labels=labels,
        )
        jobs.follow(address, job, tell, lambda status: tell(f"job {job}: {status}"))
    except BaseException as error:
        if not isinstance(error, Exception):  # interrupted, terminated; a failure is to be retried
            for name in [job] if job else jobs.running(address, **labels):
                tell(f"stopping job {name}")
                jobs.stop(address, name)
                tell(f"job {name}: stopped")
            mark_stopped(root, run)
        raise
    status = read_status(root, run)
    if status is None or status.model is None:
        raise SquallError(
            "the job trained a model that is not to be seen from here",
            found=f"nothing of run {run} under {storage.display(root)}",
            expected="a root that the cluster and this machine share",
            remedy="use a shared folder or an s3:// URL as root",
        )
    return status.model


@contextlib.contextmanager
def shown_progress(root: str, run: str, *, as_bar: bool) -> Iterator[None]:
    """Publish what a run's status says while it trains, wherever it trains.

    A progress artifact that moves, and a markdown artifact for each new state and epoch.
    """
    artifact = cast(UUID, create_progress_artifact(0.0, key="training-progress", description=run))
    ended = threading.Event()
    last: list[RunStatus] = []

    def publish() -> None:
        status = read_status(root, run)
        if status is None or [status] == last:
            return
        news = not last or (status.state, status.epoch) != (last[-1].state, last[-1].epoch)
        last[:] = [status]
        update_progress_artifact(artifact, status.percent)
        if news:
            create_markdown_artifact(key="training-status", markdown=_markdown(status))
        if status.steps:
            shown_bar.total = status.steps
            shown_bar.set_postfix(status.metrics, refresh=False)
            shown_bar.update(status.step - shown_bar.n)

    def poll() -> None:
        while not ended.wait(POLL_S):
            _or_warn(publish)

    with bar(0, "train", "step", shown=as_bar) as shown_bar:
        # In a copy of this context: artifacts belong to this flow run.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(poll,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=60)
            _or_warn(publish)


def _or_warn(publish: Callable[[], None]) -> None:
    """Progress is for looking at: no failure to show it may end a training."""
    try:
        publish()
    except Exception as error:
        log.warning("progress was not shown: %s", error)


def _markdown(status: RunStatus) -> str:
    rows = {**asdict(status), **status.metrics}
    del rows["metrics"]
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "")]
    return "\n".join(["| training | |", "| --- | --- |", *lines])


def publish_scores(root: str, model_id: str) -> None:
    """The metrics of a registered version, and its scores where its card has some, as tables."""
    name, _, version = model_id.partition("/")
    card = read_card(root, name, version)
    create_table_artifact(
        key="training-metrics",
        table=[{"model": model_id, "standing": standing(root, model_id), **card.metrics}],
        description="Loss per observed pixel, normalised; persistence's on the same samples",
    )
    sums = read_scores(root, name, version)
    if sums is not None:
        create_table_artifact(
            key="training-scores",
            table=score_table(sums),
            description=f"{sums.attrs.get('events')} validation events, same pixels for all",
        )


def standing(root: str, model_id: str) -> str:
    """Whether a new version is the champion, and if not how it may become it."""
    name, _, version = model_id.partition("/")
    history = reigns(root, name)
    if history and history[-1].version == version:
        return f"champion, {history[-1]}"
    return f"challenger; once proven better: squall registry promote {model_id}"
