"""What promotion asks for, and what comes out: settings, comparisons, a verdict."""

import datetime as dt
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd
from pydantic import Field, field_validator

from models.baselines import BASELINES
from pipelines.bootstrap import LEVEL, SAMPLES
from pipelines.errors import UnknownNameError
from pipelines.section import Section
from pipelines.times import Duration, format_duration

LEAD_TIMES = tuple(dt.timedelta(minutes=minutes) for minutes in (15, 30, 60))
Score = Literal["csi", "fss", "mae", "mse", "crps"]
LOWER_IS_BETTER = ("mae", "mse", "crps")
Outcome = Literal["better", "not proven", "worse", "cannot say"]


class PromotionSettings(Section):
    """When a challenger becomes the champion."""

    score: Score = Field("csi", description="What is compared: csi, fss, mae, mse or crps.")
    lead_times: tuple[Duration, ...] | None = Field(
        None,
        min_length=1,
        description="At which lead times a challenger must be better; at 15, 30 and 60 min by "
        "default, as far as forecasts go.",
    )
    thresholds_mm_h: tuple[float, ...] = Field(
        (0.5, 2.0),
        min_length=1,
        description="Above which rain rates, mm/h, of those that `verify` scores. Any rain and "
        "moderate rain by default: heavier rain is so rare that a proof would take months.",
    )
    scale_km: float = Field(20.0, gt=0, description="Neighbourhood, where fss is compared, km.")
    against: tuple[str, ...] = Field(
        ("persistence", "advection", "sprog"),
        description="Baselines that it must beat, beside the champion.",
    )
    block: Duration = Field(
        dt.timedelta(hours=6), description="Length of an event block, which is drawn whole."
    )
    least_blocks: int = Field(
        10, ge=2, description="Blocks in which the event must have been observed, at least."
    )
    least_forecasts: int = Field(100, ge=1, description="Forecasts that both made, at least.")
    level: float = Field(LEVEL, gt=0, lt=1, description="Of the intervals.")
    samples: int = Field(SAMPLES, ge=100, description="Bootstrap draws.")
    window: Duration = Field(
        dt.timedelta(days=30), description="How far back from the newest scores evidence goes."
    )
    first: bool = Field(
        True, description="Whether the first version of a name becomes its champion unproven."
    )

    @field_validator("against")
    @classmethod
    def _the_baselines_exist(cls, against: tuple[str, ...]) -> tuple[str, ...]:
        for name in against:
            if name not in BASELINES:
                raise UnknownNameError.of("baseline", name, BASELINES)
        return against


@dataclass(frozen=True)
class Comparison:
    """A challenger beside one opponent, at one lead time and threshold.

    Attributes
    ----------
    threshold_mm_h : None of a score that has none
    ours, theirs : score of the challenger and of the opponent, on the same pixels
    lower, upper : what the middle `level` of bootstrap draws of `difference` lie between
    forecasts : init_times that both forecast; blocks : those of them with the event observed
    note : what is lacking, where the outcome is "cannot say"
    """

    opponent: str
    lead_time: pd.Timedelta
    threshold_mm_h: float | None
    ours: float
    theirs: float
    lower: float
    upper: float
    forecasts: int
    blocks: int
    outcome: Outcome
    note: str = ""

    @property
    def difference(self) -> float:
        """Ours − theirs."""
        return self.ours - self.theirs

    def __str__(self) -> str:
        event = "" if self.threshold_mm_h is None else f", ≥ {self.threshold_mm_h:g} mm/h"
        what = self.note or f"{self.outcome}, {self.lower:+.3f} to {self.upper:+.3f}"
        return f"{self.opponent} at {format_duration(self.lead_time)}{event}: {what}"


@dataclass(frozen=True)
class Verdict:
    """What `judge` found.

    Attributes
    ----------
    champion : None where there is none to beat
    since, until : first and last init_time of the evidence, ISO 8601; empty where there is none
    forecasts : init_times with scores of the challenger that count as evidence
    left_out : those that do not, for challenger or champion learnt from them
    lacking : what is missing altogether, in words
    """

    challenger: str
    champion: str | None
    settings: PromotionSettings
    since: str
    until: str
    forecasts: int
    left_out: int
    comparisons: tuple[Comparison, ...]
    lacking: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every comparison was made, and won."""
        won = all(one.outcome == "better" for one in self.comparisons)
        return won and bool(self.comparisons) and not self.lacking

    @property
    def undecided(self) -> bool:
        """Whether more evidence might prove what this does not."""
        return bool(self.lacking) or any(o.outcome == "cannot say" for o in self.comparisons)

    @property
    def against(self) -> list[str]:
        """Why it does not pass, in words, what is missing first; empty where it does."""
        lost = [one for one in self.comparisons if one.outcome != "better"]
        lost.sort(key=lambda one: one.outcome != "cannot say")
        return [*self.lacking, *map(str, lost)]

    def summary(self) -> dict[str, Any]:
        """All of it ready for JSON."""
        rows = [
            {name: _plain(value) for name, value in asdict(one).items()} for one in self.comparisons
        ]
        return {
            "passed": self.passed,
            "challenger": self.challenger,
            "champion": self.champion,
            "score": self.settings.score,
            "level": self.settings.level,
            "since": self.since,
            "until": self.until,
            "forecasts": self.forecasts,
            "blocks": max((one.blocks for one in self.comparisons), default=0),
            "left_out": self.left_out,
            "lacking": list(self.lacking),
            "comparisons": rows,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, pd.Timedelta):
        return format_duration(value)
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
