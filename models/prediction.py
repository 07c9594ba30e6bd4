"""From archive to forecast: past frames, a forecaster, a labelled forecast ready to publish."""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from pydantic import Field

from models.baselines import BASELINES, build_baseline
from models.data import INPUT_CHANNELS, network_input
from models.forecaster import Forecaster, labelled, timestep_of
from models.normalisation import RainNormalisation
from models.registry import Model, load_model
from pipelines.archive import Archive
from pipelines.errors import SquallError, TooFewFramesError
from pipelines.forecasts import forecast_dataset
from pipelines.section import Section
from pipelines.times import Duration, format_duration, lead_times, now, time_text
from pipelines.units import DRY_MM_H


class NowcastSettings(Section):
    """How nowcasts are made."""

    model: str | None = Field(
        None,
        description="Model name, optionally name/version, or a baseline; the product's by default.",
    )
    lead_time: Duration = Field(dt.timedelta(minutes=60), description="How far ahead to forecast.")
    most_missing: int = Field(
        1, ge=0, description="Past frames that may be missing; the nearest one stands in for each."
    )
    catch_up: Duration = Field(
        dt.timedelta(hours=1),
        description="Frames this much older than the newest still get their nowcast.",
    )


class NetworkForecaster:
    """A trained network behind the forecasters' interface."""

    def __init__(self, model: Model) -> None:
        if model.in_channels != INPUT_CHANNELS:
            raise SquallError(
                f"model {model.id} was not trained on radar",
                found=f"{model.in_channels} channel a frame",
                expected=f"{INPUT_CHANNELS}: rain rate and whether it was observed",
                remedy="name a model that was trained on an archive",
            )
        self.model = model
        self.name = model.id
        self.past_frames = model.past_frames
        self.paper = str(model.network.paper)
        self._normalisation = RainNormalisation(model.settings.normalisation)
        self._loss = model.settings.build_loss()

    @torch.no_grad()
    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`.

        Members where it was trained on a loss of ensembles. A pixel that no past frame observed has
        no forecast. Below 0.1 mm/h a forecast is dry, and where no past frame has rain it is dry
        everywhere. Raises `SquallError` where the frames are not spaced as those it was trained on.
        """
        timestep = timestep_of(past)
        if timestep != self.model.timestep:
            raise SquallError(
                f"model {self.name} was trained on another timestep",
                found=format_duration(timestep),
                expected=format_duration(self.model.timestep),
                remedy="train a model on this product",
            )
        frames = torch.from_numpy(past.values.astype(np.float32))
        steps = [round(lead / timestep) for lead in lead_times]
        members = self.model.settings.out_channels
        rain_rate = np.zeros((members, len(steps), *frames.shape[1:]), np.float32)
        if (frames >= DRY_MM_H).any():
            inputs = network_input(frames, self._normalisation)[None]
            output = self.model.network(inputs, max(steps))[0, [step - 1 for step in steps]]
            rain = self._loss.to_rain(output).movedim(1, 0)
            rain_rate = self._normalisation.decode(rain).numpy()
            rain_rate[rain_rate < DRY_MM_H] = 0.0
        rain_rate[..., np.isnan(past.values).all(axis=0)] = np.nan
        ensemble = self._loss.of_ensemble
        return labelled(rain_rate if ensemble else rain_rate[0], past, lead_times)


def get_forecaster(root: str, name: str) -> Forecaster:
    """A baseline, or a model of the registry as ``name`` (its champion) or ``name/version``."""
    if name in BASELINES:
        return build_baseline(name)
    name, _, version = name.partition("/")
    return NetworkForecaster(load_model(root, name, version or None))


@dataclass(frozen=True)
class Past:
    """Past frames up to an init_time. `input_times` are the ones that were really there."""

    frames: xr.DataArray
    input_times: pd.DatetimeIndex

    @property
    def complete(self) -> bool:
        """Whether no frame had to be stood in for."""
        return len(self.input_times) == self.frames.sizes["time"]


def read_past(
    archive: Archive, init_time: pd.Timestamp, frames: int, most_missing: int = 0
) -> Past:
    """The `frames` frames up to and with `init_time`; the nearest one stands in for a missing one.

    Raises `TooFewFramesError` where the frame at `init_time` or more than `most_missing` others
    are not in the archive.
    """
    wanted = pd.date_range(end=init_time, periods=frames, freq=archive.timestep, name="time")
    present = wanted[wanted.isin(archive.usable_times())]
    missing = wanted.difference(present)
    if init_time in missing or len(missing) > most_missing:
        raise TooFewFramesError(
            f"too few past frames for a nowcast at {time_text(init_time)}",
            found=f"{len(present)} of {frames}, missing {', '.join(map(time_text, missing))}",
            expected=f"{frames} frames {format_duration(archive.timestep)} apart, at most "
            f"{most_missing} missing and never the newest",
            remedy="ingest the missing frames, or choose another init_time",
        )
    return Past(archive.read_frames(present).reindex(time=wanted, method="nearest"), present)


def make_nowcast(
    archive: Archive, forecaster: Forecaster, init_time: pd.Timestamp, settings: NowcastSettings
) -> xr.Dataset:
    """The forecast of one init_time, from nothing newer than that, ready to publish."""
    frames = max(forecaster.past_frames, 2)
    past = read_past(archive, init_time, frames, settings.most_missing)
    rain_rate = forecaster.predict(past.frames, lead_times(archive.timestep, settings.lead_time))
    model = getattr(forecaster, "model", None)
    attrs: dict[str, object] = {
        "model": forecaster.name,
        "model_sha256": model.weights_sha256 if model else "none: a baseline has no weights",
        "input_times": [time_text(time) for time in past.input_times],
        "radar_age_seconds": (now() - init_time).total_seconds(),
        "quality": "good" if past.complete else "degraded",
        "quality_note": "all past frames were there"
        if past.complete
        else f"{frames - len(past.input_times)} of {frames} past frames missing, nearest one used",
    }
    return forecast_dataset(rain_rate, attrs)
