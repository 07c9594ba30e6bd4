"""`squall status` and `squall latency`."""

import json as json_format
from typing import Annotated

from cyclopts import Parameter

from flows.options import Common, overrides_of

Flag = Annotated[bool, Parameter(negative=())]


def status(
    *,
    json: Flag = False,
    prometheus: str | None = None,
    serve: int | None = None,
    address: str = "127.0.0.1",
    common: Common | None = None,
) -> int:
    """Say how the service is doing: newest frame and forecast, gaps, fallbacks, skill, latency.

    Exit code 1 where a limit is crossed: `squall doctor` lists them as watch.…
    Example: squall status --product knmi

    Parameters
    ----------
    json
        Print JSON.
    prometheus
        Also write metrics to this file, NAME.prom, for the node exporter's collector.
    serve
        Instead, serve metrics at http://ADDRESS:PORT/metrics until interrupted.
    address
        Which of the machine's addresses that is; 0.0.0.0 for all of them.
    """
    from flows.status import examine, print_status, watched
    from flows.status import serve as serve_metrics
    from pipelines.metrics import write_metrics
    from pipelines.watch import as_dict

    settings = watched(overrides_of(common, watch={"metrics_file": prometheus}))
    if serve is not None:
        serve_metrics(settings, serve, address)
        return 0
    found, lines = examine(settings)
    if settings.watch.metrics_file is not None:
        write_metrics(settings.watch.metrics_file, found, lines)
    if json:
        print(json_format.dumps(as_dict(found, lines), indent=2))
    else:
        print_status(found, lines)
    return 1 if lines else 0


def latency(
    *,
    since: str | None = None,
    until: str | None = None,
    json: Flag = False,
    common: Common | None = None,
) -> None:
    """Say how long frames take to become forecasts, by stage: p50, p95 and the longest.

    From when a frame's file was visible to when its forecast could be read, over forecasts of
    frames that had just come. The last 24 hours by default.
    Example: squall latency --product knmi --since 2010-08-26T00:00

    Parameters
    ----------
    since
        Only forecasts of this init_time and later, UTC.
    until
        Only forecasts of this init_time and earlier, UTC.
    json
        Print JSON.
    """
    from flows.status import print_latency, watched
    from pipelines.latency import latency as measure
    from pipelines.times import utc

    settings = watched(overrides_of(common))
    found = measure(
        settings.root,
        settings.product,
        utc(since) if since else None,
        utc(until) if until else None,
    )
    print(json_format.dumps(found.as_dict(), indent=2)) if json else print_latency(found)
