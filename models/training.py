"""How a network is trained: the settings. `models.learner` does it, `models.ray_training` with Ray.

Everything random follows from the seed and the step, so a run that stops and resumes, with as many
workers or with others, ends with the weights of one that did not.
"""

import datetime as dt
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from models.augmentation import AugmentSettings
from models.baselines import BASELINES
from models.data import INPUT_CHANNELS
from models.losses import LOSSES, Loss, get_loss
from models.networks import build_model, check_options
from models.networks.convlstm import Compute
from models.normalisation import Kind as Scale
from models.normalisation import RainNormalisation
from models.tracking import Kind
from pipelines.archive import Archive
from pipelines.errors import UnknownNameError
from pipelines.samples import SequenceShape
from pipelines.section import NAME, Section, Url
from pipelines.times import Duration, spaced


class NetworkSettings(Section):
    """Which network, how large. What is not set is as published: see `squall models`."""

    name: str = Field("convlstm", description="Network: see `squall models`.")
    hidden_channels: tuple[int, ...] | None = Field(
        None, min_length=1, description="Channels of each layer's states, first layer first."
    )
    input_kernel: int | None = Field(None, ge=1, description="Input-to-state kernel, odd.")
    state_kernel: int | None = Field(None, ge=1, description="State-to-state kernel, odd.")
    patch_size: int | None = Field(
        None, ge=1, le=32, description="Side of the patches frames are cut into."
    )
    compute: Compute | None = Field(
        None,
        description="How ConvLSTM layers are computed: exact (float32), bf16 (bfloat16, float32 "
        "cell state), either with -remat for less memory, or reference (step by step).",
    )
    options: dict[str, Any] = Field(
        {}, description='Any other option of the network, such as {"strides": [4, 2]}.'
    )

    @model_validator(mode="after")
    def _the_network_has_these_options(self) -> "NetworkSettings":
        check_options(self.name, self.config())
        return self

    def config(self) -> dict[str, Any]:
        """The options that are set, by name."""
        named = self.model_dump(exclude={"name", "options"}, exclude_none=True)
        return named | self.options

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        """The network, untrained."""
        return build_model(
            self.name, in_channels=in_channels, out_channels=out_channels, **self.config()
        )


class CheckpointSettings(Section):
    """What is kept of a run, to go on from."""

    every_steps: int | None = Field(
        None, ge=1, description="Steps from one checkpoint to the next; an epoch by default."
    )
    keep: int = Field(2, ge=1, description="How many are kept, and the best one beside them.")
    patience: Duration = Field(
        dt.timedelta(minutes=10),
        description="How long a storage that refuses the last checkpoint is asked again.",
    )


class TrackingSettings(Section):
    """Where a run tells how it goes."""

    kind: Kind | None = Field(
        None,
        description="mlflow, tensorboard or none; MLflow by default where it is installed and the "
        "root is a folder, else TensorBoard.",
    )
    url: Url | None = Field(
        None, description="MLflow's server or database; SQLite under the root by default."
    )
    pictures: int = Field(2, ge=0, description="Validation samples that are pictured.")
    picture_epochs: int = Field(5, ge=1, description="Epochs from one picture to the next.")


class TrainSettings(Section):
    """How a network is trained."""

    model: str | None = Field(
        None, pattern=NAME, description="Name in the model registry; the product's by default."
    )
    network: NetworkSettings = NetworkSettings()
    fine_tune: str | None = Field(
        None,
        description="Begin with the weights of a registered model, name or name/version, of any "
        "product and grid; its network, past and normalisation are taken over.",
    )
    start: dt.datetime | None = Field(None, description="Learn from frames at or after this time.")
    end: dt.datetime | None = Field(None, description="Learn from frames at or before this time.")
    past: Duration = Field(dt.timedelta(minutes=30), description="How much past the network sees.")
    future: Duration = Field(
        dt.timedelta(minutes=60), description="How far ahead it learns to forecast."
    )
    crop: int = Field(128, ge=8, description="Side of a training crop in pixels.")
    augment: AugmentSettings = AugmentSettings()
    validation_fraction: float = Field(
        0.15, ge=0, lt=1, description="Share of the sequences kept for validation."
    )
    validation_samples: int = Field(
        64, ge=1, description="Samples drawn for validation, the same ones after every epoch."
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the sequences that training never sees."
    )
    split_seed: int = Field(0, ge=0, description="Deals days to training, validation and test.")
    normalisation: Scale = Field("log", description="Scale on which rain rate is learnt.")
    loss: str = Field(
        "mse",
        description=f"Loss over observed pixels: {', '.join(LOSSES)}, or a sum such as "
        "mse+0.5*gdl.",
    )
    members: int = Field(
        8, ge=2, description="Members that a network forecasts where its loss is crps."
    )
    adversarial: float = Field(
        0.0,
        ge=0,
        description="Weight of an adversarial term beside the loss, for any network; 0.02 as "
        "published for MCNet, with loss mse+gdl.",
    )
    epochs: int = Field(20, ge=1, description="Passes over `samples_per_epoch` samples.")
    samples_per_epoch: int = Field(256, ge=1, description="Samples drawn for an epoch.")
    batch_size: int = Field(16, ge=1, description="Samples of a step, of all workers together.")
    accumulate: int = Field(
        1, ge=1, description="Pieces that a worker computes its share of a step's samples in."
    )
    learning_rate: float = Field(
        2e-3, gt=0, description="Adam's learning rate, the highest one of its schedule."
    )
    schedule: Literal["cosine", "onecycle", "constant"] = Field(
        "cosine", description="How the learning rate goes, step by step."
    )
    warm_up: float = Field(
        0.0, ge=0, lt=1, description="Share of the run in which it first rises from nothing."
    )
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of a gradient.")
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of weights that is validated and registered "
        "instead of them, such as 0.99; 0 for none.",
    )
    autocast: bool = Field(
        False,
        description="Mixed precision, bfloat16, for any network. ConvLSTM's own is faster: "
        "network.compute.",
    )
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after so many epochs without a better validation loss."
    )
    seed: int = Field(0, ge=0, description="All randomness follows from it.")
    workers: int = Field(2, ge=1, description="Ray Train workers.")
    least_workers: int | None = Field(
        None,
        ge=1,
        description="Go on with as few workers where the cluster has no room for more, and with "
        "more once it has; `workers` by default.",
    )
    loaders: int = Field(
        1, ge=0, description="Processes of each worker that read ahead; 0: it reads by itself."
    )
    gpu: bool = Field(False, description="Give each worker a GPU.")
    max_failures: int = Field(2, ge=0, description="Restarts from the newest checkpoint.")
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    baselines: tuple[str, ...] = Field(
        ("persistence", "advection", "sprog"),
        description="Forecasters that the trained one is compared with on validation events; "
        "[] for none. All there are: see `squall models`.",
    )
    score_events: int = Field(
        6, ge=0, description="Validation events, whole frames, that forecasters are compared on."
    )
    run: str | None = Field(
        None, description="Name of the run; the name of an earlier one continues it."
    )
    ray_address: str | None = Field(
        None, description="Ray cluster; RAY_ADDRESS counts too; a local one by default."
    )

    @field_validator("loss")
    @classmethod
    def _the_loss_exists(cls, loss: str) -> str:
        get_loss(loss)
        return loss

    @field_validator("baselines")
    @classmethod
    def _the_baselines_exist(cls, baselines: tuple[str, ...]) -> tuple[str, ...]:
        for name in baselines:
            if name not in BASELINES:
                raise UnknownNameError.of("baseline", name, BASELINES)
        return baselines

    @model_validator(mode="after")
    def _an_adversary_sees_one_forecast(self) -> "TrainSettings":
        if self.adversarial and (self.accumulate > 1 or self.build_loss().of_ensemble):
            raise ValueError("adversarial goes with accumulate=1 and a loss of single forecasts")
        return self

    @model_validator(mode="after")
    def _a_sample_for_every_worker(self) -> "TrainSettings":
        if not self.workers <= self.batch_size <= self.samples_per_epoch:
            raise ValueError(
                "batch_size must be at least workers, and samples_per_epoch at least batch_size"
            )
        if self.least_workers is not None and self.least_workers > self.workers:
            raise ValueError("least_workers must be at most workers")
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "TrainSettings":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation and test fraction must leave something to train on")
        return self

    def build_loss(self) -> Loss:
        """The loss, on the scale on which rain rate is learnt."""
        return get_loss(self.loss, RainNormalisation(self.normalisation))

    @property
    def out_channels(self) -> int:
        """Channels that the network puts out: one, or as many as members where the loss is crps."""
        return self.members if self.build_loss().of_ensemble else 1

    def build_network(self, in_channels: int = INPUT_CHANNELS) -> nn.Module:
        """The network, untrained: rain rate and observed mask in, rain rate or its members out."""
        return self.network.build(in_channels, self.out_channels)

    def sequence_shape(self, archive: Archive) -> SequenceShape:
        """Past, future and crop in the archive's frames and pixels."""
        return SequenceShape(
            past=len(spaced(archive.timestep, self.past, "past")),
            future=len(spaced(archive.timestep, self.future, "future")),
            crop=self.crop,
        )
