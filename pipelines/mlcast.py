"""MLCast's specification for radar precipitation source data, as far as data and publisher decide.

The specification is 0.3.0, which mlcast-dataset-validator 0.4.0 checks
(https://github.com/mlcast-community/mlcast-dataset-validator). How a dataset is laid out is
`pipelines.export`'s business; here is who publishes it, under which licence, and which rules the
data cannot meet however it is written.
"""

import math
import re
from collections.abc import Mapping
from importlib.metadata import version

import pandas as pd
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.times import now, time_text

SPECIFICATION = "0.3.0"
VALIDATOR = "0.4.0"
LEAST_DAYS = 3 * 365.25
LARGEST_PIXEL_M = 1000.0
PIXEL_TOLERANCE = 0.01
LEAST_PIXELS = 256
CREATOR = r"[^<>]*[^<>\s] <[^<>\s@]+@[^<>\s@]+>"
IDENTIFIER = r"[A-Z]{2}(-[A-Za-z0-9]([A-Za-z0-9_]*[A-Za-z0-9])?){2}"
"""Country code (ISO 3166), entity and physical variable."""
CREATED_WITH = r"https://github\.com/mlcast-community/mlcast-dataset-[^\s@]+-[^\s@]+@\S+"
"""What passes for the address of the software that made a dataset."""


def attributes(
    creator: str, identifier: str, license: str | None, of_archive: object, created_with: str | None
) -> dict[str, str]:
    """The global attributes that name publisher, licence and versions.

    `license` is what the publisher gives, `of_archive` what the archive says. Raises `SquallError`
    where one of them is not in the form that the specification wants.
    """
    return {
        "license": spdx(license, of_archive),
        "mlcast_created_on": time_text(now()),
        "mlcast_created_by": _matching("creator", creator, CREATOR, "Jo Day <jo@day.org>"),
        "mlcast_created_with": created_with or f"squall@{version('squall')}",
        "mlcast_dataset_version": SPECIFICATION,
        "mlcast_dataset_validator_version": VALIDATOR,
        "mlcast_dataset_identifier": _matching(
            "identifier", identifier, IDENTIFIER, "NL-KNMI-rainfall_flux"
        ),
    }


def _matching(name: str, value: str, pattern: str, example: str) -> str:
    """`value`, where it has the form that the specification wants."""
    if not re.fullmatch(pattern, value):
        raise SquallError(
            f"not a valid {name}",
            found=repr(value),
            expected=f"something like {example!r}",
            remedy=f"give {name} in that form",
        )
    return value


def spdx(given: str | None, of_archive: object) -> str:
    """The SPDX expression of a licence: the one given, else the archive's without its remark.

    Sources write a remark in brackets behind the identifier: ``CC-BY-4.0 (KNMI Data Platform)``.
    """
    text = given or str(of_archive or "").split(" (")[0]
    try:
        expression = str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        expression = ""
    if not expression or "LicenseRef" in expression:
        raise SquallError(
            "the licence has no SPDX identifier",
            found=repr(given or of_archive or "no licence"),
            expected="an identifier of https://spdx.org/licenses, such as CC-BY-4.0",
            remedy="look up the provider's terms and give `license`",
        )
    return expression


def unmet_rules(grid: Grid, times: pd.DatetimeIndex, attrs: Mapping[str, str]) -> dict[str, str]:
    """The rules that the data itself, or its publisher, does not meet: section and reason."""
    unmet = {}
    days = (times[-1] - times[0]).days
    dx, dy = grid.pixel
    if grid.is_geographic:
        unmet["3.1"] = "the grid is in degrees, not projected"
    elif max(dx, dy) > LARGEST_PIXEL_M and not math.isclose(
        max(dx, dy), LARGEST_PIXEL_M, rel_tol=PIXEL_TOLERANCE
    ):
        unmet["3.2"] = f"pixels of {dx:.0f}×{dy:.0f} m, 1 km at most are wanted"
    if min(grid.shape) < LEAST_PIXELS:
        unmet["3.2"] = f"{grid.shape[0]}×{grid.shape[1]} pixels, {LEAST_PIXELS} at least are wanted"
    if days < LEAST_DAYS:
        unmet["3.3"] = f"{days / 365.25:.1f} years, 3 are wanted"
    if "grid_mapping_name" not in grid.crs.to_cf():
        unmet["4.5"] = "CF has no name for the projection"
    if not re.fullmatch(CREATED_WITH, attrs["mlcast_created_with"]):
        unmet["5.4"] = "made with software outside MLCast's organisation on GitHub"
    return unmet
