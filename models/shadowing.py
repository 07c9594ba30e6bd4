"""Forecasts in shadow: challengers, baselines and a champion that does not serve, compared fairly.

When the forecast of a frame is published, the others forecast from the same frames, and publish
where no reader looks (`pipelines.shadows`); verification scores them beside what was served. The
time for that is limited, and it is after what readers wait for: who has waited longest comes first,
so that all get their turn. One that fails has no forecast; nobody forecasts in its name.
"""

import datetime as dt
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from types import TracebackType

import pandas as pd
from pydantic import Field

from models.baselines import BASELINES
from models.evidence import challengers
from models.nowcasting import IN_PROCESS, Nowcaster
from models.verification import frames_had
from pipelines.archive import Archive
from pipelines.errors import ExistsError, SquallError
from pipelines.forecasts import Published, is_published, revisions
from pipelines.once import LostClaimError
from pipelines.products import ProductSettings
from pipelines.publishing import publish
from pipelines.section import Section
from pipelines.shadows import shadow_root
from pipelines.times import Duration
from pipelines.window import window

log = logging.getLogger(__name__)

MOST_CHILDREN = 2
"""Forecasters in processes of their own that are kept: each needs the memory of a network."""
SHARE = 0.25
"""Of a timestep, at most, shadows take: with what serves, a round is over before the next frame."""
NOTHING = ProductSettings(accumulations=(), thresholds_mm_h=())
UNHURRIED = dt.timedelta(hours=1)
"""For one forecast of a past period."""


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
    time_budget: Duration = Field(
        dt.timedelta(minutes=1),
        description="For all of a round together; at most a quarter of a timestep.",
    )


class Shadows:
    """Makes shadow forecasts. A context manager: at its end the forecasters' processes end.

    Parameters
    ----------
    champion : what serves; it forecasts here where another had to serve in its stead
    root : where the models are
    """

    def __init__(self, root: str, champion: Nowcaster, settings: ShadowSettings) -> None:
        self.settings, self.champion = settings, champion
        self.done: Counter[str] = Counter()
        self._root = root
        self._forecasters: OrderedDict[str, Nowcaster] = OrderedDict()
        self._turns: dict[str, float] = {}
        self._tried: set[tuple[pd.Timestamp, str]] = set()

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

    def follow(
        self,
        root: str,
        product: str,
        archive: Archive,
        init_times: Iterable[pd.Timestamp],
        *,
        hurried: bool = True,
    ) -> None:
        """Make what is lacking of the shadow forecasts of some init_times that were served.

        In the order given, within the time budget unless not `hurried`. Raises nothing for what
        goes wrong with one; `done` counts what became of them.
        """
        if not self.settings.enabled:
            return
        budget = min(pd.Timedelta(self.settings.time_budget), SHARE * archive.timestep)
        end = time.monotonic() + budget.total_seconds() if hurried else None
        for init_time in init_times:
            there = revisions(root, product, init_time)
            for name in self._in_turn(product, there[0]) if there else ():
                if (init_time, name) in self._tried:
                    continue
                if end is not None and time.monotonic() >= end:
                    self.done["out of time"] += 1
                    continue
                left = UNHURRIED if end is None else pd.Timedelta(end - time.monotonic(), "s")
                self._turns[name] = time.monotonic()
                self._tried.add((init_time, name))
                self._make(root, product, archive, name, there[0], left)

    def _in_turn(self, product: str, served: Published) -> list[str]:
        """Who is to forecast beside what was served, the one that waited longest first."""
        champion = self.champion.requested
        name = product if champion in BASELINES else champion.partition("/")[0]
        chosen = self.settings.challengers
        if chosen is None:
            chosen = tuple(self._newer(name)[: self.settings.most_challengers])
        wanted = [*self.settings.baselines, champion, *chosen]  # the cheap ones first
        by = served.attributes.get("model")
        return sorted(
            dict.fromkeys(one for one in wanted if one != by),
            key=lambda one: self._turns.get(one, 0.0),
        )

    def _newer(self, name: str) -> list[str]:
        try:
            return challengers(self._root, name)
        except SquallError as error:
            log.warning("no challengers of %s: %s", name, error)
            return []

    def _make(
        self,
        root: str,
        product: str,
        archive: Archive,
        name: str,
        served: Published,
        budget: dt.timedelta,
    ) -> None:
        """One shadow forecast, where there is none."""
        place, init_time = shadow_root(root, name), served.init_time
        try:
            if is_published(place, product, init_time):
                return
            forecaster = self._forecaster(name)
            there = window(archive, init_time, forecaster.frames)
            had = frames_had(there, served.attributes)
            publish(place, product, forecaster.alone(archive, init_time, had, budget))
            self.done["made"] += 1
        except (ExistsError, LostClaimError):  # another round was first
            return
        except Exception as error:
            self.done["failed"] += 1
            told = " ".join(str(error).split())
            log.warning("no shadow forecast by %s at %s: %s", name, init_time, told)

    def _forecaster(self, name: str) -> Nowcaster:
        """By name; of those in processes of their own the last two stay."""
        if name == self.champion.requested:
            return self.champion
        if name not in self._forecasters:
            bare = self.champion.settings.model_copy(update={"products": NOTHING})
            self._forecasters[name] = Nowcaster(self._root, name, bare)
        self._forecasters.move_to_end(name)
        children = [one for one in self._forecasters if one not in IN_PROCESS]
        for one in children[:-MOST_CHILDREN]:
            self._forecasters.pop(one).close()
        forecaster = self._forecasters[name]
        forecaster.begin()
        return forecaster
