"""What is installed, reachable and configured, with a remedy for what is not."""

import importlib.metadata
import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from flows.settings import Settings
from models.registry import champion
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.errors import SquallError
from pipelines.forecasts import latest_init_time
from pipelines.sources import get_source
from pipelines.times import time_text

State = Literal["ok", "note", "fail"]
PACKAGES = (
    "torch",
    "ray",
    "prefect",
    "xarray",
    "zarr",
    "dask",
    "fsspec",
    "h5py",
    "pyproj",
    "pysteps",
)
TIMEOUT_S = 5


@dataclass(frozen=True)
class Check:
    """One thing looked at. A note is no fault, but worth knowing; a fail has a remedy."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Check]:
    """All checks, one after the other; none of them raises."""
    for name, check in CHECKS.items():
        try:
            yield check(settings)
        except SquallError as error:
            yield Check(name, "fail", f"{error.problem}: {error.found}", error.remedy)
        except Exception as error:
            yield Check(name, "fail", f"{type(error).__name__}: {error}", f"make sure {name} works")


def _python(_: Settings) -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _packages(_: Settings) -> Check:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return Check("packages", "fail", f"{name} is missing", "make .venv again: make test")
    return Check("packages", "ok", ", ".join(f"{k} {v}" for k, v in versions.items()))


def _accelerator(settings: Settings) -> Check:
    import torch

    count = torch.cuda.device_count()
    if count:
        return Check("accelerator", "ok", f"{count} × {torch.cuda.get_device_name(0)}")
    if settings.train.gpu:
        remedy = "install a CUDA build of torch, or set train.gpu to false"
        return Check("accelerator", "fail", "train.gpu is set, but torch sees no GPU", remedy)
    return Check("accelerator", "ok", f"CPU, {os.cpu_count()} cores")


def _root(settings: Settings) -> Check:
    existed = storage.exists(settings.root)
    probe = storage.join(settings.root, ".doctor")
    storage.write_bytes(probe, b"squall")
    readable = storage.read_bytes(probe) == b"squall"
    storage.remove(probe if existed else settings.root)
    shown = storage.display(storage.normalise(settings.root))
    if not readable:
        return Check("root", "fail", f"{shown} gives back something else", "check the store")
    return Check("root", "ok", f"{shown} can be written and read")


def _location(settings: Settings) -> Check:
    source = get_source(settings.ingest.source)
    if settings.ingest.location is None:
        return Check("location", "note", "not set", "set ingest.location for scheduled nowcasts")
    files = source.find(settings.ingest.location)
    newest = time_text(files[-1].valid_time)
    return Check("location", "ok", f"{len(files)} {source.name} files, the newest of {newest}")


def _archive(settings: Settings) -> Check:
    url = archive_url(settings.root, settings.product)
    if not storage.exists(url):
        return Check("archive", "note", f"none of {settings.product!r} yet", "run `squall ingest`")
    times = Archive(url).usable_times()
    newest = time_text(times[-1]) if len(times) else "none"
    return Check("archive", "ok", f"{len(times)} frames, the newest of {newest}")


def _model(settings: Settings) -> Check:
    name = settings.train.model or settings.product
    try:
        return Check("model", "ok", f"{name}/{champion(settings.root, name)}")
    except SquallError:
        return Check("model", "note", f"none called {name!r} yet", "run `squall train`")


def _forecasts(settings: Settings) -> Check:
    newest = latest_init_time(settings.root, settings.product)
    if newest is None:
        return Check("forecasts", "note", "none yet", "run `squall nowcast`")
    return Check("forecasts", "ok", f"the newest of {time_text(newest)}")


def _prefect(_: Settings) -> Check:
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return Check("prefect", "ok", "embedded: a temporary server for each command")
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=TIMEOUT_S):
            return Check("prefect", "ok", f"{url} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        remedy = "start it (`prefect server start`) or unset PREFECT_API_URL"
        return Check("prefect", "fail", f"{url}: {error}", remedy)


def _ray(settings: Settings) -> Check:
    address = settings.train.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None:
        return Check("ray", "ok", "embedded: a local cluster for each training")
    return Check("ray", "note", f"{address}, not tried", f"try it: ray status --address {address}")


def _dask(settings: Settings) -> Check:
    address = settings.ingest.scheduler
    if address is None:
        return Check("dask", "ok", f"embedded: {settings.ingest.workers} worker processes")
    from distributed import Client

    with Client(address, timeout=TIMEOUT_S) as client:
        workers = len(client.scheduler_info()["workers"])
    if not workers:
        return Check("dask", "fail", f"{address} has no workers", f"dask worker {address}")
    return Check("dask", "ok", f"{address}, {workers} workers")


CHECKS: dict[str, Callable[[Settings], Check]] = {
    "python": _python,
    "packages": _packages,
    "accelerator": _accelerator,
    "root": _root,
    "location": _location,
    "archive": _archive,
    "model": _model,
    "forecasts": _forecasts,
    "prefect": _prefect,
    "ray": _ray,
    "dask": _dask,
}
