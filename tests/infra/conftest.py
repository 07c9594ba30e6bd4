"""Parts of the stack in a folder of their own, on ports that are free."""

import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.stack.parts import parts, ray_folder
from infra.stack.place import Place, bare_environment
from infra.stack.processes import end, start


def free_base(width: int = 90) -> int:
    """A port from which on so many are free; another one for who asks at the same time."""
    for base in random.sample(range(21000, 31000, 100), 50):
        if all(_free(base + number) for number in range(width)):
            return base
    raise AssertionError("no free ports")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A folder that any user may enter: PostgreSQL runs as another one where we are root."""
    folder = Path(tempfile.mkdtemp(prefix="squall-stack-"))
    folder.chmod(0o755)
    place = Place.open(folder, free_base())
    try:
        yield place
    finally:
        for path in (folder / "run").glob("*.json"):
            end(folder, path.stem)
        shutil.rmtree(ray_folder(place), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


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
