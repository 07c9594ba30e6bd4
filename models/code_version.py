"""Which code this is."""

import importlib.metadata
import logging
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]

log = logging.getLogger(__name__)


def code_version() -> dict[str, str]:
    """The versions of Squall, torch and Ray; in a checkout its commit, “-dirty” if it was changed.

    Ask where a run is started: workers on other machines may have the files without their history.
    """
    versions = {name: importlib.metadata.version(name) for name in ("squall", "torch", "ray")}
    if not (CHECKOUT / ".git").exists():
        return versions
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        made = subprocess.run(
            [*command, "--abbrev=40"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the commit of %s is not known: %s", CHECKOUT, error)
        return versions
    return versions | {"commit": made.stdout.strip()}
