"""The real parts on one machine, without containers: what `make stack` runs.

    python -m infra.stack up | down | status | demo

An S3 server (SeaweedFS), the Prefect server on PostgreSQL with this folder's deployments and a
process worker, a Ray head with its Jobs server, a Dask scheduler with two workers. All of it is on
127.0.0.1 and keeps what it has in one folder. To work with it: source .stack/environment
"""

import argparse
import functools
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.stack.parts import POOL, STOP, parts, ray_folder
from infra.stack.place import BIN, ROOT, Place, bare_environment
from infra.stack.processes import Part, end, process_of, start
from pipelines.errors import SquallError

console = Console()


def up(place: Place) -> None:
    """Start what is down, and deploy."""
    environment = place.write_environment()
    for part in parts(place):
        begun = start(place.folder, part, bare_environment())
        console.print(f"{part.name:13} {'started' if begun else 'runs':8} {part.address}")
        if part.name == "prefect":
            deploy(place)
    console.print(f"\nTo work with it: source {environment}")
    console.print(f"The Prefect UI: {place.url('prefect')}  Ray: {place.url('ray-dashboard')}")
    console.print("Schedules wait until you resume them: prefect deployment schedule resume")


def deploy(place: Place) -> None:
    """Deploy prefect.yaml with its schedules paused, if that was not done with this one."""
    digest = hashlib.sha256((ROOT / "prefect.yaml").read_bytes()).hexdigest()
    done = place.folder / "deployed"
    if done.exists() and done.read_text() == digest:
        return
    prefect(place, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    prefect(place, "--no-prompt", "deploy", "--all")
    prefect(place, "--no-prompt", "deployment", "schedule", "pause", "--all")
    done.write_text(digest)


def prefect(place: Place, *words: str) -> str:
    """Run a command of Prefect's; its output."""
    return run(place, "prefect", *words)


def run(place: Place, program: str, *words: str) -> str:
    """Run a program of the environment with the stack; its output. Raises where it fails."""
    done = subprocess.run(
        [str(BIN / program), *words],
        env=bare_environment() | place.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SquallError(
            f"`{program} {' '.join(words)}` failed",
            found=(done.stderr or done.stdout).strip()[-2000:],
            expected="exit code 0",
            remedy=f"look at the parts: python -m infra.stack status --folder {place.folder}",
        )
    return done.stdout


def down(place: Place, *, purge: bool = False) -> None:
    """End what was started here, the last first; with `purge` its data goes too."""
    for name, stop in reversed(STOP.items()):
        ended = end(place.folder, name, stop)
        console.print(f"{name:13} {'ended' if ended else 'did not run'}")
    shutil.rmtree(ray_folder(place), ignore_errors=True)
    if purge:
        shutil.rmtree(place.folder)


def status(place: Place) -> int:
    """A table of the parts; 1 where one is down."""
    table = Table("part", "process", "answers", "address")
    well = True
    for part in parts(place):
        process = process_of(place.folder, part.name)
        told = _answers(part) if process else ""
        well &= told == "yes"
        table.add_row(part.name, str(process.pid) if process else "none", told, part.address)
    console.print(table)
    return 0 if well else 1


def _answers(part: Part) -> str:
    try:
        part.ready()
    except Exception as error:
        return type(error).__name__
    return "yes"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["up", "down", "status", "demo"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".stack")
    parser.add_argument("--base-port", type=int, help="the first of 90 ports; 4800 at first")
    parser.add_argument("--purge", action="store_true", help="down: remove the data too")
    given = parser.parse_args()
    place = Place.open(given.folder, given.base_port)
    try:
        if given.what == "down":
            down(place, purge=given.purge)
        elif given.what == "status":
            return status(place)
        else:
            up(place)
            if given.what == "demo":
                from infra.stack.demo import demo

                demo(place, functools.partial(run, place))
                deploy(place)
    except SquallError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
