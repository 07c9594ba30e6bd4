"""`squall prune`: old forecasts into a store a day, very old ones away."""

from flows.options import Common, settings_of


def prune(
    *, compact_after: str | None = None, keep: str | None = None, common: Common | None = None
) -> None:
    """Put old forecasts into a store a day; remove those older than --keep, if asked.

    They read as before, with `open_forecast`, `open_forecasts` or stock xarray. Example:
    squall prune --product knmi --compact-after 7d --keep 365d

    Parameters
    ----------
    compact_after: Put a day's forecasts into one store when all are older than this.
    keep: Then remove a day's forecasts, for good, when all are older than this.
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
