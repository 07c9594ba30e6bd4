"""GRIB2 messages on latitude-longitude grids: their headers, and their values by a library.

The headers are read here, so that they say the same whichever library unpacks the values, and
because neither library says all of it: gribberish takes no message to be truncated that lacks its
end, and reads an ellipsoid as a sphere.

Source of the layout: WMO Manual on Codes, volume I.2, FM 92 GRIB edition 2 (sections 0, 1, 3–6;
grid definition template 3.0; code table 3.2).
"""

import importlib
import importlib.metadata
import importlib.util
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.errors import FrameError, SquallError
from pipelines.grid import Grid
from pipelines.sources.content import check_size, decompressed

LIBRARIES = ("gribberish", "eccodes")
"""What can unpack values, the preferred one first."""
EARTHS = {
    0: "+R=6367470",
    2: "+a=6378160 +b=6356775",
    4: "+ellps=GRS80",
    5: "+datum=WGS84",
    6: "+R=6371229",
}
"""Code table 3.2, shape of the reference system, in PROJ's words."""
MISSING_U32 = 0xFFFFFFFF
NO_BITMAP = 255
NOT_OBSERVED = -1.0


@dataclass(frozen=True)
class Message:
    """One message's headers.

    Parameters
    ----------
    content : the whole file; the message is its bytes from `start` to `end`
    parameter : discipline, category and number
    reference_time : UTC; of an observation the time at which it holds
    sections : bodies of sections 1 to 6 by number, without length and number
    """

    content: bytes
    start: int
    end: int
    parameter: tuple[int, int, int]
    reference_time: pd.Timestamp
    sections: dict[int, bytes]

    def grid(self) -> Grid:
        """The message's grid, longitudes from −180 to 180.

        Computed in the message's own whole units up to the last division: 230.005° in millionths
        is exact. Raises `FrameError` where it is no latitude-longitude grid with rows from north
        to south and columns from west to east.
        """
        points, template = struct.unpack(">xI2xH", self.sections[3][:9])
        if template != 0:
            raise _unusable("not a latitude-longitude grid", f"grid template 3.{template}", "3.0")
        earth, columns, rows, basic, parts, north, west, flags, dx, dy, scan = struct.unpack(
            ">B15xIIIIIIB8xIIB", self.sections[3][9:67]
        )
        (packed,) = struct.unpack(">I", self.sections[5][:4])
        if rows * columns != points or (packed != points and self.sections[6][0] == NO_BITMAP):
            raise unreadable(self.content, f"{packed} values for {rows}×{columns} pixels")
        per_degree = parts / basic if basic not in (0, MISSING_U32) else 1e6
        if not (dx and dy and per_degree):
            raise unreadable(self.content, f"pixels of {dx}×{dy} units, {per_degree} in a degree")
        if earth not in EARTHS:
            raise _unusable("unknown shape of the earth", f"code {earth}", f"one of {[*EARTHS]}")
        if scan != 0 or flags & 0x30 != 0x30:
            raise _unusable(
                "rows or columns in another order",
                f"scanning mode {scan}, flags {flags}",
                "rows north to south, columns west to east, both increments given",
            )
        half_column = (2 * west - dx) % round(720 * per_degree)  # outer edge, in half units
        if half_column >= 360 * per_degree:
            half_column -= round(720 * per_degree)
        return Grid.from_corner(
            f"+proj=longlat {EARTHS[earth]} +no_defs +type=crs",
            west=half_column / (2 * per_degree),
            north=(2 * _signed(north) + dy) / (2 * per_degree),
            pixel=(dx / per_degree, dy / per_degree),
            shape=(rows, columns),
        )

    def values(self) -> NDArray[np.float64]:
        """The values in row order, flat; negative or NaN where the message's bitmap leaves out.

        Raises `FrameError` where they cannot be unpacked, and `SquallError` where no library that
        could is installed.
        """
        library = installed_library()
        try:
            if library == "gribberish":
                return self._values_by_gribberish()
            if library == "eccodes":
                return self._values_by_eccodes()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # gribberish panics at broken data: an exception derived from BaseException alone.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise unreadable(self.content, f"{type(error).__name__}: {error}") from error
        raise SquallError(
            "GRIB files need a library that is not installed",
            found=f"none of {', '.join(LIBRARIES)}",
            expected=f"{LIBRARIES[0]} (or {LIBRARIES[1]})",
            remedy="pip install squall[formats]",
        )

    def _values_by_gribberish(self) -> NDArray[np.float64]:
        gribberish = importlib.import_module("gribberish")
        return np.asarray(gribberish.parse_grib_array(self.content, self.start))

    def _values_by_eccodes(self) -> NDArray[np.float64]:
        importlib.import_module(
            "sqlite3"
        )  # first: eccodes brings an old SQLite, and it would be all's
        eccodes = importlib.import_module("eccodes")
        handle = eccodes.codes_new_from_message(self.content[self.start : self.end])
        try:
            eccodes.codes_set(handle, "missingValue", NOT_OBSERVED)
            return np.asarray(eccodes.codes_get_values(handle))
        finally:
            eccodes.codes_release(handle)


def messages(content: bytes) -> Iterator[Message]:
    """The messages of a GRIB2 file, plain or gzipped. Raises `FrameError` at anything else."""
    if not content:
        raise FrameError(
            "empty file", found="0 bytes", expected="a GRIB2 file", remedy="fetch the file again"
        )
    if content.startswith(b"\x1f\x8b"):
        try:
            content = decompressed(content)
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(content, f"gzip: {error}") from error
    start = 0
    while start < len(content):
        message = _message(content, start)
        yield message
        start = message.end


def installed_library() -> str | None:
    """The library that unpacks values here, None where there is none."""
    return next((name for name in LIBRARIES if importlib.util.find_spec(name)), None)


def decoder(name: str, version: int) -> str:
    """Name and version of the reading code and of its library, for the manifest."""
    library = installed_library()
    return f"{name}/{version} " + (
        f"{library}/{importlib.metadata.version(library)}" if library else "no-grib-library"
    )


def unreadable(content: bytes, reason: str) -> FrameError:
    """The error for a file that is no GRIB2 or a broken one."""
    return FrameError(
        "unreadable GRIB2 file",
        found=f"{len(content)} bytes, {reason}",
        expected="a complete file of this source",
        remedy="fetch the file again; it may be truncated or of another source",
    )


def _message(content: bytes, start: int) -> Message:
    if content[start : start + 4] != b"GRIB":
        raise unreadable(content, f"no message at byte {start}")
    try:
        discipline, edition, length = struct.unpack(">2xBBQ", content[start + 4 : start + 16])
        end = start + length
        if edition != 2 or content[end - 4 : end] != b"7777":
            raise ValueError(f"edition {edition}, {length} bytes without an end")
        sections = _sections(content, start + 16, end - 4)
        year, *clock = struct.unpack(">7xHBBBBB", sections[1][:14])
        category, number = struct.unpack(">4xBB", sections[4][:6])
        time = pd.Timestamp(year, *clock).as_unit("ns")
        sections[3][66], sections[5][3], sections[6][0]  # as long as they are read
    except (struct.error, LookupError, ValueError) as error:
        raise unreadable(content, f"{type(error).__name__}: {error}") from error
    check_size(*struct.unpack(">xI", sections[3][:5]))  # pixels of the grid
    check_size(*struct.unpack(">I", sections[5][:4]))  # values that are packed
    return Message(content, start, end, (discipline, category, number), time, sections)


def _sections(content: bytes, start: int, end: int) -> dict[int, bytes]:
    """Bodies of the first sections 1 to 6; 7 holds the values.

    All are walked to the end: libraries that go by their lengths would not come out of some.
    """
    sections: dict[int, bytes] = {}
    while start < end:
        length, section = struct.unpack(">IB", content[start : start + 5])
        if length < 5 or start + length > end:
            raise ValueError(f"section {section} of {length} bytes")
        if section < 7:
            sections.setdefault(section, content[start + 5 : start + length])
        start += length
    return sections


def _signed(value: int) -> int:
    """GRIB keeps a sign in the first bit, not as a two's complement."""
    return -(value & 0x7FFFFFFF) if value & 0x80000000 else value


def _unusable(problem: str, found: str, expected: str) -> FrameError:
    return FrameError(
        problem, found=found, expected=expected, remedy="use a product on a regular grid"
    )
