"""Settings: command line > environment (`SQUALL_TRAIN__LEARNING_RATE`) > `squall.toml` > defaults.

One typed object. Each layer below gets its own frozen section of it. An unknown key or environment
variable is an error that names the nearest valid one.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from models.prediction import NowcastSettings
from models.training import TrainSettings
from models.tune import TuneSettings
from models.verification import VerifySettings
from pipelines.errors import SquallError
from pipelines.ingest import IngestSettings
from pipelines.retention import RetentionSettings

PREFIX, DELIMITER, TOML = "SQUALL_", "__", "squall.toml"


class SettingsError(SquallError):
    """A setting that does not exist, or a value that it does not take."""


class Settings(BaseSettings):
    """All settings. Sections have the names of the flows that use them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        toml_file=TOML,
        frozen=True,
        extra="forbid",
    )

    root: str = Field(
        "squall-store", description="Where archives, models and forecasts live: a folder or URL."
    )
    product: str = Field(
        "radar", pattern=r"^[A-Za-z0-9._-]+$", description="Which archive, and its forecasts."
    )
    ingest: IngestSettings = IngestSettings()
    train: TrainSettings = TrainSettings()
    tune: TuneSettings = TuneSettings()
    nowcast: NowcastSettings = NowcastSettings()
    verify: VerifySettings = VerifySettings()
    retention: RetentionSettings = RetentionSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, TOML; nothing else."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(defaults: Mapping[str, Any] | None = None, **overrides: Any) -> Settings:
    """The effective settings.

    `overrides` (command line, flow parameters) win; None, and what a section leaves unset, count as
    not given. `defaults` stand in for the built-in ones.

    Raises `SettingsError` for an unknown key or a value that does not fit.
    """
    given = _given(overrides)
    valid = keys()
    toml = _flat(toml_settings(), leaves=valid)
    for name in _flat(given, leaves=valid):
        _check(name, valid, "setting", str)
    for name in toml:
        _check(name, valid, f"key in {TOML}", str)
    for name in environment():
        _check(name, valid, "environment variable", environment_name)
    _check_prefixes()
    set_by_user = {*_flat(given, leaves=valid), *toml, *environment()}
    for key, value in _flat(dict(defaults or {}), leaves=valid).items():
        if key not in set_by_user:
            given = merged(given, nested(key, value))
    try:
        return Settings(**given)
    except SourceError as error:
        raise SettingsError(
            "an environment variable does not fit",
            found=str(error),
            expected="JSON for lists and sections, such as [32, 32]",
            remedy="mend it; `squall doctor` lists the settings",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        remedy = f"change {key} ({environment_name(key)} in the environment, {key} in {TOML})"
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, SquallError):  # which says more than pydantic makes of it
            raise SettingsError(
                f"setting {key} does not fit: {cause.problem}",
                found=cause.found,
                expected=cause.expected,
                remedy=f"{remedy}: {cause.remedy}",
            ) from error
        raise SettingsError(
            f"setting {key} does not fit",
            found=repr(first["input"]),
            expected=first["msg"].removeprefix("Value error, "),
            remedy=remedy,
        ) from error


@dataclass(frozen=True)
class Setting:
    """An effective setting and where its value came from."""

    key: str
    value: Any
    origin: str


def explain(settings: Settings, overrides: Mapping[str, Any] | None = None) -> list[Setting]:
    """Every effective setting with its origin: command line, a variable, squall.toml or default."""
    valid = keys()
    given = _flat(_given(dict(overrides or {})), leaves=valid)
    env, toml = environment(), _flat(toml_settings(), leaves=valid)
    values = _flat(settings.model_dump(mode="json"), leaves=valid)

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


def keys(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """All settings' keys, dotted: root, ingest.source, train.network.patch_size, …"""
    names: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += keys(annotation, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def environment_name(key: str) -> str:
    """The environment variable of a key: train.learning_rate → SQUALL_TRAIN__LEARNING_RATE."""
    return PREFIX + key.upper().replace(".", DELIMITER)


def environment() -> dict[str, str]:
    """What the environment sets, by key; keys that do not exist too."""
    return {
        name[len(PREFIX) :].lower().replace(DELIMITER, "."): value
        for name, value in os.environ.items()
        if name.upper().startswith(PREFIX)
    }


def toml_settings() -> dict[str, Any]:
    """What `squall.toml` in the working directory sets; nothing where there is none."""
    path = Path(TOML)
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{TOML} is not TOML",
            found=str(error),
            expected='lines such as product = "knmi" and sections such as [train]',
            remedy=f"mend {path.resolve()}",
        ) from error


def _given(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides without what was not given."""
    given: dict[str, Any] = {}
    for name, value in overrides.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        if isinstance(value, Mapping):
            value = _given(dict(value))
        if value is not None and value != {}:
            given[name] = value
    return given


def nested(key: str, value: Any) -> dict[str, Any]:
    """train.epochs, 5 → {"train": {"epochs": 5}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested settings in one; the second counts where both say something."""
    result = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`train.epochs=5` and the like, as given to --set, as nested settings. Values may be JSON."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(
                "not an assignment",
                found=repr(assignment),
                expected="KEY=VALUE, such as train.epochs=5",
                remedy="write it so; `squall doctor` lists the keys",
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings = merged(settings, nested(key.strip(), value))
    return settings


def _flat(
    nested: Mapping[str, Any], prefix: str = "", leaves: Iterable[str] = ()
) -> dict[str, Any]:
    """Nested settings by dotted key. Mappings named in `leaves` are values themselves."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in leaves:
            flat |= _flat(value, f"{key}.", leaves)
        else:
            flat[key] = value
    return flat


def _check_prefixes() -> None:
    """A misspelt prefix would be ignored silently: SQAULL_ROOT."""
    for name in os.environ:
        prefix, underscore, rest = name.upper().partition("_")
        near = difflib.get_close_matches(prefix + underscore, [PREFIX], n=1, cutoff=0.8)
        if near and prefix + underscore != PREFIX:
            raise SettingsError(
                "unknown environment variable",
                found=name,
                expected=f"the prefix {PREFIX}",
                remedy=f"did you mean {PREFIX}{rest}?",
            )


def _check(key: str, valid: list[str], kind: str, shown: Any) -> None:
    sections = {name.rsplit(".", n)[0] for name in valid for n in range(1, name.count(".") + 1)}
    if key in valid or key in sections:
        return
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    raise SettingsError(
        f"unknown {kind}",
        found=shown(key),
        expected="a setting that `squall doctor` lists",
        remedy=f"did you mean {shown(near[0])}?",
    )
