"""Scores as `pipelines.score_store` opens them, of forecasters whose CSI is known beforehand."""

import numpy as np
import pandas as pd
import xarray as xr

LEADS = pd.to_timedelta([15, 30, 60], "min")
THRESHOLDS = [0.5, 2.0]
START = pd.Timestamp("2024-06-01T00:00")
EXTENT = 100.0
"""Pixels of an event."""


def hourly(days):
    """A forecast an hour: six in an event block, four blocks a day."""
    return pd.date_range(START, periods=24 * days, freq="1h")


def wobble(times, seed, size=0.05):
    """(init_time, 1, 1): what makes a CSI differ from event block to event block."""
    blocks = times.floor("6h")
    drawn = np.random.default_rng(seed).normal(0, size, blocks.nunique())
    return drawn[pd.factorize(blocks)[0]][:, None, None]


def verified(times, csi, *, extent=EXTENT, leads=LEADS, thresholds=THRESHOLDS):
    """Sums (init_time, forecaster, lead_time, region, threshold).

    csi : by forecaster, (init_time, lead_time, threshold) or what broadcasts to that. NaN: it made
        no forecast. There are no false alarms, so CSI is hits / events. Mean errors are misses.
    extent : of the events, likewise
    """
    shape = (len(times), len(leads), len(thresholds))
    parts = []
    for share in csi.values():
        share = np.broadcast_to(np.asarray(share, float), shape)
        made = ~np.isnan(share)
        events = np.where(made, np.broadcast_to(extent, shape), 0.0)
        hits = events * np.nan_to_num(share)
        misses, pixels = events - hits, np.where(made[..., 0], 1000.0, 0.0)
        none = np.zeros(shape)
        error = misses[..., 0]
        scales = 1.0 - np.nan_to_num(share)[..., None] * [0.5, 1.0]
        variables = {
            "hits": hits,
            "misses": misses,
            "false_alarms": none,
            "correct_negatives": pixels[..., None] - events,
            "squared_error": 2 * error,
            "absolute_error": error,
            "pixels": pixels,
            "fraction_error": events[..., None] * scales,
            "fraction_reference": events[..., None] * [1.0, 1.0],
        }
        dims = ("init_time", "lead_time", "threshold", "scale")
        parts.append(
            xr.Dataset(
                {name: (dims[: value.ndim], value) for name, value in variables.items()},
                {"init_time": times, "lead_time": leads, "threshold": thresholds}
                | {"scale": [1.0, 20.0]},
            )
        )
    names = pd.Index(list(csi), name="forecaster", dtype=object)
    return xr.concat(parts, names).expand_dims(region=["domain"])
