"""Forecasters by name: a trained network behind the interface that baselines have too."""

import numpy as np
import pandas as pd
import torch
import xarray as xr

from models.baselines import BASELINES, build_baseline
from models.data import INPUT_CHANNELS, network_input
from models.forecaster import Forecaster, labelled, timestep_of
from models.normalisation import RainNormalisation
from models.registry import Model, load_model
from pipelines.errors import SquallError
from pipelines.times import format_duration
from pipelines.units import DRY_MM_H


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
