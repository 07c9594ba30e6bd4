"""Baselines by name: what any network has to beat. pysteps does the work."""

import inspect
from collections.abc import Callable
from typing import Any

from models.baselines.cascades import ANVIL, LINDA, SPROG, STEPS
from models.baselines.extrapolation import Advection, Persistence
from models.forecaster import Forecaster
from pipelines.errors import UnknownNameError

__all__ = ["BASELINES", "Advection", "Persistence", "build_baseline"]

BASELINES: dict[str, Callable[..., Forecaster]] = {
    "persistence": Persistence,
    "advection": Advection,
    "sprog": SPROG,
    "anvil": ANVIL,
    "linda": LINDA,
    "steps": STEPS,
}


def build_baseline(name: str, **options: Any) -> Forecaster:
    """The baseline called `name`; an unknown name or option is an error that names the nearest."""
    if name not in BASELINES:
        raise UnknownNameError.of("baseline", name, BASELINES)
    known = inspect.signature(BASELINES[name]).parameters
    for option in options:
        if option not in known:
            raise UnknownNameError.of(f"option of baseline {name}", option, known)
    return BASELINES[name](**options)
