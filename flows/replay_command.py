"""`squall replay`."""

import datetime as dt
import math
from typing import Annotated, Any

from cyclopts import Parameter

from flows.options import Common, settings_of
from pipelines.errors import SquallError

Flag = Annotated[bool, Parameter(negative=())]
LATE, OUTAGE = "10%:7min", "2024-06-01T03:00+40min"


def replay(
    location: str | None = None,
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    source: str | None = None,
    model: str | None = None,
    lead_time: str | None = None,
    delay: str | None = None,
    late: str | None = None,
    missing: str | None = None,
    outage: Annotated[list[str] | None, Parameter(negative=())] = None,
    seed: int = 0,
    speed: str = "max",
    shadows: Flag = False,
    output: str | None = None,
    common: Common | None = None,
) -> None:
    """Put a past period through the nowcast service as if its frames arrived now.

    Forecasts are made from what was there at the time; late frames supersede what they should have
    been in. Says what was published, what was not and why, how long it took and how good it was.

    Example: squall replay /archive/knmi --source knmi --product knmi --late 10%:7min

    Parameters
    ----------
    location
        Folder or URL of the files.
    from_
        The first valid time, UTC; the first file's by default.
    to
        The last valid time, UTC; the last file's by default.
    source
        Format of the files: see `squall sources`.
    model
        Model name, name/version or a baseline; the product's champion by default.
    lead_time
        How far ahead, such as 60min.
    delay
        How long after its valid time a frame arrives; 1min by default.
    late
        How many frames come late, and how much later: 10%:7min.
    missing
        How many frames never come: 2%.
    outage
        Nothing arrives from a time on, UTC, for so long: 2024-06-01T03:00+40min; repeat it for
        more.
    seed
        Which frames are late and which are missing.
    speed
        So many times as fast as it was; max: as fast as this machine can.
    shadows
        Have baselines and challengers forecast in shadow too, as the settings shadow.… say.
    output
        Root of the replay's own archive and forecasts; a new folder of the root by default.
    """
    from flows.replay import replay as flow
    from flows.report import print_verification
    from pipelines.times import utc

    settings = settings_of(
        common,
        ingest={"location": location, "source": source},
        nowcast={"model": model, "lead_time": lead_time},
    )
    report = flow(
        start=utc(from_).to_pydatetime() if from_ else None,
        end=utc(to).to_pydatetime() if to else None,
        root=settings.root,
        product=settings.product,
        ingest=settings.ingest,
        nowcast=settings.nowcast,
        shadow=settings.shadow,
        verify=settings.verify,
        replay=parse(delay, late, missing, outage or [], seed, shadows=shadows),
        speed=parse_speed(speed),
        output=output,
        progress=True,
    )
    print(report)
    if report.verification is not None:
        print_verification(report.verification)


def parse(
    delay: str | None,
    late: str | None,
    missing: str | None,
    outages: list[str],
    seed: int,
    *,
    shadows: bool = False,
) -> Any:
    """The command's words as `models.replay.ReplaySettings`.

    Raises `SquallError` for words that are none.
    """
    from models.replay import Outage, ReplaySettings
    from pipelines.times import utc

    given: dict[str, Any] = {"seed": seed, "shadows": shadows}
    if delay is not None:
        given["delay"] = _duration(delay, "--delay", "1min")
    if missing is not None:
        given["missing"] = _share(missing, "--missing", "2%")
    if late is not None:
        share, colon, by = late.partition(":")
        given["late"] = _share(share, "--late", LATE)
        if colon:
            given["late_by"] = _duration(by, "--late", LATE)
    given["outages"] = tuple(
        Outage(begin=utc(begin), length=_duration(length, "--outage", OUTAGE))
        for begin, length in map(_outage, outages)
    )
    return ReplaySettings(**given)


def parse_speed(text: str) -> float | None:
    """How many times as fast as it was; None for as fast as possible."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise _error("--speed", text, "max or a number above 0, such as 60")
    return speed


def _outage(text: str) -> tuple[str, str]:
    """When it begins and how long it is: on both sides of the last +."""
    begin, _, length = text.rpartition("+")
    if not begin:
        raise _error("--outage", text, f"a UTC time and a duration, as in {OUTAGE}")
    return begin, length


def _share(text: str, option: str, example: str) -> float:
    """``10%`` or ``0.1`` as a number from 0 to 1."""
    percent = text.strip().endswith("%")
    try:
        share = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise _error(option, text, f"a share of the frames from 0% to 100%, as in {example}")
    return share


def _duration(text: str, option: str, example: str) -> dt.timedelta:
    from pipelines.times import parse_duration

    try:
        duration = parse_duration(text.strip())
    except ValueError:
        duration = None
    if not isinstance(duration, dt.timedelta) or duration < dt.timedelta(0):
        raise _error(option, text, f"a duration such as 5min or 1h, as in {example}")
    return duration


def _error(option: str, found: str, expected: str) -> SquallError:
    return SquallError(
        f"{option} cannot be read",
        found=repr(found),
        expected=expected,
        remedy="write it so; `squall replay --help` says what each option takes",
    )
