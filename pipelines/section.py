"""What a section of the settings is: frozen, strict, and a form that sends only what is filled in.

A section is both a part of `flows.settings.Settings` and a flow parameter, which Prefect shows as a
form. A form sends back the defaults that its schema names, and they would then override
`squall.toml` and the environment; so the schema tells them in the description instead.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What can be a part of a path and nothing else: no way up, no pattern."""


def tell_defaults(schema: dict[str, Any]) -> None:
    """Move every default of a JSON schema into the field's description."""
    for field in schema.get("properties", {}).values():
        default = field.pop("default", None)
        if default is not None and not isinstance(default, dict):
            field["description"] = f"{field.get('description', '')} Default: {default}.".strip()


class Section(BaseModel):
    """A section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=tell_defaults)
