"""A nowcast for every init_time, whatever happens to the model.

The forecaster that was asked for runs in a process of its own, with a deadline. Where it is
missing, broken or too slow, or forecasts what cannot be, advection forecasts instead, in time; the
forecast says so, and why. Where there are too few frames even for advection there is none.

So it does where advection's verified forecasts have been better than the model's for a day
(`nowcast.fallback_after`), until they no longer are: see `pipelines.skill.outdone`.
"""

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Collection, Iterator
from functools import partial
from types import TracebackType
from typing import Literal

import pandas as pd
import xarray as xr
from pydantic import Field

from models.baselines import BASELINES, build_baseline
from models.belief import check_believable
from models.card import read_card
from models.forecaster import Forecaster
from models.isolation import About, ForecasterLostError, Isolated
from models.past import Past, quality, quality_note, read_past
from models.prediction import ServingSettings, serving_forecaster
from models.registry import champion
from pipelines.archive import Archive
from pipelines.calibration import Calibration
from pipelines.errors import SquallError, TooFewFramesError
from pipelines.forecasts import forecast_dataset
from pipelines.products import ProductSettings, with_products
from pipelines.section import Section
from pipelines.skill import RecentSkill, outdone
from pipelines.skill_attributes import skill_attributes
from pipelines.times import Duration, DurationOrNever, lead_times, now, time_text
from pipelines.window import Window, window

log = logging.getLogger(__name__)

FALLBACK = "advection"
FALLBACK_MISSING = 1
"""Past frames that advection, which needs three, can do without."""
IN_PROCESS = ("persistence", "advection")
"""What is neither slow nor apt to break runs in this process."""
NO_WEIGHTS = "none: a baseline has no weights"
LARGE_BYTES = 1 << 30
"""A forecast larger than this is worked on a lead time at a time from here on."""


class NowcastSettings(Section):
    """How nowcasts are made."""

    model: str | None = Field(
        None,
        description="Model name, optionally name/version, or a baseline; the product's by default.",
    )
    lead_time: Duration = Field(dt.timedelta(minutes=60), description="How far ahead to forecast.")
    most_missing: int = Field(
        2, ge=0, description="Past frames that may be missing; advection bridges them."
    )
    too_few: Literal["advection", "refuse"] = Field(
        "advection", description="With more missing: forecast by advection, or not at all."
    )
    watch_for: Duration = Field(
        dt.timedelta(0),
        description="How long a run goes on looking for new frames; 0: it looks once.",
    )
    poll: Duration = Field(
        dt.timedelta(seconds=5), description="How often it looks, as long as it goes on."
    )
    time_budget: Duration = Field(
        dt.timedelta(minutes=1),
        description="How long the model may take; at most half a timestep. Then advection it is.",
    )
    most_rain_mm_h: float = Field(
        500.0,
        gt=0,
        description="More rain than this, and than any past frame has, is not believed.",
    )
    most_growth: float = Field(
        5.0,
        gt=1,
        description="Nor one whose mean rain rate is so many times that of the wettest past frame.",
    )
    catch_up: Duration = Field(
        dt.timedelta(hours=1),
        description="Frames this much older than the newest still get their nowcast, or a new one "
        "when a frame it is made from comes late or is corrected.",
    )
    fallback_after: DurationOrNever = Field(
        dt.timedelta(hours=24),
        description="A model whose verified forecasts have been behind advection's for so long is "
        "not served; at most verify.skill.window. never: it always is.",
    )
    skill_expires: Duration = Field(
        dt.timedelta(hours=6),
        description="Skill verified up to a time so much earlier than the frame says nothing of "
        "today; more than the lead time.",
    )
    serving: ServingSettings = ServingSettings()
    products: ProductSettings = ProductSettings()


class Nowcaster:
    """Makes nowcasts with one forecaster, and with advection where that fails.

    A context manager: at its end the forecaster's process ends too.

    Parameters
    ----------
    root : where the models are
    model : name, name/version or baseline, as asked for; a name stands for its champion
    """

    def __init__(self, root: str, model: str, settings: NowcastSettings) -> None:
        self.settings = settings
        self._root, self._model = root, model
        self._fallback = build_baseline(FALLBACK)
        self._forecaster: Forecaster | Isolated | None = None
        self.requested, self.frames = model, self._fallback.past_frames
        self._skill: RecentSkill | None = None
        self._calibration: Calibration | None = None
        self.begin()

    def begin(
        self, skill: RecentSkill | None = None, calibration: Calibration | None = None
    ) -> None:
        """Before a round of nowcasts: take today's champion, and try again what was in trouble.

        `skill` is what verification says of forecasters lately: forecasts carry it, and a model
        that has been behind advection for too long does not serve; by default it is not known.
        `calibration` corrects the probabilities of the forecaster it is for.
        """
        self._trouble, self._skill, self._calibration = "", skill, calibration
        try:
            wanted = pinned(self._root, self._model)
            if self._forecaster is None or wanted != self.requested:
                self.close()
                self.requested = wanted
                self.frames, self._forecaster = self._prepare(wanted)
            elif isinstance(self._forecaster, Isolated):
                self._forecaster.start()
        except Exception as error:
            self.close()
            self.requested, self.frames = self._model, self._fallback.past_frames
            self._trouble = told(error)
            log.warning("%s cannot be used: %s", self._model, self._trouble)

    def _prepare(self, wanted: str) -> tuple[int, Forecaster | Isolated]:
        """How many past frames a forecaster needs, and the forecaster, which begins to load."""
        if wanted in IN_PROCESS:
            forecaster = build_baseline(wanted)
            return max(forecaster.past_frames, 2), forecaster
        name, _, version = wanted.partition("/")
        frames = (
            build_baseline(wanted).past_frames
            if wanted in BASELINES
            else read_card(self._root, name, version).past_frames
        )
        serving = self.settings.serving
        recipe = partial(serving_forecaster, self._root, wanted, serving)
        return max(frames, 2), Isolated(recipe, threads=serving.threads)

    def __enter__(self) -> "Nowcaster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def trouble(self) -> str:
        """Why the forecaster is not asked any more until the next round; "" where it is."""
        return self._trouble

    def close(self) -> None:
        """End the forecaster's process."""
        if isinstance(self._forecaster, Isolated):
            self._forecaster.close()
        self._forecaster = None

    def nowcast(
        self,
        archive: Archive,
        init_time: pd.Timestamp,
        *,
        backfill: bool = False,
        seconds_ingest: float = 0.0,
    ) -> xr.Dataset:
        """The forecast of one init_time, from nothing newer than that, ready to publish.

        `backfill` : it is not made for the newest frame, or not in time; its latency does not
        count. `seconds_ingest` : what taking in its frames took. Raises `TooFewFramesError` where
        not even advection has enough frames.
        """
        leads = lead_times(archive.timestep, self.settings.lead_time)
        inputs = window(archive, init_time, self.frames)
        attrs = self._facts(inputs, backfill=backfill, seconds_ingest=seconds_ingest)
        reason = self._trouble
        if not reason and (reason := self._outdone(init_time)):
            with contextlib.suppress(TooFewFramesError):  # then the model may have enough
                return self._by_advection(archive, init_time, leads, attrs, reason)
            reason = ""
        if self._forecaster is not None and not reason:
            try:
                return self._own(self._forecaster, archive, init_time, leads, attrs)
            except TooFewFramesError as error:
                if self.settings.too_few == "refuse":
                    raise
                reason = told(error)
            except Exception as error:
                reason = told(error)
                if self._is_lost(error):  # nor is it asked for the rest of this round
                    self._trouble = reason
        return self._by_advection(archive, init_time, leads, attrs, reason)

    def _by_advection(
        self,
        archive: Archive,
        init_time: pd.Timestamp,
        leads: pd.TimedeltaIndex,
        attrs: dict[str, object],
        reason: str,
    ) -> xr.Dataset:
        """The fallback; raises `TooFewFramesError` where it has too few."""
        with _timed(attrs, "seconds_read"):
            past = read_past(archive, init_time, self._fallback.past_frames, FALLBACK_MISSING)
        log.warning("advection instead of %s at %s: %s", self.requested, init_time, reason)
        attrs["fallback_reason"] = reason
        with _timed(attrs, "seconds_predict"):
            rain_rate = self._fallback.predict(past.frames, leads)
        return self._dataset(rain_rate, past, self._fallback, attrs)

    def alone(
        self,
        archive: Archive,
        init_time: pd.Timestamp,
        only: Collection[pd.Timestamp],
        budget: dt.timedelta,
        *,
        backfill: bool = False,
    ) -> xr.Dataset:
        """The forecast of the forecaster that was asked for, with none in its stead, ready to
        publish: of past frames `only` those of some times. Raises what goes wrong; where asking
        again would only take time `trouble` says so from then on.
        """
        if self._forecaster is None or self._trouble:
            raise SquallError(
                f"{self.requested} cannot be used",
                found=self._trouble,
                expected="a model that loads, or a baseline",
                remedy="`squall registry list` names models; `squall models` baselines",
            )
        leads = lead_times(archive.timestep, self.settings.lead_time)
        inputs = window(archive, init_time, self.frames).only(only)
        attrs = self._facts(inputs, backfill=backfill)
        try:
            return self._own(self._forecaster, archive, init_time, leads, attrs, only, budget)
        except Exception as error:
            if self._is_lost(error):
                self._trouble = told(error)
            raise

    def _facts(
        self, inputs: Window, *, backfill: bool, seconds_ingest: float = 0.0
    ) -> dict[str, object]:
        """What is known of a forecast before it is made."""
        return {
            "requested_model": self.requested,
            "input_window": self.frames,
            "inputs_sha256": inputs.digest,
            "radar_age_seconds": (now("ms") - inputs.times[-1]).total_seconds(),
            "backfill": int(backfill),
            "seconds_ingest": round(seconds_ingest, 3),
        }

    def _own(
        self,
        forecaster: Forecaster | Isolated,
        archive: Archive,
        init_time: pd.Timestamp,
        leads: pd.TimedeltaIndex,
        attrs: dict[str, object],
        only: Collection[pd.Timestamp] | None = None,
        budget: dt.timedelta | None = None,
    ) -> xr.Dataset:
        """The forecast of the forecaster that was asked for, timed."""
        with _timed(attrs, "seconds_read"):
            past = read_past(archive, init_time, self.frames, self.settings.most_missing, only=only)
        with _timed(attrs, "seconds_predict"):
            rain_rate = self._predict(forecaster, past, leads, budget)
        return self._dataset(rain_rate, past, forecaster, attrs)

    def _outdone(self, init_time: pd.Timestamp) -> str:
        """How advection has been better for too long than the model; empty where it has not."""
        after, expires = self.settings.fallback_after, self.settings.skill_expires
        if after is None or self.requested in BASELINES:
            return ""
        return outdone(self._skill, self.requested, init_time, after, expires)

    def _is_lost(self, error: Exception) -> bool:
        """Whether asking again would only take time: it could not be loaded, died or is late."""
        forecaster = self._forecaster
        gone = isinstance(forecaster, Isolated) and not forecaster.has_child
        return gone or isinstance(error, ForecasterLostError)

    def _predict(
        self,
        forecaster: Forecaster | Isolated,
        past: Past,
        leads: pd.TimedeltaIndex,
        budget: dt.timedelta | None,
    ) -> xr.DataArray:
        if isinstance(forecaster, Isolated):
            timestep = leads[0]
            if budget is None:
                budget = min(pd.Timedelta(self.settings.time_budget), timestep / 2)
            rain_rate = forecaster.predict(past.frames, leads, budget.total_seconds())
        else:
            rain_rate = forecaster.predict(past.frames, leads)
        check_believable(
            rain_rate,
            past.frames,
            everywhere=self.requested not in BASELINES,
            most_rain_mm_h=self.settings.most_rain_mm_h,
            most_growth=self.settings.most_growth,
        )
        return rain_rate

    def _dataset(
        self,
        rain_rate: xr.DataArray,
        past: Past,
        forecaster: Forecaster | Isolated,
        attrs: dict[str, object],
    ) -> xr.Dataset:
        about = forecaster.about if isinstance(forecaster, Isolated) else About.of(forecaster)
        made = now("ms")
        inputs, received = past.window, past.window.received
        expires = self.settings.skill_expires
        attrs |= skill_attributes(self._skill, about.name, inputs.times[-1], expires)
        by = FALLBACK if "fallback_reason" in attrs else ""
        attrs |= {
            "model": about.name,
            "model_sha256": about.weights_sha256 or NO_WEIGHTS,
            "device": about.device,
            "quality": quality(past, by),
            "quality_note": quality_note(past, by),
            "fallback_reason": attrs.get("fallback_reason", ""),
            "input_times": [time_text(time) for time in inputs.present],
            "input_sha256": [inputs.sha256(time) for time in inputs.present],
            "input_age_seconds": [(made - time).total_seconds() for time in inputs.present],
            "bridged_times": [time_text(time) for time in past.bridged],
            "frame_received_time": time_text(received) if received is not None else "",
        }
        if rain_rate.nbytes > LARGE_BYTES:
            rain_rate = rain_rate.chunk(lead_time=1)
        with _timed(attrs, "seconds_products"):
            known = self._calibration
            own = known if known is not None and known.forecaster == about.name else None
            forecast = with_products(forecast_dataset(rain_rate, {}), self.settings.products, own)
        return forecast.assign_attrs(attrs)


def pinned(root: str, model: str) -> str:
    """A model by name/version: the champion's where only the name is given."""
    return model if model in BASELINES or "/" in model else f"{model}/{champion(root, model)}"


def told(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _timed(attrs: dict[str, object], name: str) -> Iterator[None]:
    """Note how many seconds the block takes."""
    began = time.perf_counter()
    try:
        yield
    finally:
        attrs[name] = round(time.perf_counter() - began, 3)
