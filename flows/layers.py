"""Where settings come from: command line > environment > `squall.toml` > defaults, for any of them.

`flows.settings` has all that there are. A command that must start fast, and so without the sections
that bring torch, takes a model with fewer of them.
"""

import difflib
import glob
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from pipelines.errors import SquallError
from pipelines.section import NAME, Url

PREFIX, DELIMITER, TOML = "SQUALL_", "__", "squall.toml"


class SettingsError(SquallError):
    """A setting that does not exist, or a value that it does not take."""


class Place(BaseSettings):
    """Which product, and where its stores are: what every command needs to know."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        toml_file=TOML,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    root: Url = Field(
        "squall-store", description="Where archives, models and forecasts live: a folder or URL."
    )
    product: str = Field("radar", pattern=NAME, description="Which archive, and its forecasts.")

    @field_validator("root")
    @classmethod
    def _is_no_pattern(cls, root: str) -> str:
        if "://" in root and glob.has_magic(root):  # fsspec would look for what matches
            raise ValueError("a URL has no *, ? or [")
        return root

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


P = TypeVar("P", bound=Place)


def load(
    model: type[P],
    overrides: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    others: Iterable[str] = (),
) -> P:
    """The effective settings.

    `overrides` (command line, flow parameters) win; None, and what a section leaves unset, count as
    not given. `defaults` stand in for the built-in ones. `others` are sections that exist but are
    not looked at: the model has to ignore them.

    Raises `SettingsError` for an unknown key or a value that does not fit.
    """
    given = given_in(dict(overrides))
    valid = keys(model)
    toml = flat(toml_settings(), leaves=valid)
    for name in flat(given, leaves=valid):
        _check(name, valid, others, "setting", str)
    for name in toml:
        _check(name, valid, others, f"key in {TOML}", str)
    for name in environment():
        _check(name, valid, others, "environment variable", environment_name)
    _check_prefixes()
    set_by_user = {*flat(given, leaves=valid), *toml, *environment()}
    for key, value in flat(dict(defaults or {}), leaves=valid).items():
        if key not in set_by_user:
            given = merged(given, nested(key, value))
    try:
        return model(**given)
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


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a model, dotted: root, ingest.source, train.network.patch_size, …"""
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


def given_in(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides without what was not given."""
    given: dict[str, Any] = {}
    for name, value in overrides.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        if isinstance(value, Mapping):
            value = given_in(dict(value))
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


def flat(nested: Mapping[str, Any], prefix: str = "", leaves: Iterable[str] = ()) -> dict[str, Any]:
    """Nested settings by dotted key. Mappings named in `leaves` are values themselves."""
    by_key: dict[str, Any] = {}
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in leaves:
            by_key |= flat(value, f"{key}.", leaves)
        else:
            by_key[key] = value
    return by_key


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


def _check(key: str, valid: list[str], others: Iterable[str], kind: str, shown: Any) -> None:
    if key.partition(".")[0] in others:
        return
    sections = {name.rsplit(".", n)[0] for name in valid for n in range(1, name.count(".") + 1)}
    if key in valid or key in sections:
        return
    near = difflib.get_close_matches(key, [*valid, *others], n=1, cutoff=0.0)
    raise SettingsError(
        f"unknown {kind}",
        found=shown(key),
        expected="a setting that `squall doctor` lists",
        remedy=f"did you mean {shown(near[0])}?",
    )
