"""One forecast against what was observed, for tests of scores."""

from pipelines.compare import DOMAIN, Scoring, compare
from pipelines.scores import THRESHOLDS_MM_H


def measured(forecast, observed, thresholds=THRESHOLDS_MM_H, windows=None, valid=None):
    """Sums of ([lead_time,] y, x) fields; `valid`: what else does not count."""
    if valid is not None:
        forecast = forecast.where(valid)
    single = "lead_time" not in forecast.dims
    if single:
        forecast, observed = (field.expand_dims(lead_time=[0]) for field in (forecast, observed))
    scoring = Scoring(tuple(thresholds), windows or {})
    sums = compare({"it": forecast}, observed, scoring)
    sums = sums.sel(forecaster="it", region=DOMAIN, drop=True)
    return sums.isel(lead_time=0, drop=True) if single else sums
