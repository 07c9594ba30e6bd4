"""A small service to watch: forecasts as they are published, with attributes given by hand."""

import numpy as np
import pandas as pd
import xarray as xr

from pipelines import storage
from pipelines.forecasts import forecast_dataset, forecast_name
from pipelines.grid import Grid
from pipelines.times import init_time_label, time_text

PRODUCT = "test"
SECONDS = {"ingest": 2.0, "read": 1.0, "predict": 3.0, "products": 0.5, "publish": 0.5}
"""By stage, 7 s together. The file is visible a minute after the frame, the forecast 10 s later."""


def publish_by_hand(
    root: str, grid: Grid, init_time: pd.Timestamp, revision: int = 1, **attributes: object
) -> str:
    """Publish a revision, mark the one before as superseded, point latest.json; its name."""
    received = init_time + pd.Timedelta("1min")
    given = {
        "model": "persistence",
        "requested_model": "persistence",
        "quality": "good",
        "quality_note": "",
        "revision": revision,
        "frame_received_time": time_text(received),
        "publish_time": time_text(received + pd.Timedelta("10s")),
        "backfill": 0,
        **{f"seconds_{stage}": value for stage, value in SECONDS.items()},
        **attributes,
    }
    lead_times = pd.timedelta_range("5min", periods=2, freq="5min")
    rain_rate = xr.DataArray(
        np.ones((2, *grid.shape), np.float32),
        dims=("lead_time", "y", "x"),
        coords=grid.coords(lonlat=False)
        | {"lead_time": lead_times, "init_time": init_time.to_datetime64()},
    )
    folder = storage.join(root, "forecasts", PRODUCT)
    name = forecast_name(init_time, revision)
    storage.publish_store(forecast_dataset(rain_rate, given), f"{folder}/{name}", {})
    if revision > 1:
        older = f"{folder}/{forecast_name(init_time, revision - 1)}/{storage.ROOT_METADATA}"
        if storage.exists(older):
            metadata = storage.read_json(older)
            metadata["attributes"]["superseded_by"] = name
            storage.write_json(older, metadata)
    latest = f"{folder}/latest.json"
    label = init_time_label(init_time)
    if not storage.exists(latest) or storage.read_json(latest)["forecast"][: len(label)] <= label:
        content = {"init_time": time_text(init_time), "forecast": name}
        storage.write_json(latest, content)
    return name
