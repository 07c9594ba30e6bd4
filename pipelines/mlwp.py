"""A forecast in the form in which machine-learning weather predictions are compared: MLWP's traits.

The specification is mlwp-data-specs 0.1.0 (https://github.com/mlwp-tools/mlwp-data-specs), whose
traits here are time ``forecast``, space ``grid``, uncertainty ``deterministic`` or ``ensemble``. It
wants dimensions ``reference_time``, ``lead_time``, ``xc`` and ``yc`` (on a geographic grid
``longitude`` and ``latitude``), ``member`` for an ensemble, and knows no others. So probabilities,
which have a threshold, are left out.
"""

from typing import Any

import numpy as np
import xarray as xr

from pipelines.grid import Grid
from pipelines.products import encodings

SPECIFICATION = "0.1.0"
GEOGRAPHIC = {"init_time": "reference_time", "y": "latitude", "x": "longitude"}
PROJECTED = {
    "init_time": "reference_time",
    "y": "yc",
    "x": "xc",
    "lat": "latitude",
    "lon": "longitude",
}
SPACE = ("xc", "yc", "longitude", "latitude")
DIMS = frozenset({"reference_time", "lead_time", "member", *SPACE})


def mlwp_dataset(forecast: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
    """A forecast as an MLWP dataset, and the Zarr encoding of its variables.

    Parameters
    ----------
    forecast : variables ([member,] lead_time, y, x) with a scalar init_time, as published

    Returns
    -------
    variables (reference_time: 1, [member,] lead_time, yc, xc), valid_time(reference_time,
    lead_time), lead_time in whole seconds
    """
    names = GEOGRAPHIC if Grid.of(forecast).is_geographic else PROJECTED
    renamed = forecast.drop_encoding().rename(names)
    renamed = renamed.drop_dims([dim for dim in renamed.dims if dim not in DIMS])
    dataset = renamed.drop_vars("valid_time").expand_dims("reference_time")
    lead_time, valid_time = renamed["lead_time"], renamed["valid_time"]
    # Unlike `seconds`, `s` stays a number with its unit when xarray opens it: the rule looks there.
    seconds = (lead_time.values / np.timedelta64(1, "s")).astype("i8")
    dataset = dataset.assign_coords(
        lead_time=("lead_time", seconds, lead_time.attrs | {"units": "s"}),
        valid_time=(
            ("reference_time", "lead_time"),
            valid_time.values[None],
            valid_time.attrs,
        ),
    )
    encoding = {names.get(name, name): how for name, how in encodings(forecast).items()}
    encoding["lead_time"] = {}
    for name in map(str, dataset.data_vars):
        for size in ("chunks", "shards"):
            encoding[name][size] = (1, *encoding[name][size])
    kept = {name: how for name, how in encoding.items() if name in dataset.variables}
    return dataset.assign_attrs(traits(dataset)), kept


def traits(dataset: xr.Dataset) -> dict[str, str]:
    """The attributes by which a validator knows what to check."""
    uncertainty = "ensemble" if "member" in dataset.dims else "deterministic"
    return {
        "mlwp_time_trait": "forecast",
        "mlwp_space_trait": "grid",
        "mlwp_uncertainty_trait": uncertainty,
        "mlwp_data_specs_version": SPECIFICATION,
    }
