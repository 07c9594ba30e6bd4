"""Forecasts in shadow: challengers, baselines and a champion that does not serve, compared fairly.

When the forecast of a frame is published, the others forecast from the same frames, and publish
where no reader looks (`pipelines.shadows`); verification scores them beside what was served. That
comes after what readers wait for, and ends before the next frame is due; who has waited longest
comes first, so that all get their turn. One that fails has no forecast: nobody forecasts in its
name. Every forecaster has a process of its own here, the champion too: what hangs or dies in shadow
takes nothing along that serves.
"""

import datetime as dt
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from types import TracebackType

import pandas as pd
import xarray as xr
from pydantic import Field

from models.baselines import BASELINES
from models.evidence import challengers
from models.nowcasting import IN_PROCESS, Nowcaster, told
from models.verification import frames_had
from pipelines.archive import Archive
from pipelines.errors import ExistsError, SquallError
from pipelines.forecasts import FIRST, Published, is_published, published
from pipelines.once import LostClaimError
from pipelines.products import ProductSettings
from pipelines.progress import bar
from pipelines.publishing import publish
from pipelines.section import Section
from pipelines.shadows import read_turns, shadow_root, take_turn
from pipelines.times import Duration, now, time_text, utc
from pipelines.window import window

log = logging.getLogger(__name__)

MOST_CHILDREN = 2
"""Forecasters in processes of their own that are kept: each needs the memory of a network."""
MARGIN = 0.1
"""So much of a timestep before the next frame is due, no shadow forecasts any more."""
NOTHING = ProductSettings(accumulations=(), thresholds_mm_h=())
UNHURRIED = dt.timedelta(minutes=10)
"""For one forecast of a past period, loading included."""

Pair = tuple[pd.Timestamp, str]
"""An init_time and a forecaster."""


class ShadowSettings(Section):
    """Who forecasts in shadow, and how long they may take."""

    enabled: bool = Field(True, description="Whether anybody does.")
    baselines: tuple[str, ...] = Field(
        ("persistence", "advection", "sprog"), description="Baselines that forecast every frame."
    )
    challengers: tuple[str, ...] | None = Field(
        None,
        description="Models, as name/version; by default every version that is newer than the "
        "champion of the model that serves.",
    )
    most_challengers: int = Field(
        3, ge=0, description="Of those newer than the champion, the newest so many."
    )
    time_budget: Duration | None = Field(
        None,
        description="How long they may take, all together, after each new frame; by default, and "
        "at most, until shortly before the next frame is due.",
    )


class Shadows:
    """Makes shadow forecasts. A context manager: at its end the forecasters' processes end.

    Parameters
    ----------
    root : where the models are
    champion : what serves; where another had to serve in its stead it is among the shadows

    Attributes
    ----------
    done : how many shadow forecasts were made and how many failed
    waiting : those that there was no time for, so far
    """

    def __init__(self, root: str, champion: Nowcaster, settings: ShadowSettings) -> None:
        self.settings, self.champion = settings, champion
        self.done: Counter[str] = Counter()
        self.waiting: set[Pair] = set()
        self._root = root
        self._forecasters: OrderedDict[str, Nowcaster] = OrderedDict()
        self._settled: set[Pair] = set()
        self._lost: set[str] = set()
        self._newest: pd.Timestamp | None = None
        self._since, self._spent_s = 0.0, 0.0

    def __enter__(self) -> "Shadows":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the forecasters' processes."""
        while self._forecasters:
            self._forecasters.popitem()[1].close()

    def counts(self) -> dict[str, int]:
        """How many were made, failed or had no time, for a report."""
        return dict(self.done) | ({"out of time": len(self.waiting)} if self.waiting else {})

    def follow(
        self,
        root: str,
        product: str,
        archive: Archive,
        start: pd.Timestamp,
        *,
        began: float,
        until: float = math.inf,
    ) -> None:
        """Make what is lacking beside the forecasts served from `start` on, the newest first.

        While there is time: see `_deadline`. Raises nothing, whatever goes wrong.

        Parameters
        ----------
        began, until : when the round began, and when it has to be over; of `time.monotonic`
        """
        if not self.settings.enabled:
            return
        entered = time.monotonic()
        try:
            served = _served(root, product, start)
            if served:
                deadline = min(self._deadline(served, archive.timestep, began), until)
                self._hurry(root, product, archive, served, deadline)
        except Exception as error:
            log.warning("no shadow forecasts: %s", told(error))
        self._spent_s += time.monotonic() - entered

    def follow_period(
        self,
        root: str,
        product: str,
        archive: Archive,
        init_times: Iterable[pd.Timestamp],
        *,
        progress: bool = False,
    ) -> None:
        """Make all that is lacking beside what was served of some init_times.

        A forecaster at a time, so that each is loaded once. One that is lost is not asked again.
        """
        times = pd.DatetimeIndex(list(init_times))
        if not self.settings.enabled or len(times) == 0:
            return
        served = [one for one in _served(root, product, times.min()) if one.init_time in times]
        self._lost.clear()
        lacking = {
            name: [one for one in served[::-1] if self._lacks(root, product, name, one)]
            for name in self._names(product)
        }
        total = sum(map(len, lacking.values()))
        with bar(total, "shadows", "forecast", shown=progress) as shown:
            for name, there in lacking.items():
                for one in there:
                    if name not in self._lost:
                        self._make(root, product, archive, name, one, UNHURRIED)
                    shown.update()

    def _deadline(self, served: list[Published], timestep: pd.Timedelta, began: float) -> float:
        """When to stop, of `time.monotonic`: the budget of the newest frame is spent, over however
        many rounds, or the next frame is about to come.

        That is due a timestep after the newest, plus the shortest time that those served of late
        took to arrive. One that is overdue by a timestep is not waited for any more: the past is
        being forecast, or the feed is down.
        """
        newest = served[0].init_time
        if newest != self._newest:
            self._newest, self._since, self._spent_s = newest, began, 0.0
            self._lost.clear()
        moment = time.monotonic()
        margin = MARGIN * timestep
        deadline = self._since + (timestep - margin).total_seconds()
        if self.settings.time_budget is not None:
            left_s = self.settings.time_budget.total_seconds() - self._spent_s
            deadline = min(deadline, moment + left_s)
        received = [(one, one.attributes.get("frame_received_time")) for one in served]
        delays = [utc(text) - one.init_time for one, text in received if text]
        if delays:
            left = newest + timestep + max(min(delays), pd.Timedelta(0)) - now("ms")
            if left > -timestep:
                deadline = min(deadline, moment + (left - margin).total_seconds())
        return deadline

    def _hurry(
        self,
        root: str,
        product: str,
        archive: Archive,
        served: list[Published],
        deadline: float,
    ) -> None:
        """For the newest init_time all forecasters, then for the one before; those that have waited
        longest first."""
        names = self._names(product)
        turns = read_turns(root, product)
        names.sort(key=lambda name: turns.get(name, ""))
        waiting: set[Pair] = set()
        for one in served:
            for name in names:
                if name in self._lost or not self._lacks(root, product, name, one):
                    continue
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    waiting.add((one.init_time, name))
                    continue
                take_turn(root, product, name, names)
                self._make(root, product, archive, name, one, dt.timedelta(seconds=left_s))
        if waiting and waiting != self.waiting:
            log.warning("no time for %d shadow forecasts: %s", len(waiting), _listed(waiting))
        self.waiting = waiting

    def _names(self, product: str) -> list[str]:
        """Who is to forecast in shadow, the cheap ones first."""
        champion = self.champion.requested
        name = product if champion in BASELINES else champion.partition("/")[0]
        chosen = self.settings.challengers
        if chosen is None:
            chosen = tuple(self._newer(name)[: self.settings.most_challengers])
        there = (champion,) if champion in BASELINES or "/" in champion else ()
        return list(dict.fromkeys([*self.settings.baselines, *there, *chosen]))

    def _newer(self, name: str) -> list[str]:
        try:
            return challengers(self._root, name)
        except SquallError as error:
            log.warning("no challengers of %s: %s", name, error)
            return []

    def _lacks(self, root: str, product: str, name: str, served: Published) -> bool:
        """Whether it still has to forecast: it did not serve, has none there and did not fail."""
        pair = served.init_time, name
        if pair not in self._settled and (
            served.attributes.get("model") == name
            or is_published(shadow_root(root, name), product, served.init_time)
        ):
            self._settled.add(pair)
        return pair not in self._settled

    def _make(
        self,
        root: str,
        product: str,
        archive: Archive,
        name: str,
        served: Published,
        budget: dt.timedelta,
    ) -> None:
        """One shadow forecast. Where its forecaster is lost it is not asked again for now."""
        self._settled.add((served.init_time, name))
        forecaster = None
        try:
            forecaster = self._forecaster(name)
            forecast = _alike(forecaster, archive, served, budget)
            publish(shadow_root(root, name), product, forecast, once=True)
            self.done["made"] += 1
            log.info("shadow forecast by %s at %s", name, time_text(served.init_time))
        except (ExistsError, LostClaimError):  # another was first
            pass
        except Exception as error:
            self.done["failed"] += 1
            where = time_text(served.init_time)
            log.warning("no shadow forecast by %s at %s: %s", name, where, told(error))
        if forecaster is None or forecaster.trouble:
            self._lost.add(name)

    def _forecaster(self, name: str) -> Nowcaster:
        """By name; of those in processes of their own the last two stay."""
        if name not in self._forecasters:
            children = [one for one in self._forecasters if one not in IN_PROCESS]
            room = MOST_CHILDREN if name in IN_PROCESS else MOST_CHILDREN - 1
            for one in children[: max(0, len(children) - room)]:
                self._forecasters.pop(one).close()
            bare = self.champion.settings.model_copy(update={"products": NOTHING})
            self._forecasters[name] = Nowcaster(self._root, name, bare)
        self._forecasters.move_to_end(name)
        forecaster = self._forecasters[name]
        forecaster.begin()
        return forecaster


def _served(root: str, product: str, start: pd.Timestamp) -> list[Published]:
    """What was served first of each init_time from `start` on, the newest first."""
    there = published(root, product, start)
    return [one for one in there[::-1] if one.revision == FIRST]


def _alike(
    forecaster: Nowcaster, archive: Archive, served: Published, budget: dt.timedelta
) -> xr.Dataset:
    """Its forecast from the frames that were there for the served one.

    Raises `SquallError` where a frame that the served one had is not what it was, before or after:
    without it, bridged, the comparison would not be fair.
    """
    there = window(archive, served.init_time, forecaster.frames)
    had = frames_had(there, served.attributes)
    wanted = set(map(utc, served.attributes.get("input_times", ())))
    gone = sorted((wanted & set(there.times)) - had)
    if not gone:
        backfill = bool(served.attributes.get("backfill", 0))
        forecast = forecaster.alone(archive, served.init_time, had, budget, backfill=backfill)
        after = window(archive, served.init_time, forecaster.frames).only(had)
        seen = {there.only(had).digest, forecast.attrs["inputs_sha256"], after.digest}
        if len(seen) == 1:
            return forecast
    raise SquallError(
        "the frames of the served forecast are not there any more",
        found=f"corrected since: {', '.join(map(time_text, gone)) or 'while it forecast'}",
        expected="the frames that the served forecast was made from",
        remedy="nothing: of this init_time there is no fair comparison",
    )


def _listed(pairs: set[Pair]) -> str:
    """By forecaster, how many."""
    counted = Counter(name for _, name in pairs)
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))
