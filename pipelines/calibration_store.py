"""Where calibrations are, which one nowcasts use, and the scores that they are fitted on.

{root}/calibrations/{product}/{version}.json      immutable
{root}/calibrations/{product}/current.json        which is applied, at which thresholds
"""

import json
import logging

import pandas as pd
import xarray as xr
from pydantic import ValidationError

from pipelines import storage
from pipelines.calibration import CASES, EVENTS, FORECAST, CalibrateSettings, Calibration
from pipelines.compare import DOMAIN
from pipelines.errors import NotFoundError, SquallError
from pipelines.score_store import SERVED, days, of_forecaster, open_scores

log = logging.getLogger(__name__)

SUMS = (CASES, FORECAST, EVENTS, "pixels", "ensemble_pixels")
CURRENT = "current.json"


def evidence(
    root: str, product: str, settings: CalibrateSettings, serving: str | None = None
) -> tuple[xr.Dataset, str]:
    """The reliability sums of a forecaster, and which it is.

    The one of the settings, or else `serving`, or, if no ensemble of it is verified, the one with
    most cases. Raises `NotFoundError` where no ensemble was verified, or none of the one asked for.
    """
    there = days(root, product)
    since = there.max() - pd.Timedelta(settings.window) if len(there) else None
    sums = open_scores(root, product, since, sums=SUMS)
    sums = sums.sel(region=DOMAIN, drop=True)
    names = [*map(str, sums["forecaster"].values), *map(str, sums["model"].values)]
    candidates = sorted({*names} - {SERVED, ""})
    found = {}
    if CASES in sums:
        of = {name: of_forecaster(sums, name) for name in candidates}
        found = {name: one for name, one in of.items() if float(one["ensemble_pixels"].sum()) > 0}
    asked = settings.forecaster
    if not found or (asked is not None and asked not in found):
        raise NotFoundError(
            "no ensemble to recalibrate",
            found=f"scores of {', '.join(candidates) or 'nobody'}; ensembles: "
            f"{', '.join(found) or 'none'}",
            expected=f"verified ensembles of {asked or 'any forecaster'}",
            remedy="forecast with members (nowcast.serving.members, or --model steps), then verify",
        )
    most = max(found, key=lambda one: float(found[one]["ensemble_pixels"].sum()))
    name = asked or (serving if serving in found else most)
    return found[name], name


def folder_url(root: str, product: str) -> str:
    """Where the calibrations of a product are."""
    return storage.join(root, "calibrations", product)


def save_calibration(root: str, product: str, calibration: Calibration) -> str:
    """Store a version; its URL."""
    url = f"{folder_url(root, product)}/{calibration.version}.json"
    storage.write_json(url, calibration.model_dump())
    return url


def versions(root: str, product: str) -> list[Calibration]:
    """All that can be read, newest first."""
    folder = folder_url(root, product)
    names = sorted(storage.names(folder), reverse=True) if storage.exists(folder) else []
    found = []
    for name in names:
        if name.endswith(".json") and name != CURRENT:
            try:
                found.append(_read(folder, name.removesuffix(".json")))
            except (OSError, ValidationError) as error:
                log.warning("%s in %s cannot be read: %s", name, storage.display(folder), error)
    return found


def find_version(root: str, product: str, version: str) -> Calibration:
    """A calibration by its version. Raises `NotFoundError` where there is none."""
    there = versions(root, product)
    for one in there:
        if one.version == version:
            return one
    raise NotFoundError(
        f"no calibration {version!r} of {product!r}",
        found=", ".join(one.version for one in there) or "none at all",
        expected="one of these",
        remedy="see `squall calibrate --list`",
    )


def make_current(root: str, product: str, calibration: Calibration, *, force: bool = False) -> None:
    """Have nowcasts use it, at the thresholds where it is proven to help.

    Forced, at all. Raises `SquallError` where it is proven at none, unless forced.
    """
    used = calibration if force else calibration.of(calibration.proven)
    if not used.curves:
        changes = "; ".join(
            f"≥ {one.threshold_mm_h:g} mm/h: {one.brier_before:.4f} to {one.brier_after:.4f} "
            f"({one.change_interval[0]:+.4f} to {one.change_interval[1]:+.4f})"
            for one in calibration.reliability
        )
        raise SquallError(
            "the calibration is not proven to help",
            found=f"Brier score on events not seen, {changes}",
            expected="a lower one at a threshold, with an interval that excludes 0",
            remedy="keep what there is, verify more forecasts, or override it: --force",
        )
    thresholds = sorted({one.threshold_mm_h for one in used.curves})
    named = {"version": used.version, "thresholds_mm_h": thresholds}
    storage.write_json(f"{folder_url(root, product)}/{CURRENT}", named)


def use_none(root: str, product: str) -> None:
    """Have nowcasts give the share of members as it is."""
    storage.write_json(f"{folder_url(root, product)}/{CURRENT}", {"version": None})


def read_calibration(root: str, product: str) -> Calibration | None:
    """The current one; None where none is, or it cannot be read: no nowcast waits for that."""
    folder = folder_url(root, product)
    try:
        named = json.loads(storage.read_bytes(f"{folder}/{CURRENT}"))
        if named["version"] is None:
            return None
        return _read(folder, named["version"]).of(named["thresholds_mm_h"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, OSError, ValidationError) as error:
        log.warning("the calibration in %s cannot be read: %s", storage.display(folder), error)
        return None


def _read(folder: str, version: str) -> Calibration:
    return Calibration.model_validate_json(storage.read_bytes(f"{folder}/{version}.json"))
