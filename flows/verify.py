"""The verification flow: what was served against what came, beside baselines and challengers."""

import contextlib
import datetime as dt
import logging
from collections import Counter
from dataclasses import dataclass

import pandas as pd
import xarray as xr
from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.settings import load_settings
from flows.tasks import publish_picture, retrying
from models.verification import Failure, VerifySettings, died, rules, try_forecast
from pipelines.archive import archive_url
from pipelines.due import Due, agenda
from pipelines.errors import NotFoundError, SquallError
from pipelines.progress import bar
from pipelines.score_pictures import served_first, skill_picture
from pipelines.score_store import folder_url, total, write_scores
from pipelines.scores import scores
from pipelines.skill import update_skill
from pipelines.times import format_duration, time_text
from pipelines.workers import run_parallel

log = logging.getLogger(__name__)

BATCH = 16
"""Forecasts whose sums are stored together: no more are lost where a run is cut short."""
TABLE_THRESHOLDS = 3
TABLE_SCALES = 2
"""The score table shows the lowest thresholds, and at the lowest one the largest scales; the stored
sums have all."""


@dataclass(frozen=True)
class VerifyReport:
    """Sums of the asked period by forecaster, lead time, region, …, and how they came about.

    `verified` forecasts are in the sums; those that were served are by `models`, so many each.
    `scored` of them were scored in this run, `unchanged` ones stay as they were. `waiting` are
    those whose last frame has not come, `missing` the valid times without a frame. `failed` says by
    init_time why a forecast could not be scored: the next run tries again. The sums of each
    forecast are stored at `scores_url`.
    """

    sums: xr.Dataset
    verified: int
    models: Counter[str]
    scored: int
    unchanged: int
    waiting: int
    missing: int
    failed: dict[str, str]
    scores_url: str

    def table(self) -> list[dict[str, str]]:
        """CSI, FSS, MAE and MSE of each forecaster, by lead time."""
        return score_table(self.sums)

    def counts(self) -> str:
        """What the sums are of, in a sentence."""
        by = ", ".join(f"{name or 'unknown'} {count}" for name, count in self.models.most_common())
        text = (
            f"{self.verified} forecasts verified, served by {by}; {self.scored} scored now, "
            f"{self.unchanged} unchanged, {self.waiting} waiting for their last frame, "
            f"{self.missing} frames to verify with missing"
        )
        return text + (f", {len(self.failed)} failed" if self.failed else "")


def verify_forecasts(
    root: str,
    product: str,
    settings: VerifySettings,
    *,
    keep: dt.timedelta | None = None,
    progress: bool = False,
) -> VerifyReport:
    """Score the forecasts that are due, each in a Dask task, store that, and add all up.

    `keep` : how much longer than the newest forecast scores are kept (`retention.scores`); older
    forecasts are not scored. Raises `NotFoundError` where nothing is scored, now or before, and
    `SquallError` where no forecast that is due can be.
    """
    since = min(filter(None, (settings.since, keep)), default=None)
    plan = agenda(
        root,
        product,
        rules(settings),
        settings.baselines,
        since=None if since is None else pd.Timedelta(since),
        partial=settings.partial,
    )
    failed = _score(root, product, plan.due, settings, progress=progress)
    if failed and len(failed) == len(plan.due):
        raise SquallError(
            "no forecast that is due can be scored",
            found=f"{len(failed)}, the first of {next(iter(failed.items()))}",
            expected="forecasts and frames that can be read",
            remedy="look at that forecast; `squall archive validate` looks at the frames",
        )
    update_skill(root, product, settings.skill)
    try:
        of_period = total(root, product, plan.start)
    except NotFoundError:
        raise NotFoundError(
            "nothing to verify",
            found=f"{plan.waiting} forecasts of {product!r} that wait for their last frame",
            expected="a forecast whose last valid time has come",
            remedy="run `squall nowcast`, ingest newer frames, then verify; or score what came: "
            "`squall verify --partial`",
        ) from None
    return VerifyReport(
        of_period.sums,
        of_period.forecasts,
        of_period.models,
        scored=len(plan.due) - len(failed),
        unchanged=plan.unchanged,
        waiting=plan.waiting,
        missing=len(plan.missing),
        failed=failed,
        scores_url=folder_url(root, product),
    )


def _score(
    root: str, product: str, due: list[Due], settings: VerifySettings, *, progress: bool
) -> dict[str, str]:
    """Score forecasts and store their sums as they come; why some failed, by init_time."""
    failed: dict[str, str] = {}
    parts: list[xr.Dataset] = []
    url = archive_url(root, product)
    results = run_parallel(
        try_forecast,
        [(root, product, url, one, settings) for one in due],
        workers=settings.workers,
        on_death=died,
    )
    with contextlib.closing(results), bar(len(due), "verify", "forecast", shown=progress) as shown:
        for result in results:
            if isinstance(result, Failure):
                failed[time_text(result.init_time)] = result.why
            else:
                parts.append(result)
            if len(parts) == BATCH:
                write_scores(root, product, parts)
                parts = []
            shown.update()
    write_scores(root, product, parts)
    for time, why in failed.items():
        log.warning("the forecast of %s is not scored: %s", time, why)
    return failed


verify_task = retrying(verify_forecasts, "verify forecasts")


@flow(name="verify")
def verify(
    root: str | None = None,
    product: str | None = None,
    verify: VerifySettings | None = None,
    progress: bool = False,
) -> VerifyReport:
    """Score what was served of a product against its archive: each forecast once it can be.

    Again only where an observation was corrected, a shadow forecast was made or settings changed,
    so it may run as often as you like.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Which archive; likewise.
        verify: What is scored, and how; likewise, each of its settings.
        progress: Show a bar.
    """
    settings = load_settings(root=root, product=product, verify=verify)
    report = verify_task(
        settings.root,
        settings.product,
        settings.verify,
        keep=settings.retention.scores,
        progress=progress,
    )
    about = f"{settings.product}: {report.counts()}; same pixels for all"
    create_table_artifact(key="scores", table=report.table(), description=about)
    if report.scored:
        publish_picture("skill", skill_picture(report.sums), about)
    return report


def score_table(sums: xr.Dataset) -> list[dict[str, str]]:
    """Scores as text: a row per score and forecaster, a column per lead time; – for no cases.

    Of the whole domain, what was served first.
    """
    values = served_first(scores(sums))
    groups = {
        f"CSI ≥ {threshold:g} mm/h": values["csi"].sel(threshold=threshold)
        for threshold in values["threshold"].values[:TABLE_THRESHOLDS]
    }
    if "fss" in values:
        fss = values["fss"].isel(threshold=0)
        groups |= {
            f"FSS ≥ {fss['threshold']:g} mm/h, {scale:g} km": fss.sel(scale=scale)
            for scale in fss["scale"].values[-TABLE_SCALES:]
        }
    groups |= {"MAE (mm/h)": values["mae"], "MSE (mm²/h²)": values["mse"]}
    return [
        {"score": title, "forecaster": str(name)}
        | {
            format_duration(pd.Timedelta(lead)): _text(
                float(score.sel(forecaster=name, lead_time=lead))
            )
            for lead in score["lead_time"].values
        }
        for title, score in groups.items()
        for name in score["forecaster"].values
    ]


def markdown(report: VerifyReport) -> str:
    """The score table for a README or a mail."""
    rows = report.table()
    names = list(rows[0])
    lines = [" | ".join(names), " | ".join(["---", "---", *["---:"] * (len(names) - 2)])]
    lines += [" | ".join(row[name] for name in names) for row in rows]
    note = f"{report.counts()}; all forecasters on the same pixels."
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{note}\n"


def _text(score: float) -> str:
    return "–" if pd.isna(score) else f"{score:.3f}"
