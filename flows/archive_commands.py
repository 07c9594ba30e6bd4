"""`squall archive`: info, validate, compact, export."""

from typing import Annotated

from cyclopts import App, Parameter

from flows.options import Common, settings_of

app = App(name="archive", help="Look at, check, compact and export an archive.")
Flag = Annotated[bool, Parameter(negative=())]


@app.command
def info(*, common: Common | None = None) -> None:
    """What the archive of a product holds: axis, statuses, files, sizes, frames that stand out.

    Example: squall archive info --product knmi
    """
    from flows.report import print_archive
    from pipelines.archive import archive_url
    from pipelines.info import summarise

    settings = settings_of(common)
    url = archive_url(settings.root, settings.product)
    print_archive(summarise(url, settings.ingest.quality))


@app.command
def validate(*, repair: Flag = False, common: Common | None = None) -> int:
    """Check every frame against the manifest: damaged, mixed up, or of unknown origin.

    Exit code 1 where something is wrong and was not repaired. Example:
    squall archive validate --product knmi

    Parameters
    ----------
    repair
        Set slots with a problem to missing; the next ingest reads their files again.
    """
    from flows.archive import validate as flow

    settings = settings_of(common)
    report = flow(
        root=settings.root,
        product=settings.product,
        ingest=settings.ingest,
        repair=repair,
        progress=True,
    )
    print(report)
    return 0 if report.ok or repair else 1


@app.command
def compact(
    *,
    drop_before: str | None = None,
    keep_days: float | None = None,
    common: Common | None = None,
) -> None:
    """Copy what is new into the training layout and verify it; drop old live frames if asked.

    Example: squall archive compact --product knmi --keep-days 30

    Parameters
    ----------
    drop_before
        Then drop live frames before this time, UTC.
    keep_days
        The same, counted back from now.
    """
    from flows.archive import compact as flow
    from pipelines.times import utc

    settings = settings_of(common)
    report = flow(
        root=settings.root,
        product=settings.product,
        ingest=settings.ingest,
        drop_before=utc(drop_before).to_pydatetime() if drop_before else None,
        keep_days=keep_days,
        progress=True,
    )
    print(report)


@app.command
def export(
    target: str,
    *,
    mlcast: Flag = False,
    creator: str | None = None,
    identifier: str | None = None,
    license: str | None = None,
    created_with: str | None = None,
    start: str | None = None,
    end: str | None = None,
    common: Common | None = None,
) -> None:
    """Copy frames to a netCDF file, or with --mlcast to an MLCast dataset (Zarr).

    Example: squall archive export night.nc --product knmi --start 2010-08-26T00:00

    Parameters
    ----------
    target
        The file, or the folder or URL of the dataset. Nothing may be there.
    mlcast
        After the MLCast specification; needs --creator and --identifier.
    creator
        Who publishes the dataset: "Name <email>".
    identifier
        COUNTRY-ENTITY-VARIABLE, such as NL-KNMI-rainfall_flux.
    license
        SPDX name of the licence, where the source's does not say one.
    created_with
        Address of the code that made it.
    start
        Only frames at or after this time, UTC.
    end
        Only frames at or before this time, UTC.
    """
    from pipelines.archive import archive_url
    from pipelines.errors import SquallError
    from pipelines.export import export_mlcast, export_netcdf
    from pipelines.storage import display
    from pipelines.times import utc

    settings = settings_of(common)
    url = archive_url(settings.root, settings.product)
    period = {"start": utc(start) if start else None, "end": utc(end) if end else None}
    if not mlcast:
        times = export_netcdf(url, target, progress=True, **period)
        print(f"{len(times)} frames in {target}")
        return
    if creator is None or identifier is None:
        raise SquallError(
            "an MLCast dataset needs a publisher",
            found="no --creator" if creator is None else "no --identifier",
            expected='--creator "Name <email>" and --identifier COUNTRY-ENTITY-VARIABLE',
            remedy='add them, such as --creator "Ann <ann@example.org>" '
            "--identifier NL-KNMI-rainfall_flux",
        )
    exported = export_mlcast(
        url,
        target,
        creator=creator,
        identifier=identifier,
        license=license,
        created_with=created_with,
        workers=settings.ingest.workers,
        progress=True,
        **period,
    )
    print(f"{exported}\ndataset: {display(exported.url)}")
