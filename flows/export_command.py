"""`squall export`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.options import Common, settings_of


def export(
    target: str,
    *,
    format: Literal["netcdf", "cog", "mlwp"] = "netcdf",
    init_time: str | None = None,
    revision: int | None = None,
    variable: Annotated[list[str] | None, Parameter(negative=())] = None,
    common: Common | None = None,
) -> None:
    """Write a published forecast, the newest by default, in a form that other programs read.

    Example: squall export newest.nc --product knmi

    Parameters
    ----------
    target
        The file, folder or URL to write. Nothing may be there.
    format
        netcdf: one CF file. cog: a folder of Cloud-optimised GeoTIFFs, a file for every
        variable, threshold and member, or one file .tif. mlwp: after the MLWP specification, as
        netCDF where the target ends in .nc, else as Zarr.
    init_time
        The forecast of this init_time, UTC.
    revision
        That revision of it; the newest by default.
    variable
        Only this variable; repeat it for more.
    """
    from pipelines.forecast_export import export_forecast
    from pipelines.times import utc

    settings = settings_of(common)
    exported = export_forecast(
        settings.root,
        settings.product,
        target,
        format,
        init_time=utc(init_time) if init_time else None,
        revision=revision,
        variables=variable or (),
        progress=True,
    )
    print(exported)
