"""The sources Squall reads: one file each, one line here."""

from pipelines.errors import UnknownNameError
from pipelines.sources.base import FrameFile, Source
from pipelines.sources.bom import Bom
from pipelines.sources.cf import Cf
from pipelines.sources.fmi_geotiff import FmiGeotiff
from pipelines.sources.fmi_pgm import FmiPgm
from pipelines.sources.knmi import Knmi
from pipelines.sources.meteoswiss import MeteoSwiss
from pipelines.sources.mrms import Mrms
from pipelines.sources.odim import Odim
from pipelines.sources.radolan import Radolan
from pipelines.sources.sevir import Sevir

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Bom(),
        Cf(),
        FmiGeotiff(),
        FmiPgm(),
        Knmi(),
        MeteoSwiss(),
        Mrms(),
        Odim(),
        Radolan(),
        Sevir(),
    )
}


def get_source(name: str) -> Source:
    """The source called `name`; an unknown one is an error that names the nearest."""
    if name not in SOURCES:
        raise UnknownNameError.of("source", name, SOURCES)
    return SOURCES[name]


__all__ = ["SOURCES", "FrameFile", "Source", "get_source"]
