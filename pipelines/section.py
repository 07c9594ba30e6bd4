"""What a section of the settings is: frozen, strict, and a form that sends only what is filled in.

A section is both a part of `flows.settings.Settings` and a flow parameter, which Prefect shows as a
form. A form sends back the defaults that its schema names, and they would then override
`squall.toml` and the environment; so the schema tells them in the description instead.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from pipelines.errors import CREDENTIAL, SquallError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What can be a part of a path and nothing else: no way up, no pattern."""


def no_credentials(url: str) -> str:
    """A URL as it is. Raises where it has a password: settings are shown to everyone."""
    if CREDENTIAL.search(url):
        raise SquallError(
            "a credential in a URL",
            found="a password before an @",
            expected="a URL without: settings are shown in logs, in the Prefect UI and by doctor",
            remedy="give it by the variables of its client: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    return url


Url = Annotated[str, AfterValidator(no_credentials)]
"""A URL or path without credentials."""


def tell_defaults(schema: dict[str, Any]) -> None:
    """Move every default of a JSON schema into the field's description."""
    for field in schema.get("properties", {}).values():
        default = field.pop("default", None)
        if default is not None and not isinstance(default, dict):
            field["description"] = f"{field.get('description', '')} Default: {default}.".strip()


class Section(BaseModel):
    """A section of the settings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra=tell_defaults, hide_input_in_errors=True
    )
