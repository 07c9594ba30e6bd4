"""What `squall status` and `squall latency` show. Neither needs Prefect, torch or a server."""

import threading
from typing import Any

from prometheus_client import start_http_server
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.table import Table

from flows.layers import Place, load
from pipelines.errors import SquallError
from pipelines.latency import Latency
from pipelines.metrics import registry
from pipelines.skill import RecentSkill
from pipelines.skill_attributes import horizon_text
from pipelines.times import format_duration, time_text
from pipelines.trust import PERSISTENCE
from pipelines.watch import ServiceStatus, WatchSettings, age_text, crossed, look

OTHERS = (
    "ingest",
    "train",
    "tune",
    "nowcast",
    "shadow",
    "verify",
    "calibrate",
    "promote",
    "retention",
)
"""Sections of `flows.settings.Settings` that are not looked at here: they would bring torch."""

console = Console(highlight=False, soft_wrap=True)


class WatchedPlace(Place):
    """The part of the settings that watching needs."""

    model_config = SettingsConfigDict(extra="ignore")

    watch: WatchSettings = WatchSettings()


def watched(overrides: dict[str, Any]) -> WatchedPlace:
    """The effective settings; raises `SettingsError` for one that does not exist or fit."""
    return load(WatchedPlace, overrides, others=OTHERS)


def examine(settings: WatchedPlace) -> tuple[ServiceStatus, list[str]]:
    """The state of the service, and a line for every limit that is crossed."""
    status = look(settings.root, settings.product)
    return status, crossed(status, settings.watch)


def serve(settings: WatchedPlace, port: int, address: str) -> None:
    """Answer http://address:port/metrics, looking anew each time, until interrupted."""
    try:
        server, thread = start_http_server(port, address, registry(lambda: examine(settings)))
    except (OSError, OverflowError) as error:
        raise SquallError(
            "metrics cannot be served there",
            found=f"{address}:{port}: {error}",
            expected="a free port and an address of this machine",
            remedy="name another one: --serve PORT, --address ADDRESS",
        ) from error
    print(f"metrics: http://{address}:{server.server_port}/metrics", flush=True)
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
        thread.join()


def print_status(status: ServiceStatus, lines: list[str]) -> None:
    """A screenful, the limits that are crossed last."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    newest = status.newest_forecast
    rows = {
        "newest frame": _aged(status.newest_frame, status.frame_age),
        "newest forecast": _aged(newest and newest.init_time, status.forecast_age),
    }
    if newest is not None:
        rows |= {
            "made by": f"{newest.attributes.get('model', 'unknown')}, {newest.quality}"
            f", revision {newest.revision}",
            "published": str(newest.attributes.get("publish_time", "unknown")),
        }
    rows |= {
        "frames missing": _times(status.gaps),
        "without forecast": _times(dict.fromkeys(status.unforecast, "")),
        "forecasts in 24h": ", ".join(f"{n} {of}" for of, n in sorted(status.qualities.items()))
        or "none",
        "champion": status.champion or "none",
        "latency in 24h": _latency(status.latency),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if status.skill is None:
        console.print("skill: none yet; `squall verify` scores what was forecast")
    else:
        print_skill(status.skill)
    for line in lines:
        console.print(f"[red]![/] {line}")
    console.print("all well" if not lines else f"{len(lines)} limits crossed")


def print_skill(skill: RecentSkill) -> None:
    """CSI by forecaster, at up to six lead times, the trust horizon, and who is behind."""
    table = Table(
        title=f"CSI ≥ {skill.threshold_mm_h:g} mm/h of the forecasts from {time_text(skill.since)}"
        f" to {time_text(skill.until)}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("forecaster")
    last = len(skill.lead_times) - 1
    chosen = sorted({round(k * last / 5) for k in range(6)})
    for k in chosen:
        table.add_column(format_duration(skill.lead_times[k]), justify="right")
    table.add_column("trust horizon")
    for name, one in skill.forecasters.items():
        values = ("–" if one.csi[k] != one.csi[k] else f"{one.csi[k]:.3f}" for k in chosen)
        table.add_row(name, *values, "" if name == PERSISTENCE else horizon_text(one))
    console.print(table)
    for name, one in skill.forecasters.items():
        if one.behind is not None:
            console.print(f"{name} behind advection since {time_text(one.behind.since)}")


def print_latency(latency: Latency) -> None:
    """Quantiles by stage, and what did not count."""
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in latency.seconds.index[[0, -1]])
    title = f"Seconds from visible frame to readable forecast, {first} to {last} UTC"
    table = Table(title=title, title_justify="left", title_style="bold")
    quantiles = latency.quantiles()
    for column in ("stage", *quantiles.columns):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, values in quantiles.iterrows():
        table.add_row(
            str(stage), *(f"{value:.2f}" for value in values), end_section=stage == "total"
        )
    console.print(table)
    console.print(f"{len(latency.seconds)} forecasts")
    for reason, count in latency.left_out.items():
        console.print(f"left out: {count} {reason}")


def _aged(time: Any, age: Any) -> str:
    return "none" if time is None else f"{time_text(time)}, {age_text(age)} old"


def _latency(latency: Latency) -> str:
    if latency.seconds.empty:
        return "unknown"
    total = latency.quantiles().loc["total"]
    return ", ".join(f"{name} {value:.1f}s" for name, value in total.items())


def _times(times: dict[Any, str], most: int = 3) -> str:
    """How many, and the newest of them."""
    shown = [f"{time_text(t)} {what}".strip() for t, what in list(times.items())[-most:]]
    more = ["…"] if len(times) > most else []
    return f"{len(times)}: {', '.join(more + shown)}" if times else "none"
