"""`squall prune` and `squall calibrate`."""

from typing import Annotated

from cyclopts import Parameter

from flows.options import Common, settings_of


def prune(
    *, compact_after: str | None = None, keep: str | None = None, common: Common | None = None
) -> None:
    """Put old forecasts into a store a day; remove those older than --keep, if asked.

    They read as before, with `open_forecast`, `open_forecasts` or stock xarray. Example:
    squall prune --product knmi --compact-after 7d --keep 365d

    Parameters
    ----------
    compact_after
        Put a day's forecasts into one store when all are older than this.
    keep
        Then remove a day's forecasts, for good, when all are older than this.
    """
    from flows.prune import prune as flow

    settings = settings_of(common, retention={"compact_after": compact_after, "keep": keep})
    report = flow(
        root=settings.root,
        product=settings.product,
        retention=settings.retention,
        progress=True,
    )
    print(report)


def calibrate(
    *,
    force: Annotated[bool, Parameter(negative=())] = False,
    list_: Annotated[bool, Parameter("--list", negative=())] = False,
    use: str | None = None,
    common: Common | None = None,
) -> None:
    """Correct exceedance probabilities by how often it rained when they were given.

    Fitted on the ensembles that `squall verify` has scored; nowcasts use it at the thresholds where
    it is proven to help on events that the fit has not seen. Example: squall calibrate --product
    knmi

    Parameters
    ----------
    force
        Use it at every threshold, though it is not proven to help.
    list_
        Only show the calibrations that there are.
    use
        Fit none: use this version from now on, or none.
    """
    from flows.calibrate import calibrate as flow
    from flows.calibrate import calibration_table, versions_table
    from flows.report import console, titled
    from pipelines.calibration_store import find_version, make_current, use_none

    def show(title: str, rows: list[dict[str, str]]) -> None:
        if rows:
            table = titled(title, rows[0])
            table.columns[0].no_wrap = True  # a version is there to be copied
            for row in rows:
                table.add_row(*row.values())
            console.print(table)

    settings = settings_of(common)
    place = settings.root, settings.product
    if use == "none":
        use_none(*place)
    elif use is not None:
        make_current(*place, find_version(*place, use), force=force)
    if use is not None or list_:
        show(f"calibrations of {settings.product}", rows := versions_table(*place))
        print(f"{len(rows)} calibrations of {settings.product}")
        return
    calibration = flow(*place, calibrate=settings.calibrate, force=force)
    title = f"{calibration.forecaster}, events that the fit had not seen"
    show(title, calibration_table(calibration))
    print(f"calibration: {calibration.version}, of {calibration.forecasts} forecasts")
