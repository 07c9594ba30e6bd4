"""Verified forecasts made up: sums as the scores store has them, with the CSI that is wanted."""

import numpy as np
import pandas as pd
import xarray as xr

OBSERVED = 100.0
"""Pixels of every forecast in which the event was observed, unless it was dry."""
PIXELS = 1000.0


def verified(init_times, csi, *, served="persistence", leads=("5min", "10min"), observed=OBSERVED):
    """Sums (init_time, forecaster, lead_time, region, threshold) at 0.5 and 5 mm/h.

    csi : by forecaster, anything that fits (init_time, lead_time): hits out of `observed`, the
        rest missed, so that this is the CSI, at 0.5 mm/h; at 5 mm/h nobody hits. NaN: not scored
    served : the model of what was served, for all or each init_time
    observed : pixels, anything that fits (init_time, lead_time); 0 where it was dry
    """
    times = pd.DatetimeIndex(init_times)
    shape = len(times), len(leads)
    wet = np.broadcast_to(np.asarray(observed, float).reshape(_fitting(observed)), shape)
    values = np.stack(
        [
            np.broadcast_to(np.asarray(one, float).reshape(_fitting(one)), shape)
            for one in csi.values()
        ],
        axis=1,
    )  # (init_time, forecaster, lead_time)
    there = ~np.isnan(values)
    events = wet[:, None] * there
    hits = np.nan_to_num(values) * events
    both = np.stack([hits, np.zeros_like(hits)], axis=-1)[:, :, :, None]
    missed = np.stack([events - hits, events], axis=-1)[:, :, :, None]
    dims = ("init_time", "forecaster", "lead_time", "region", "threshold")
    pixels = (PIXELS * there)[..., None]
    return xr.Dataset(
        {
            "hits": (dims, both),
            "misses": (dims, missed),
            "false_alarms": (dims, np.zeros_like(both)),
            "pixels": (dims[:-1], pixels),
        },
        coords={
            "init_time": times,
            "forecaster": list(csi),
            "lead_time": pd.to_timedelta(list(leads)),
            "region": ["domain"],
            "threshold": [0.5, 5.0],
            "model": ("init_time", np.broadcast_to(np.asarray(served, object), len(times))),
        },
    )


def _fitting(values):
    """A list by init_time as a column; a number, or by both, as it is."""
    shape = np.shape(values)
    return (*shape, 1) if len(shape) == 1 else shape
