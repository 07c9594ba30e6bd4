"""Training as a Ray job: submit it to a cluster, follow its log, stop it.

A job runs ``python -m models.train`` on the cluster's head, with the code of this checkout: the
packages `pipelines` and `models` are uploaded and come before any that are installed there. What
else they import has to be installed on every node, and every node has to see the root.

A job's id follows from the root and the name of its run. So whoever submits the same run again,
after a crash or beside another, finds the job that is under way; Ray refuses the second one of two
that are submitted at once. Only a run whose job failed or was stopped gets another job, which goes
on from the run's newest checkpoint.
"""

import contextlib
import hashlib
import importlib.util
import ipaddress
import itertools
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from models.training import TrainSettings
from pipelines import storage
from pipelines.errors import SquallError

PACKAGES = ("pipelines", "models")
ENVIRONMENT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that a job gets from here where they are set: where the store is, and no secrets."""
STOP_WAIT_S = 10
"""How long a job may take to end after SIGTERM, before SIGKILL."""
POLL_S = 1.0
LOG_CHARACTERS_PER_S = 20_000
"""Ray gives a job's log only as a whole: a long one is asked for less often."""

RAYS_OWN = "Running entrypoint for job"
"""A line that Ray writes into a job's log, sometimes after the job's own."""
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")


class JobError(SquallError):
    """A cluster that cannot be reached, or a job that did not succeed."""


def submit(
    address: str,
    root: str,
    product: str,
    settings: TrainSettings,
    run: str,
    *,
    first: bool = True,
    environment: Iterable[str] = ENVIRONMENT,
    labels: Mapping[str, str] | None = None,
) -> str:
    """Submit the training of a run, or find the job that does it already; the submission id.

    Parameters
    ----------
    address : of the cluster's dashboard, such as http://HEAD:8265
    first : whether a first version becomes the champion: see `models.train.train_model`
    environment : names of variables that the job gets with their values of here, where they are
        set; whoever can see the cluster's jobs can see them
    labels : kept with the job; see `running`

    Raises `JobError` where the cluster cannot be reached or does the run with other settings.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise SquallError(
            "a name that no run can have",
            found=repr(run),
            expected="letters, digits, dots, dashes and underscores",
            remedy="change train.run",
        )
    client = _client(address)
    root = storage.normalise(root)
    entrypoint = _entrypoint(root, product, settings, run, first=first)
    for submission_id in _ids(root, run):
        job = _job(client, submission_id)
        if job is None:
            try:
                return str(
                    client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=submission_id,
                        runtime_env=_runtime_env(environment),
                        metadata=dict(labels or {}),
                    )
                )
            except RuntimeError:
                job = _job(client, submission_id)  # another submitter came first
                if job is None:
                    raise
        if not job.status.is_terminal() and job.entrypoint != entrypoint:
            raise JobError(
                f"run {run} is under way with other settings",
                found=job.entrypoint,
                expected=entrypoint,
                remedy=f"stop it (`ray job stop --address {address} {submission_id}`), "
                "or name another run with train.run",
            )
        if job.entrypoint == entrypoint and job.status not in ("FAILED", "STOPPED"):
            return submission_id
    raise AssertionError("the ids do not end")


def follow(
    address: str,
    submission_id: str,
    on_line: Callable[[str], None],
    on_status: Callable[[str], None],
    *,
    patience_s: float = 120.0,
) -> None:
    """Hand on every line of a job's log, and each new status, until it has succeeded.

    The connection may be lost for up to `patience_s`; no line is lost or told twice.

    Raises `JobError` where the job fails or is stopped, with the cause from its log.
    """
    client = _client(address)
    told, last, heard = 0, None, time.monotonic()
    while True:
        try:
            job = client.get_job_info(submission_id)  # first, so that the last log is whole
            log = client.get_job_logs(submission_id)
        except (OSError, RuntimeError) as error:
            if time.monotonic() - heard > patience_s:
                raise _unreachable(address, error) from error
            time.sleep(POLL_S)
            continue
        heard = time.monotonic()
        status = job.status
        if status != last:
            on_status(str(status))
            last = status
        end = len(log) if status.is_terminal() else log.rfind("\n") + 1
        for line in log[told:end].splitlines():
            on_line(line)
        told = max(told, end)
        if status == "SUCCEEDED":
            return
        if status.is_terminal():
            raise JobError(
                f"the job {submission_id} {'was stopped' if status == 'STOPPED' else 'failed'}",
                found=_cause(log) or job.message,
                expected="a trained model",
                remedy=f"see `ray job logs --address {address} {submission_id}`; the same run "
                "(train.run) goes on from its newest checkpoint",
            )
        time.sleep(max(POLL_S, len(log) / LOG_CHARACTERS_PER_S))


def stop(address: str, submission_id: str) -> None:
    """Stop a job and wait until it has stopped; nothing happens where it has ended already."""
    client = _client(address)
    client.stop_job(submission_id)
    end = time.monotonic() + 3 * STOP_WAIT_S
    while not client.get_job_info(submission_id).status.is_terminal():
        if time.monotonic() > end:
            raise JobError(
                f"the job {submission_id} does not stop",
                found=f"running {3 * STOP_WAIT_S} s after it was told to stop",
                expected="a stopped job",
                remedy=f"look at the cluster's dashboard, {address}",
            )
        time.sleep(POLL_S / 2)


def running(address: str, **labels: str) -> list[str]:
    """The ids of the jobs with these labels that have not ended."""
    return [
        job.submission_id
        for job in _client(address).list_jobs()
        if not job.status.is_terminal() and labels.items() <= (job.metadata or {}).items()
    ]


def is_elsewhere(address: str, root: str) -> bool:
    """Whether the root is a folder here and the cluster's head may be another machine."""
    if storage.local_path(root) is None:
        return False
    try:
        found = socket.getaddrinfo(urlsplit(address).hostname, None)
    except OSError:
        return True
    return not all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def _ids(root: str, run: str) -> Iterator[str]:
    """The ids of a run's jobs: Ray takes each of them once."""
    base = f"{run}-{hashlib.sha256(storage.join(root, 'runs', run).encode()).hexdigest()[:8]}"
    for attempt in itertools.count(1):
        yield base if attempt == 1 else f"{base}-{attempt}"


def _entrypoint(root: str, product: str, settings: TrainSettings, run: str, *, first: bool) -> str:
    ours = settings.model_copy(update={"run": None, "ray_address": None})
    given = {"root": root, "product": product, "run": run}
    words = ["python", "-m", "models.train"]
    for name, value in given.items():
        words += [f"--{name}", value]
    words += [] if first else ["--no-first"]
    return shlex.join([*words, "--settings", ours.model_dump_json(exclude_defaults=True)])


def _runtime_env(environment: Iterable[str]) -> dict[str, Any]:
    passed = {name: os.environ[name] for name in environment if name in os.environ}
    return {
        "py_modules": [str(_folder(package)) for package in PACKAGES],
        "excludes": ["__pycache__"],
        "env_vars": passed
        | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _job(client: Any, submission_id: str) -> Any | None:
    """What the cluster knows of a job; None where it knows none."""
    try:
        return client.get_job_info(submission_id)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def _cause(log: str) -> str:
    """The line of a log that says why a job failed: Squall's own, or else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(RAYS_OWN)]
    own = [line.removeprefix("squall: ") for line in lines if line.startswith("squall: ")]
    return (own or lines or [""])[-1]


def _client(address: str) -> Any:
    """A client of the cluster at `address`, which Ray alone would let RAY_ADDRESS override."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise _unreachable(address, "no http:// or https:// address")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:  # each package that is uploaded, on stderr
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _variable("RAY_API_SERVER_ADDRESS", address):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise JobError(
            "the cluster does not let us in",
            found=str(error).partition("\n")[0],
            expected="the token that the cluster was started with",
            remedy="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(address, error) from error


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _unreachable(address: str, reason: object) -> JobError:
    return JobError(
        "no Ray cluster to be reached",
        found=f"{address}: {str(reason).rstrip('.')}",
        expected="the dashboard of a cluster's head, such as http://HEAD:8265",
        remedy="check address and port; `ray start --head --dashboard-host=0.0.0.0` opens it",
    )
