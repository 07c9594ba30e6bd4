"""Forecasters against what came: on fixed events, all on the same pixels."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from models.baselines import BASELINES
from models.forecaster import Forecaster
from models.past import read_past
from pipelines.archive import Archive
from pipelines.compare import DOMAIN, Scoring, compare
from pipelines.errors import NotFoundError, TooFewFramesError
from pipelines.forecasts import ensemble_mean
from pipelines.fss import SCALES_KM
from pipelines.progress import bar
from pipelines.scores import THRESHOLDS_MM_H, merge

log = logging.getLogger(__name__)


def evaluate_forecasters(
    archive_url: str,
    forecasters: Mapping[str, Forecaster],
    init_times: Iterable[pd.Timestamp],
    lead_times: pd.TimedeltaIndex,
    thresholds_mm_h: Iterable[float] = THRESHOLDS_MM_H,
    scales_km: Iterable[float] = SCALES_KM,
    *,
    progress: bool = False,
) -> xr.Dataset:
    """Sums (forecaster, lead_time, threshold[, scale]) over events, for `pipelines.scores.scores`.

    An ensemble is scored by its mean. pysteps may fail on an odd sky. Then nobody is scored on that
    event, so that all are compared on the same ones; but a baseline that fails on more than half of
    them is left out itself. Both are logged, and the attribute `events` counts what was scored. An
    event of which a frame has gone since is passed over. What a network raises is raised.

    Parameters
    ----------
    forecasters : by the names that the sums get
    init_times : of the events: see `spread`
    lead_times : ascending; those with no frame in the archive are not scored

    Raises
    ------
    NotFoundError : no event is left
    """
    archive, init_times = Archive(archive_url), list(init_times)
    scoring = Scoring.on(archive.grid, thresholds_mm_h, scales_km)
    parts: list[xr.Dataset] = []
    with bar(len(init_times), "evaluate", "event", shown=progress) as shown:
        for init_time in init_times:
            observed = observed_after(archive, init_time, lead_times)
            came = pd.TimedeltaIndex(observed["lead_time"].values)
            fields = _forecasts(archive, forecasters, init_time, came) if len(came) else {}
            if fields:
                parts.append(compare(fields, observed, scoring).sel(region=DOMAIN, drop=True))
            shown.update()
    scored = Counter(name for part in parts for name in part["forecaster"].values)
    kept = [name for name in forecasters if 2 * scored[name] >= len(parts)]
    used = [part for part in parts if set(kept) <= set(part["forecaster"].values)]
    if not kept or not used:
        raise NotFoundError(
            "no event to evaluate forecasters on",
            found=f"{len(init_times)} init_times, {len(parts)} with a forecast and a later frame",
            expected="at least one on which no baseline fails",
            remedy="name other init_times, or fewer baselines",
        )
    for name in set(forecasters) - set(kept):
        log.warning("%s is left out: it failed on most events", name)
    sums = merge(part.sel(forecaster=kept) for part in used)
    return sums.assign_attrs(events=len(used))


def _forecasts(
    archive: Archive,
    forecasters: Mapping[str, Forecaster],
    init_time: pd.Timestamp,
    lead_times: pd.TimedeltaIndex,
) -> dict[str, xr.DataArray]:
    """The forecasts of those that do not fail; none where the frame at `init_time` has gone."""
    forecasts = {}
    for name, forecaster in forecasters.items():
        try:
            forecasts[name] = forecast_from(archive, forecaster, init_time, lead_times)
        except TooFewFramesError as error:
            log.warning("%s", error)
            return {}
        except Exception:
            if forecaster.name not in BASELINES:
                raise
            log.warning("%s fails at %s", name, init_time, exc_info=True)
    return forecasts


def forecast_from(
    archive: Archive,
    forecaster: Forecaster,
    init_time: pd.Timestamp,
    lead_times: pd.TimedeltaIndex,
) -> xr.DataArray:
    """The forecast (lead_time, y, x), an ensemble's mean, from frames up to `init_time`.

    The nearest frame stands in for a missing one. Raises `TooFewFramesError` where the one at
    `init_time` is missing.
    """
    frames = max(forecaster.past_frames, 2)
    past = read_past(archive, init_time, frames, most_missing=frames - 1)
    return ensemble_mean(forecaster.predict(past.frames, lead_times))


def observed_after(
    archive: Archive, init_time: pd.Timestamp, lead_times: pd.TimedeltaIndex
) -> xr.DataArray:
    """What came (lead_time, y, x): only lead times at which a frame has."""
    usable = archive.usable_times(init_time, init_time + lead_times.max())
    came = lead_times[(init_time + lead_times).isin(usable)]
    observed = archive.read_frames(init_time + came).drop_vars("crs")
    return observed.rename(time="lead_time").assign_coords(lead_time=came)


def spread(init_times: pd.DatetimeIndex, count: int) -> pd.DatetimeIndex:
    """`count` of the init_times, evenly spread, the first and the last among them; or all."""
    if len(init_times) <= count:
        return init_times
    return init_times[np.linspace(0, len(init_times) - 1, count).round().astype(int)]
