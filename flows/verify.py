"""The verification flow: published forecasts against what came, beside the baselines."""

import contextlib
from dataclasses import dataclass

import pandas as pd
import xarray as xr
from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.settings import load_settings
from flows.tasks import retrying
from models.verification import VerifySettings, verify_forecast
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.errors import NotFoundError
from pipelines.forecasts import published_init_times
from pipelines.progress import bar
from pipelines.scores import merge, save_sums, scores
from pipelines.times import format_duration
from pipelines.workers import run_parallel

TABLE_THRESHOLDS = 3
TABLE_SCALES = 2
"""The score table shows the lowest thresholds, and at the lowest one the largest scales; the stored
sums have all."""


@dataclass(frozen=True)
class VerifyReport:
    """Sums by forecaster, lead time and threshold, and how many forecasts they are of.

    `waiting` forecasts have no observation yet. `sums_url` is where the sums are stored.
    """

    sums: xr.Dataset
    verified: int
    waiting: int
    sums_url: str

    def table(self) -> list[dict[str, str]]:
        """CSI, FSS, MAE and MSE of each forecaster, by lead time."""
        return score_table(self.sums)


def verify_forecasts(
    root: str, product: str, settings: VerifySettings, *, progress: bool = False
) -> VerifyReport:
    """Score all published forecasts, each in a Dask task, and store the merged sums.

    Raises `NotFoundError` where there is no forecast, or none with an observation yet.
    """
    init_times = published_init_times(root, product)
    if settings.since is not None and len(init_times):
        init_times = init_times[init_times >= init_times[-1] - pd.Timedelta(settings.since)]
    url = archive_url(root, product)
    results = run_parallel(
        verify_forecast,
        [(root, product, url, init_time, settings) for init_time in init_times],
        workers=settings.workers,
    )
    parts: list[xr.Dataset] = []
    with (
        contextlib.closing(results),
        bar(len(init_times), "verify", "forecast", shown=progress) as shown,
    ):
        for part in results:
            parts += [] if part is None else [part]
            shown.update()
    if not parts:
        raise NotFoundError(
            "nothing to verify",
            found=f"{len(init_times)} forecasts of {product!r}, none with a later frame",
            expected="a forecast and at least one frame newer than its init_time",
            remedy="run `squall nowcast`, ingest newer frames, then verify",
        )
    sums = merge(parts)
    sums_url = save_sums(root, product, sums)
    report = VerifyReport(sums, len(parts), len(init_times) - len(parts), sums_url)
    storage.write_bytes(f"{sums_url.rsplit('/', 1)[0]}/latest.md", markdown(report).encode())
    return report


verify_task = retrying(verify_forecasts, "verify forecasts")


@flow(name="verify")
def verify(
    root: str | None = None,
    product: str | None = None,
    verify: VerifySettings | None = None,
    progress: bool = False,
) -> VerifyReport:
    """Score the published forecasts of a product against its archive.

    Args:
        root: Where the stores are; as squall.toml and the environment say, if not given.
        product: Which archive; likewise.
        verify: What is scored, and how; likewise, each of its settings.
        progress: Show a bar.
    """
    settings = load_settings(root=root, product=product, verify=verify)
    report = verify_task(settings.root, settings.product, settings.verify, progress=progress)
    create_table_artifact(
        key="scores",
        table=report.table(),
        description=f"{settings.product}: {report.verified} forecasts, same pixels for all",
    )
    return report


def score_table(sums: xr.Dataset) -> list[dict[str, str]]:
    """Scores as text: a row per score and forecaster, a column per lead time; – for no cases."""
    values = scores(sums)
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
        {"score": title, "forecaster": str(name).partition("/")[0]}
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
    note = (
        f"{report.verified} forecasts verified, {report.waiting} without an observation yet; all "
        f"forecasters on the same pixels. {', '.join(map(str, report.sums['forecaster'].values))}."
    )
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{note}\n"


def _text(score: float) -> str:
    return "–" if pd.isna(score) else f"{score:.3f}"
