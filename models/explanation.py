"""Why there is no forecast of some timesteps of a replay: frames that did not come, or not in time.

The reasons are found in files, manifest and rounds, not in what the service said of itself; so a
forecast that should be there and is not shows up as `UNEXPLAINED`.
"""

import bisect
import datetime as dt
import itertools
from collections.abc import Sequence

import pandas as pd

from models.baselines import Advection
from models.nowcasting import FALLBACK_MISSING
from models.replay import Arrivals, Round
from pipelines.archive import Archive, archive_url
from pipelines.forecasts import published_init_times
from pipelines.manifest import read_manifest
from pipelines.times import format_duration, utc

UNEXPLAINED = "NOT EXPLAINED"


def explain(
    root: str,
    product: str,
    init_times: pd.DatetimeIndex,
    arrivals: Arrivals,
    rounds: Sequence[Round],
    catch_up: dt.timedelta,
) -> dict[pd.Timestamp, str]:
    """The reason for each init_time without a forecast at `root`, by init_time.

    `catch_up` : see `models.nowcasting.NowcastSettings`.
    """
    archive = Archive(archive_url(root, product))
    last = {one.init_time: one.state for done in rounds for one in done.outcomes}
    lost = {file.valid_time for file in arrivals.lost}
    sent = {file.valid_time for file in arrivals.files}
    known = _known_from(archive, init_times)
    newest = _newest_frames(rounds, known)
    reasons = {}
    for time in init_times.difference(published_init_times(root, product)):
        if time in lost:
            reasons[time] = "the frame never came"
        elif time not in sent:
            reasons[time] = "there is no file of that time"
        elif time not in known:
            reasons[time] = "the frame could not be read"
        elif last.get(time) == "refused":
            reasons[time] = "too few past frames"
        else:
            reasons[time] = _too_late(time, known, newest, archive.timestep, catch_up)
    return reasons


def _too_late(
    time: pd.Timestamp,
    known: dict[pd.Timestamp, pd.Timestamp],
    newest: Sequence[tuple[Round, pd.Timestamp]],
    timestep: pd.Timedelta,
    catch_up: dt.timedelta,
) -> str:
    """Why a frame that could be read has no forecast. `newest` : see `_newest_frames`."""
    own = [time - k * timestep for k in range(1, Advection.past_frames)]
    enough = Advection.past_frames - 1 - FALLBACK_MISSING
    others = sorted(known[one] for one in own if one in known)
    if len(others) < enough:
        return "too few past frames"
    possible_from = max([known[time], *others[:enough]])
    chances = [
        done
        for done, newest_frame in newest
        if done.began >= possible_from and newest_frame - time < pd.Timedelta(catch_up)
    ]
    if not chances:
        return f"the frame came after {format_duration(catch_up)} of newer ones"
    if any(done.took >= timestep / 2 for done in chances):
        return "the rounds had no time for it"
    return UNEXPLAINED


def _newest_frames(
    rounds: Sequence[Round], known: dict[pd.Timestamp, pd.Timestamp]
) -> list[tuple[Round, pd.Timestamp]]:
    """The rounds that could work, each with the newest frame that was known when it began."""
    came = sorted((received, time) for time, received in known.items())
    received = [moment for moment, _ in came]
    newest = list(itertools.accumulate((time for _, time in came), max))
    counts = [(done, bisect.bisect_right(received, done.began)) for done in rounds]
    return [(done, newest[n - 1]) for done, n in counts if n and done.trouble is None]


def _known_from(archive: Archive, init_times: pd.DatetimeIndex) -> dict[pd.Timestamp, pd.Timestamp]:
    """When each frame became known: when the first file came from which it could be read."""
    first = init_times[0] - Advection.past_frames * archive.timestep
    days = pd.date_range(first.floor("D"), init_times[-1].floor("D"), freq="D")
    known: dict[pd.Timestamp, pd.Timestamp] = {}
    for row in read_manifest(archive.url, days.strftime("%Y-%m-%d")):
        if row.outcome != "bad":
            time, received = utc(row.valid_time), utc(row.received)
            known[time] = min(received, known.get(time, received))
    return known
