"""The calibrate flow: probabilities corrected by how often it rained when they were given."""

import contextlib
from collections.abc import Iterable

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.settings import load_settings
from flows.tasks import retrying
from models.nowcasting import pinned
from pipelines.calibration import CalibrateSettings, Calibration, fit
from pipelines.calibration_store import (
    evidence,
    make_current,
    read_calibration,
    save_calibration,
    versions,
)
from pipelines.errors import NotFoundError


def fit_calibration(
    root: str, product: str, settings: CalibrateSettings, model: str | None = None
) -> Calibration:
    """Fit on what was verified, and store.

    `model` : what nowcasts are made with, the product's by default. Raises `NotFoundError` where
    too little was verified.
    """
    serving = None
    with contextlib.suppress(NotFoundError):  # no champion yet
        serving = pinned(root, model or product)
    calibration = fit(*evidence(root, product, settings, serving), settings)
    save_calibration(root, product, calibration)
    return calibration


fit_task = retrying(fit_calibration, "fit calibration")


@flow(name="calibrate")
def calibrate(
    root: str | None = None,
    product: str | None = None,
    calibrate: CalibrateSettings | None = None,
    force: bool = False,
) -> Calibration:
    """Fit a correction of exceedance probabilities on what was verified, and use it if it helps.

    Args:
        root: Where scores and calibrations are; as squall.toml and the environment say.
        product: Of which product; likewise.
        calibrate: How it is fitted; likewise, each of its settings.
        force: Use it though it is not proven to help.
    """
    settings = load_settings(root=root, product=product, calibrate=calibrate)
    place = settings.root, settings.product
    calibration = fit_task(*place, settings.calibrate, settings.nowcast.model)
    create_table_artifact(
        key="calibration",
        table=calibration_table(calibration),
        description=f"{settings.product}: {calibration.version} of {calibration.forecaster}, "
        "on events that the fit had not seen",
    )
    make_current(*place, calibration, force=force)
    return calibration


def calibration_table(calibration: Calibration) -> list[dict[str, str]]:
    """A row for each threshold: the Brier score before and after, on events not seen."""
    return [
        {
            "threshold": f"{one.threshold_mm_h:g} mm/h",
            "Brier before": f"{one.brier_before:.5f}",
            "after": f"{one.brier_after:.5f}",
            "change, 95 %": f"{one.change_interval[0]:+.5f} to {one.change_interval[1]:+.5f}",
            "proven": "yes" if one.threshold_mm_h in calibration.proven else "no",
        }
        for one in calibration.reliability
    ]


def versions_table(root: str, product: str) -> list[dict[str, str]]:
    """A row for each calibration of a product, newest first, and at which thresholds it is used."""
    used = read_calibration(root, product)
    return [
        {
            "version": one.version,
            "of": one.forecaster,
            "fitted on": f"{one.forecasts} forecasts to {one.until}",
            "proven, mm/h": _listed(one.proven),
            "used, mm/h": _listed({curve.threshold_mm_h for curve in used.curves})
            if used is not None and used.version == one.version
            else "",
        }
        for one in versions(root, product)
    ]


def _listed(thresholds: Iterable[float]) -> str:
    return ", ".join(f"{one:g}" for one in sorted(thresholds)) or "none"
