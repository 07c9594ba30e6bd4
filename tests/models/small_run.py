"""A training run that is small enough to be made many times."""

import pytest
import torch

from models import checkpoints, runs
from models.training import CheckpointSettings, TrackingSettings, TrainSettings
from models.worker import Worker

SETTINGS = TrainSettings(
    network={"hidden_channels": (4,)},
    past="15min",
    future="15min",
    crop=32,
    epochs=3,
    samples_per_epoch=16,
    batch_size=4,
    average=0.5,
    workers=2,
    loaders=0,
    tracking=TrackingSettings(kind="none"),
    baselines=("persistence",),
    score_events=2,
    checkpoint=CheckpointSettings(every_steps=3),
)
"""Four steps an epoch; checkpoints at its end and after 3, 6, 9 steps."""


def changed(**values):
    return TrainSettings(**SETTINGS.model_dump() | values)


def run(data, place, settings=SETTINGS, **rest):
    Worker(settings, data, place, **rest).run()
    return runs.outcome(place)


def fit_here(data, settings, *, storage_url, run_name, weights=None, on_message=None):
    """`models.ray_training.fit` without Ray: one worker, in this process."""
    place = checkpoints.folder(storage_url, run_name)
    return run(data, place, settings, weights=weights, tell=on_message)


def losses(trained):
    return [epoch[name] for epoch in trained.history for name in ("loss", "validation_loss")]


def assert_same(trained, expected, tolerance=0.0):
    assert losses(trained) == pytest.approx(losses(expected), rel=max(tolerance, 1e-9))
    assert trained.weights.keys() == expected.weights.keys()
    for name, weights in expected.weights.items():
        torch.testing.assert_close(trained.weights[name], weights, rtol=tolerance, atol=tolerance)
