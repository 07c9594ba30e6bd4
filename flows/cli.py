"""The `squall` command. Each command calls the flow that Prefect runs, with the same settings.

Bad input is one line on stderr (found, expected, remedy) and exit code 2.
"""

import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path

from cyclopts import App, CycloptsError

from flows.archive_commands import app as archive_app
from flows.export_command import export
from flows.forecast_commands import calibrate, prune
from flows.options import Common, overrides_of, settings_of
from flows.registry_commands import app as registry_app
from flows.replay_command import replay
from flows.training_commands import moving_mnist, train, tune
from flows.watching_commands import latency, status
from pipelines.errors import SquallError

HELP = """Precipitation nowcasting from radar archives: ingest, train, nowcast, verify.

The whole loop on a synthetic archive, in a few minutes, with nothing set up:

    squall demo

The same, piece by piece, on your own files:

    squall ingest /archive/knmi --source knmi --product knmi
    squall train --product knmi --end 2010-08-26T04:55
    squall nowcast --product knmi --since 2010-08-26T05:00
    squall verify --product knmi
    squall show --product knmi

Any setting: --set train.epochs=5, SQUALL_TRAIN__EPOCHS=5 or squall.toml; `squall doctor` lists
them with their values and origins.
"""

app = App(
    name="squall",
    help=HELP,
    help_format="markdown",
    version=lambda: version("squall"),
    version_flags=["--version"],
)
app.command(archive_app)
app.command(registry_app)
for command in (train, tune, moving_mnist, replay, export, calibrate, prune, status, latency):
    app.command(command)


@app.command
def demo(
    archive: str | None = None,
    *,
    source: str | None = None,
    train_frames: int = 60,
    folder: str = "demo",
    common: Common | None = None,
) -> None:
    """Run the whole loop: ingest, train, replay as if frames arrived one by one, verify.

    Example: squall demo /archive/knmi --source knmi

    Parameters
    ----------
    archive
        Folder or URL of radar files; a synthetic archive is built where none is named.
    source
        Format of those files: see `squall sources`.
    train_frames
        Train on so many frames, nowcast from the rest. (A synthetic archive: all but
        the last hour.)
    folder
        Where everything goes; an earlier demo's folder of the same product is replaced.
    """
    from flows import demo as main_job
    from flows.report import print_demo

    common = common or Common()
    if archive is not None and source is None:
        from pipelines.errors import UnknownNameError
        from pipelines.sources import SOURCES

        raise UnknownNameError(
            "no source for the archive",
            found="ARCHIVE without SOURCE",
            expected="one of " + ", ".join(SOURCES),
            remedy="add --source NAME (SOURCE=NAME for make)",
        )
    product = common.product or source or "synthetic"
    place = Path(folder) / product
    common = Common(str(place), product, common.set, common.verbose)
    defaults = main_job.SYNTHETIC if archive is None else main_job.REAL
    settings = settings_of(common, defaults, ingest={"source": source})
    main_job.prepare_folder(place)
    if archive is None:
        archive, train_frames = main_job.write_synthetic(place)
    print_demo(main_job.demo(settings, archive, train_frames, progress=True))


@app.command
def sources() -> None:
    """List the sources Squall reads, with format, timestep and licence."""
    from flows.report import print_sources
    from pipelines.sources import SOURCES

    print_sources(SOURCES.values())


@app.command
def models(*, frame: int = 256, past: int = 6, lead_times: int = 12, json: bool = False) -> None:
    """List networks and baselines: paper, parameters, and what a forecast costs.

    Example: squall models --frame 512 --lead-times 18

    Parameters
    ----------
    frame
        Pixels a side of the frames that costs are for.
    past
        Past frames.
    lead_times
        Forecast frames.
    json
        Print JSON: bytes and FLOPs.
    """
    from flows.report import print_json, print_models
    from models.catalogue import catalogue

    entries = catalogue(frame, past, lead_times)
    print_json(entries) if json else print_models(entries, past, lead_times)


@app.command
def ingest(
    location: str | None = None,
    *,
    source: str | None = None,
    timestep: str | None = None,
    start: str | None = None,
    end: str | None = None,
    common: Common | None = None,
) -> None:
    """Take a provider's files into the archive. Run it as often as you like.

    Example: squall ingest /archive/knmi --source knmi --product knmi

    Parameters
    ----------
    location
        Folder or URL (s3://…) of the files.
    source
        Their format: see `squall sources`.
    timestep
        Spacing of frames, such as 5min, where the files do not tell.
    start
        Only frames at or after this time, UTC.
    end
        Only frames at or before this time, UTC.
    """
    from flows.ingest import ingest as flow
    from pipelines.storage import display
    from pipelines.times import utc

    section = {"location": location, "source": source, "timestep": timestep}
    settings = settings_of(common, ingest=section)
    report = flow(
        root=settings.root,
        product=settings.product,
        ingest=settings.ingest,
        start=utc(start).to_pydatetime() if start else None,
        end=utc(end).to_pydatetime() if end else None,
        progress=True,
    )
    print(report)
    for error in report.errors:
        print(f"  {error}")
    print(f"archive: {display(report.archive_url)}")


@app.command
def nowcast(
    location: str | None = None,
    *,
    source: str | None = None,
    model: str | None = None,
    lead_time: str | None = None,
    since: str | None = None,
    until: str | None = None,
    common: Common | None = None,
) -> None:
    """Take in new files, if a location is set, and publish a forecast for every new frame.

    Example: squall nowcast --product knmi --since 2010-08-26T05:00

    Parameters
    ----------
    location
        Folder or URL where new files appear.
    source
        Their format: see `squall sources`.
    model
        Model name, name/version, persistence or advection.
    lead_time
        How far ahead, such as 60min.
    since
        Instead, forecast from every frame at or after this time, UTC.
    until
        Instead, forecast from every frame at or before this time, UTC.
    """
    from flows.nowcast import nowcast as flow
    from pipelines.times import utc

    settings = settings_of(
        common,
        ingest={"location": location, "source": source},
        nowcast={"model": model, "lead_time": lead_time},
    )
    report = flow(
        root=settings.root,
        product=settings.product,
        ingest=settings.ingest,
        nowcast=settings.nowcast,
        shadow=settings.shadow,
        since=utc(since).to_pydatetime() if since else None,
        until=utc(until).to_pydatetime() if until else None,
        progress=True,
    )
    if report.skipped and not report.published:
        raise next(reversed(report.skipped.values()))
    print(report)


@app.command
def verify(
    *, partial: bool | None = None, report: str | None = None, common: Common | None = None
) -> None:
    """Score the forecasts that were served against what was observed, beside the baselines.

    Each once the frame of its last lead time has come, and again only if something changed.

    Example: squall verify --product knmi

    Parameters
    ----------
    partial
        Score forecasts of which only some lead times have come as well.
    report
        Write a page with all scores, intervals, maps and latency there: report.html.
    """
    from flows.report import print_verification
    from flows.verify import verify as flow

    settings = settings_of(common, verify={"partial": partial})
    verified = flow(
        root=settings.root, product=settings.product, verify=settings.verify, progress=True
    )
    print_verification(verified)
    if report is not None:
        from flows.verification_report import verification_page
        from pipelines.storage import display, normalise, write_bytes

        url = normalise(report)
        write_bytes(url, verification_page(settings, verified).encode())
        print(f"report: {display(url)}")


@app.command
def show(
    *,
    time: str | None = None,
    init_time: str | None = None,
    output: str | None = None,
    common: Common | None = None,
) -> None:
    """Make a picture of a forecast (the newest, by default) or of an archive frame.

    Example: squall show --product knmi --time 2010-08-26T05:00

    Parameters
    ----------
    time
        The archive frame at this time, UTC.
    init_time
        The forecast of this init_time, UTC.
    output
        Where the PNG goes; under the root by default.
    """
    from flows.show import picture

    settings = settings_of(common)
    print(picture(settings, time=time, init_time=init_time, output=output))


@app.command
def doctor(*, common: Common | None = None) -> int:
    """Say what is installed, reachable and configured, and where each setting came from.

    Example: squall doctor --product knmi
    """
    from flows.doctor import examine
    from flows.report import print_checks, print_settings
    from flows.settings import explain, load_settings

    overrides = overrides_of(common)
    settings = load_settings(None, **overrides)
    print_settings(explain(settings, overrides))
    checks = list(examine(settings))
    print_checks(checks)
    return 1 if any(check.state == "fail" for check in checks) else 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command; the exit code is 0, 1 (a check failed), 2 (bad input), 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _quiet_environment(verbose="--verbose" in arguments)
    try:
        result = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        sys.exit(2)
    except SquallError as error:
        print(f"squall: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(result if isinstance(result, int) else 0)


def _quiet_environment(*, verbose: bool) -> None:
    """Embedded defaults for people: no telemetry, no logs unless asked for, time to start."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if verbose else logging.CRITICAL)
    logging.basicConfig(handlers=[handler], format="%(levelname)s %(name)s: %(message)s")


if __name__ == "__main__":
    main()
