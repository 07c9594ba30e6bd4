"""Parts of the stack in a folder of their own, on ports that are free."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.stack.__main__ import down
from infra.stack.parts import parts
from infra.stack.place import Place, bare_environment
from infra.stack.processes import start
from tests.ports import free_base


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A folder that any user may enter: PostgreSQL runs as another one where we are root."""
    folder = Path(tempfile.mkdtemp(prefix="squall-stack-"))
    folder.chmod(0o755)
    place = Place.open(folder, free_base())
    try:
        yield place
    finally:
        down(place, purge=True)


@pytest.fixture(scope="module")
def part(place: Place) -> Callable[[str], None]:
    """Start a part, if it does not run."""

    def begin(name: str) -> None:
        for one in parts(place):
            if one.name == name:
                start(place.folder, one, bare_environment())
                return
        raise AssertionError(name)

    return begin
