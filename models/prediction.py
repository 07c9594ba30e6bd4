"""Forecasters by name: a trained network behind the interface that baselines have too."""

import numpy as np
import pandas as pd
import torch
import xarray as xr
from pydantic import Field

from models.baselines import BASELINES, build_baseline
from models.data import INPUT_CHANNELS, network_input
from models.forecaster import Forecaster, labelled, timestep_of
from models.normalisation import RainNormalisation
from models.perturbation import Perturbed
from models.registry import Model, load_model
from models.tiling import Tiled
from pipelines.errors import SquallError
from pipelines.section import Section
from pipelines.times import format_duration
from pipelines.units import DRY_MM_H


class ServingSettings(Section):
    """How a model forecasts: on what, in how large pieces, how many times."""

    gpu: bool = Field(False, description="Forecast on the GPU.")
    threads: int = Field(2, ge=1, description="PyTorch's threads in the model's process.")
    tile: int = Field(
        1024, ge=32, description="A network forecasts domains larger than this in tiles, pixels."
    )
    overlap: int = Field(256, ge=0, description="How much neighbouring tiles share, pixels.")
    members: int | None = Field(
        None,
        ge=2,
        description="Members of the ensemble, by perturbed past frames where a network is asked; "
        "a single forecast by default (24 by steps).",
    )
    noise_db: float = Field(
        1.5, ge=0, description="Standard deviation of the rain rate's perturbation, dB."
    )
    noise_km: float = Field(20.0, gt=0, description="How far that perturbation is alike, km.")
    motion_km_h: float = Field(
        5.0, ge=0, description="Standard deviation of the motion's perturbation, km/h."
    )


class NetworkForecaster:
    """A trained network behind the forecasters' interface, on a device (``cpu``, ``cuda``)."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
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
        self._device = torch.device(device)
        model.network.to(self._device)

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
            inputs = network_input(frames.to(self._device), self._normalisation)[None]
            output = self.model.network(inputs, max(steps))[0, [step - 1 for step in steps]]
            rain = self._loss.to_rain(output).movedim(1, 0)
            rain_rate = self._normalisation.decode(rain).cpu().numpy()
            rain_rate[rain_rate < DRY_MM_H] = 0.0
        rain_rate[..., np.isnan(past.values).all(axis=0)] = np.nan
        ensemble = self._loss.of_ensemble
        return labelled(rain_rate if ensemble else rain_rate[0], past, lead_times)


def get_forecaster(root: str, name: str, device: str = "cpu") -> Forecaster:
    """A baseline, or a model of the registry as ``name`` (its champion) or ``name/version``."""
    if name in BASELINES:
        return build_baseline(name)
    name, _, version = name.partition("/")
    return NetworkForecaster(load_model(root, name, version or None), device)


def serving_forecaster(root: str, name: str, settings: ServingSettings) -> Forecaster:
    """A forecaster as it serves: an ensemble where one is asked for, large domains by tiles."""
    if name == "steps" and settings.members is not None:
        return build_baseline(name, members=settings.members)
    if name in BASELINES:
        return build_baseline(name)
    forecaster = get_forecaster(root, name, "cuda" if settings.gpu else "cpu")
    forecaster = Tiled(forecaster, settings.tile, settings.overlap)
    if settings.members is None:
        return forecaster
    return Perturbed(
        forecaster,
        settings.members,
        settings.noise_db,
        settings.noise_km,
        settings.motion_km_h,
    )
