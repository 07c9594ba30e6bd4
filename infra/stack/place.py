"""Where a stack keeps what it has: ports, credentials, and the environment that finds it."""

import json
import os
import secrets
import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BUCKET = "squall"
PRODUCT, LOCATION = "town", f"s3://{BUCKET}/radar"
"""What the worker makes nowcasts of where no squall.toml says so: what the demo puts there."""
PORTS = (
    "prefect",
    "s3",
    "postgres",
    "ray",
    "ray-dashboard",
    "ray-client",
    "ray-node",
    "ray-objects",
    "ray-agent",
    "ray-agent-http",
    "ray-environments",
    "ray-metrics",
    "dask",
    "dask-dashboard",
    *(
        f"s3-{part}{kind}"
        for part in ("master", "volume", "filer", "admin")
        for kind in ("", "-rpc")
    ),
    "s3-rpc",
)
RAY_WORKERS = range(40, 90)
"""Ports of Ray's workers, from the base port on."""
DEMO = {
    "SQUALL_PRODUCT": PRODUCT,
    "SQUALL_INGEST__SOURCE": "odim",
    "SQUALL_INGEST__LOCATION": LOCATION,
    "SQUALL_NOWCAST__LEAD_TIME": "30min",
}


@dataclass(frozen=True)
class Place:
    """A stack's folder, and the first of the ports that it uses, all on 127.0.0.1."""

    folder: Path
    base_port: int

    @classmethod
    def open(cls, folder: Path, base_port: int | None = None) -> "Place":
        """The one that is there, or a new one with credentials of its own."""
        folder = folder.absolute()
        known = folder / "ports.json"
        if known.exists():
            base_port = json.loads(known.read_text())["base"]
        else:
            folder.mkdir(parents=True, exist_ok=True)
            base_port = base_port or 4800
            known.write_text(json.dumps({"base": base_port}))
        return cls(folder, base_port)

    def port(self, name: str) -> int:
        """Of a server."""
        return self.base_port + PORTS.index(name)

    def url(self, name: str, scheme: str = "http") -> str:
        """Of a server."""
        return f"{scheme}://127.0.0.1:{self.port(name)}"

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Made once, kept in a file that only its owner reads, never printed."""
        path = self.folder / "secrets.json"
        if not path.exists():
            made = {name: secrets.token_hex(24) for name in ("s3-key", "s3-secret", "postgres")}
            write_private(path, json.dumps(made))
        return dict(json.loads(path.read_text()))

    @cached_property
    def ray_token(self) -> Path:
        """The file with the token that Ray asks of everyone."""
        path = self.folder / "ray-token"
        if not path.exists():
            write_private(path, secrets.token_hex(32))
        return path

    @property
    def storage(self) -> dict[str, str]:
        """The environment that finds the bucket."""
        return {
            "AWS_ACCESS_KEY_ID": self.secrets["s3-key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3-secret"],
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, **options: Any) -> Any:
        """The bucket's file system, without a cache."""
        import fsspec

        return fsspec.filesystem(
            "s3",
            key=self.secrets["s3-key"],
            secret=self.secrets["s3-secret"],
            endpoint_url=self.url("s3"),
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
            **options,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which `squall` and `prefect` work with the whole stack."""
        return self.storage | {
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.ray_token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "SQUALL_ROOT": f"s3://{BUCKET}/store",
            "SQUALL_INGEST__SCHEDULER": self.url("dask", "tcp"),
            **({} if (ROOT / "squall.toml").exists() else DEMO),
        }

    def write_environment(self) -> Path:
        """A file to `source`."""
        path = self.folder / "environment"
        lines = [f"export {name}={shlex.quote(text)}" for name, text in self.environment.items()]
        write_private(path, "\n".join(lines) + "\n")
        return path


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


def bare_environment() -> dict[str, str]:
    """This process's environment without what would lead to other servers.

    Its programs come first on the path: Ray starts a job's ``python`` by that.
    """
    foreign = ("AWS_", "PREFECT_", "RAY_", "DASK_", "SQUALL_", "PG")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept | {"PATH": path, "PYTHONUNBUFFERED": "1"}
