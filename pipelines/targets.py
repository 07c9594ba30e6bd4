"""Where exports go: nothing may be there, and what is written shows only when it is complete."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines import storage
from pipelines.errors import ExistsError


def refuse_existing(target: str) -> None:
    """Raise `ExistsError` where something is at a path or URL."""
    if storage.exists(target):
        raise ExistsError(
            "there is something at the target",
            found=storage.display(target),
            expected="a new file, folder or URL",
            remedy="name another target, or remove that one",
        )


@contextlib.contextmanager
def new_target(target: str) -> Iterator[Path]:
    """A path at which to write a file or folder that takes the target's place when all is done.

    Beside the target, where that is local, so that it can be renamed; elsewhere a file (no folder)
    is uploaded at once. Nothing of a body that raises is left behind. Raises `ExistsError` where
    something is at the target.
    """
    refuse_existing(target)
    final = storage.local_path(target)
    if final is not None:
        final.parent.mkdir(parents=True, exist_ok=True)
    name = target.rstrip("/").rsplit("/", 1)[-1]
    beside = None if final is None else final.parent
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=beside) as folder:
        staged = Path(folder) / name
        yield staged
        refuse_existing(target)
        if final is not None:
            staged.rename(final)
        else:
            fs, key = storage.filesystem(target)
            fs.put_file(str(staged), key)
