"""The whole loop on the stack: what `make demo-stack` runs.

Radar files come into a bucket, are taken in on the Dask scheduler, a network is trained as a Ray
job with its checkpoints in the bucket, the deployed schedule makes nowcasts as further files come,
each published one triggers a verification, and stock xarray reads the forecasts from s3://.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console

from flows.demo import SYNTHETIC, write_synthetic
from flows.layers import flat
from infra.stack.parts import answer
from infra.stack.place import LOCATION, PRODUCT, Place
from infra.stack.processes import log_of
from pipelines.errors import SquallError

console = Console()
WITHIN_S = 420.0
INTERVAL_S = 20
"""So often the demo has the nowcast deployment look for frames: users have five minutes."""


def demo(place: Place, run: Callable[..., str], **train: Any) -> xr.Dataset:
    """Do it, say what is done, and return the newest forecast as stock xarray reads it.

    Parameters
    ----------
    run : a program of the environment with the stack: its output, an error where it fails
    train : settings of the training other than the demo's
    """
    root = place.environment["SQUALL_ROOT"]
    files = place.bucket()
    with tempfile.TemporaryDirectory() as folder:
        location, train_frames = write_synthetic(Path(folder))
        made = sorted(Path(location).iterdir())
        times = sorted({path.name[-16:] for path in made})
        history = [path for path in made if path.name[-16:] in times[:train_frames]]
        rest = [path for path in made if path not in history]
        say(f"{len(history)} radar files into {LOCATION}")
        put(files, history)
        say("ingest, on the Dask scheduler")
        console.print(run("squall", "ingest", LOCATION, "--source", "odim"))
        say("train, as a Ray job; checkpoints, weights and scores go to the bucket")
        sets = [
            f"--set={name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in flat(SYNTHETIC["train"] | train, "train.").items()
        ]
        job = ("--submit", place.url("ray-dashboard"), "--set=train.workers=1")
        console.print(run("squall", "train", *job, *sets).strip())
        say(f"nowcasts by the deployed schedule, every {INTERVAL_S} s; {len(rest)} more files come")
        deployment = ("deployment", "schedule")
        run("prefect", *deployment, "create", "nowcast/nowcast", f"--interval={INTERVAL_S}")
        try:
            put(files, rest[: len(rest) // 2])
            first = wait(lambda: latest(files, root), "a forecast", place)
            put(files, rest[len(rest) // 2 :])
            newest = wait(lambda: later(latest(files, root), first), "a later forecast", place)
            say("verification, triggered by the forecast that was published")
            scores = f"{root}/scores/{PRODUCT}/_skill.json".removeprefix("s3://")
            wait(lambda: files.exists(scores), "scores", place)
        finally:
            run("prefect", "--no-prompt", *deployment, "clear", "nowcast/nowcast", "-y")
            (place.folder / "deployed").unlink(missing_ok=True)  # so that it gets its own back
    url = f"{root}/forecasts/{PRODUCT}/{newest['forecast']}"
    say(f"xr.open_zarr({url!r})")
    options = {key: files.storage_options[key] for key in ("key", "secret", "client_kwargs")}
    forecast = xr.open_zarr(url, storage_options=options | {"endpoint_url": place.url("s3")})
    console.print(str(forecast))
    runs = json.loads(answer(f"{place.url('prefect')}/api/flow_runs/filter", b"{}"))
    done = [one for one in runs if one["auto_scheduled"] and one["state_type"] == "COMPLETED"]
    console.print(f"\n{len(done)} scheduled runs completed; look at {place.url('prefect')}/runs")
    return forecast


def say(text: str) -> None:
    """A step of the demo."""
    console.rule(f"[bold]{text}", align="left")


def put(files: Any, paths: list[Path]) -> None:
    """Upload files to the location, as a provider delivers them."""
    for path in paths:
        files.put_file(str(path), f"{LOCATION.removeprefix('s3://')}/{path.name}")


def latest(files: Any, root: str) -> dict[str, str] | None:
    """What latest.json says; None where it is not there yet."""
    url = f"{root}/forecasts/{PRODUCT}/latest.json".removeprefix("s3://")
    return json.loads(files.cat_file(url)) if files.exists(url) else None


def later(one: dict[str, str] | None, than: dict[str, str]) -> dict[str, str] | None:
    """A forecast that is newer than another."""
    return one if one is not None and one["init_time"] > than["init_time"] else None


def wait(found: Callable[[], Any], what: str, place: Place) -> Any:
    """What comes in time; an error that says where to look if nothing does."""
    limit = time.monotonic() + WITHIN_S
    while not (it := found()):
        if time.monotonic() > limit:
            raise SquallError(
                f"the stack has made no {what.removeprefix('a ')}",
                found=f"none after {WITHIN_S:.0f} s",
                expected=what,
                remedy=f"look at the runs in {place.url('prefect')}/runs and at "
                f"{log_of(place.folder, 'worker')}",
            )
        time.sleep(2)
    return it
