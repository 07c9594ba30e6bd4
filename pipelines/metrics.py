"""The state of a service as Prometheus metrics: a text file, or an endpoint asked again and again.

All are gauges of what is there now, computed when they are asked for; latency is a summary whose
quantiles are over the forecasts of the 24 hours up to the newest frame.
"""

from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest, write_to_textfile
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily

from pipelines.latency import ROWS
from pipelines.skill import RecentSkill
from pipelines.watch import ServiceStatus

QUANTILES = (0.5, 0.95, 1.0)


class StatusCollector:
    """Looks at a service whenever its metrics are collected.

    Parameters
    ----------
    look : gives the status and a line for every limit that is crossed
    """

    def __init__(self, look: Callable[[], tuple[ServiceStatus, list[str]]]) -> None:
        self.look = look

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        yield from metric_families(*self.look())

    def describe(self) -> list[Metric]:
        """Nothing: nobody has to look in order to register."""
        return []


def registry(look: Callable[[], tuple[ServiceStatus, list[str]]]) -> CollectorRegistry:
    """A registry of its own: the process's metrics are not among them."""
    own = CollectorRegistry()
    own.register(StatusCollector(look))
    return own


def metrics(status: ServiceStatus, lines: list[str]) -> CollectorRegistry:
    """The metrics of a status already known."""
    return registry(lambda: (status, lines))


def text(status: ServiceStatus, lines: list[str]) -> str:
    """In Prometheus' text format."""
    return generate_latest(metrics(status, lines)).decode()


def write_metrics(path: str, status: ServiceStatus, lines: list[str]) -> None:
    """A text file for the node exporter's collector, replaced as a whole."""
    write_to_textfile(path, metrics(status, lines))


def metric_families(status: ServiceStatus, lines: list[str]) -> Iterator[Metric]:
    """All metrics; one whose value is not known is left out."""
    of = [status.product]

    def gauge(name: str, help_: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            family = GaugeMetricFamily(name, help_, labels=["product"])
            family.add_metric(of, value)
            yield family

    age, forecast_age = status.frame_age, status.forecast_age
    yield from gauge(
        "squall_newest_frame_age_seconds",
        "Time since the valid time of the archive's newest usable frame.",
        None if age is None else age.total_seconds(),
    )
    yield from gauge(
        "squall_newest_forecast_age_seconds",
        "Time since the init time of the newest published forecast.",
        None if forecast_age is None else forecast_age.total_seconds(),
    )
    yield from gauge(
        "squall_gaps", "Missing frames in the 24 hours up to the newest one.", len(status.gaps)
    )
    yield from gauge(
        "squall_frames_without_forecast",
        "Frames of the 24 hours up to the newest one without a forecast, older than the newest.",
        len(status.unforecast),
    )
    yield from gauge(
        "squall_frames_waiting",
        "Frames newer than the newest forecast.",
        len(status.waiting),
    )
    yield from gauge(
        "squall_limits_crossed", "Limits of the settings that are crossed: 0 is well.", len(lines)
    )
    forecasts = GaugeMetricFamily(
        "squall_forecasts",
        "Forecasts of the 24 hours up to the newest frame, by quality.",
        labels=["product", "quality"],
    )
    for quality in sorted({"good", "degraded", "fallback", *status.qualities}):
        forecasts.add_metric([*of, quality], status.qualities[quality])
    yield forecasts
    if status.newest_forecast is not None:
        newest = GaugeMetricFamily(
            "squall_newest_forecast_info",
            "Always 1: model and quality of the newest forecast.",
            labels=["product", "model", "quality"],
        )
        model = str(status.newest_forecast.attributes.get("model", "unknown"))
        newest.add_metric([*of, model, status.newest_forecast.quality], 1)
        yield newest
    if status.skill is not None:
        yield from skill_families(of, status.skill)
    yield latency_family(status)


def skill_families(of: list[str], skill: RecentSkill) -> Iterator[Metric]:
    """CSI, trust horizon and time behind advection of every forecaster; what is not known is not.

    `of` : the product
    """
    csi = GaugeMetricFamily(
        "squall_csi",
        "Critical success index of the forecasts verified lately.",
        labels=["product", "forecaster", "threshold_mm_h", "lead_time_seconds"],
    )
    horizon = GaugeMetricFamily(
        "squall_trust_horizon_seconds",
        "Lead time at which forecasts stop beating persistence, and its 95 % interval.",
        labels=["product", "forecaster", "bound"],
    )
    behind = GaugeMetricFamily(
        "squall_behind_advection_seconds",
        "How long the verified forecasts have been behind advection's; 0 where they are not.",
        labels=["product", "forecaster"],
    )
    until = GaugeMetricFamily(
        "squall_verified_until_seconds",
        "When the newest verified forecast starts, seconds since 1970.",
        labels=["product"],
    )
    until.add_metric(of, skill.until.timestamp())
    for name, one in skill.forecasters.items():
        for lead, value in zip(skill.lead_times, one.csi, strict=True):
            if not np.isnan(value):
                labels = [f"{skill.threshold_mm_h:g}", f"{lead.total_seconds():g}"]
                csi.add_metric([*of, name, *labels], value)
        if one.trust_horizon is not None:
            lower, upper = one.trust_horizon_interval or (None, None)
            bounds = {"estimate": one.trust_horizon, "lower": lower, "upper": upper}
            for bound, lead_time in bounds.items():
                if lead_time is not None:
                    horizon.add_metric([*of, name, bound], lead_time.total_seconds())
        duration = one.behind.duration.total_seconds() if one.behind else 0.0
        behind.add_metric([*of, name], duration)
    yield from (csi, horizon, behind, until)


def latency_family(status: ServiceStatus) -> Metric:
    """Seconds by stage, `total` and `wait` included."""
    family = SummaryMetricFamily(
        "squall_latency_seconds",
        "From visible frame to readable forecast, by stage, over the 24 hours up to the newest "
        "frame; quantile 1 is the longest.",
        labels=["product", "stage"],
    )
    seconds = status.latency.seconds
    for stage in ROWS:
        labels = [status.product, stage]
        for quantile in QUANTILES if len(seconds) else ():
            family.add_sample(
                "squall_latency_seconds",
                {"product": status.product, "stage": stage, "quantile": f"{quantile:g}"},
                float(seconds[stage].quantile(quantile)),
            )
        family.add_metric(labels, count_value=len(seconds), sum_value=float(seconds[stage].sum()))
    return family
