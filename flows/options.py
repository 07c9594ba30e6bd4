"""What every command takes, and the settings that follow from it."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from cyclopts import Parameter


@Parameter(name="*")
@dataclass
class Common:
    """What every command takes.

    Parameters
    ----------
    root
        Where archives, models and forecasts live: a folder or URL.
    product
        Which archive, and its models and forecasts.
    set
        KEY=VALUE, any setting; repeat it for more.
    verbose
        Show logs.
    """

    root: str | None = None
    product: str | None = None
    set: Annotated[list[str], Parameter(negative=())] = field(default_factory=list)
    verbose: Annotated[bool, Parameter(negative=())] = False


def settings_of(common: Common | None, defaults: dict[str, Any] | None = None, **given: Any) -> Any:
    """The effective settings with a command's options on top."""
    from flows.settings import load_settings

    return load_settings(defaults, **overrides_of(common, **given))


def overrides_of(common: Common | None, **given: Any) -> dict[str, Any]:
    """Options of the command line as nested settings; named options win over --set."""
    from flows.layers import given_in, merged, parse_assignments

    common = common or Common()
    options = {"root": common.root, "product": common.product, **given}
    return merged(parse_assignments(common.set), given_in(options))
