"""The calibrate flow: probabilities corrected by how often it rained when they were given."""

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.settings import load_settings
from flows.tasks import retrying
from pipelines.calibration import (
    CalibrateSettings,
    Calibration,
    evidence,
    fit,
    make_current,
    save_calibration,
)


def calibrate_probabilities(
    root: str, product: str, settings: CalibrateSettings, *, force: bool = False
) -> Calibration:
    """Fit on what was verified, store, and use from now on.

    Raises `NotFoundError` where too little was verified, and `SquallError` where the calibration,
    which is stored all the same, is not proven to help, unless forced.
    """
    sums, forecaster = evidence(root, product, settings)
    calibration = fit(sums, forecaster, settings)
    save_calibration(root, product, calibration)
    make_current(root, product, calibration, force=force)
    return calibration


calibrate_task = retrying(calibrate_probabilities, "calibrate probabilities")


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
    calibration = calibrate_task(*place, settings.calibrate, force=force)
    create_table_artifact(
        key="calibration",
        table=calibration_table(calibration),
        description=f"{settings.product}: {calibration.version} of {calibration.forecaster}, "
        "on events that the fit had not seen",
    )
    return calibration


def calibration_table(calibration: Calibration) -> list[dict[str, str]]:
    """A row for each threshold: the Brier score before and after, on events not seen."""
    return [
        {
            "threshold": f"{one.threshold_mm_h:g} mm/h",
            "Brier before": f"{one.brier_before:.4f}",
            "after": f"{one.brier_after:.4f}",
            "change, 95 %": f"{one.change_interval[0]:+.4f} to {one.change_interval[1]:+.4f}",
        }
        for one in calibration.reliability
    ]
