"""Settings: command line > environment (`SQUALL_TRAIN__LEARNING_RATE`) > `squall.toml` > defaults.

One typed object. Each layer below gets its own frozen section of it. An unknown key or environment
variable is an error that names the nearest valid one. How they are found: `flows.layers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.layers import (
    TOML,
    Place,
    environment,
    environment_name,
    flat,
    given_in,
    keys,
    load,
    toml_settings,
)
from models.nowcasting import NowcastSettings
from models.shadowing import ShadowSettings
from models.training import TrainSettings
from models.tune import TuneSettings
from models.verdict import PromotionSettings
from models.verification import VerifySettings
from pipelines.calibration import CalibrateSettings
from pipelines.ingest import IngestSettings
from pipelines.retention import RetentionSettings
from pipelines.watch import WatchSettings


class Settings(Place):
    """All settings. Sections have the names of the flows that use them."""

    ingest: IngestSettings = IngestSettings()
    train: TrainSettings = TrainSettings()
    tune: TuneSettings = TuneSettings()
    nowcast: NowcastSettings = NowcastSettings()
    shadow: ShadowSettings = ShadowSettings()
    verify: VerifySettings = VerifySettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    promote: PromotionSettings = PromotionSettings()
    watch: WatchSettings = WatchSettings()
    retention: RetentionSettings = RetentionSettings()


def load_settings(defaults: Mapping[str, Any] | None = None, **overrides: Any) -> Settings:
    """The effective settings.

    `overrides` (command line, flow parameters) win; None, and what a section leaves unset, count as
    not given. `defaults` stand in for the built-in ones.

    Raises `SettingsError` for an unknown key or a value that does not fit.
    """
    return load(Settings, overrides, defaults)


@dataclass(frozen=True)
class Setting:
    """An effective setting and where its value came from."""

    key: str
    value: Any
    origin: str


def explain(settings: Settings, overrides: Mapping[str, Any] | None = None) -> list[Setting]:
    """Every effective setting with its origin: command line, a variable, squall.toml or default."""
    valid = keys(Settings)
    given = flat(given_in(dict(overrides or {})), leaves=valid)
    env, toml = environment(), flat(toml_settings(), leaves=valid)
    values = flat(settings.model_dump(mode="json"), leaves=valid)

    def origin(key: str) -> str:
        if key in given:
            return "command line"
        # A whole section can come as JSON in one variable.
        parents = [key.rsplit(".", n)[0] for n in range(key.count(".") + 1)]
        for name in parents:
            if name in env:
                return environment_name(name)
        return TOML if key in toml else "default"

    return [Setting(key, values[key], origin(key)) for key in valid]
