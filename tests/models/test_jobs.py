"""Ray jobs: one for a run, its log told once, stopped when told to; what goes wrong says so."""

import http.server
import itertools
import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import jobs
from models.jobs import JobError, follow, is_elsewhere, running, stop, submit
from models.run_status import read_status
from models.training import TrainSettings
from pipelines.errors import SquallError

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own, many

LONG = TrainSettings(
    network={"hidden_channels": (4,)},
    past="15min",
    future="15min",
    crop=32,
    epochs=10_000,
    samples_per_epoch=16,
    batch_size=4,
    workers=1,
)
ROOT = Path(__file__).parents[2]


class JobsServer(http.server.ThreadingHTTPServer):
    """Answers as Ray's Jobs server does about one job, from a script of (status, log)."""

    def __init__(self, script: Iterator[tuple[str, str] | None], refuse: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.refuse, self.log = script, refuse, ""


class Handler(http.server.BaseHTTPRequestHandler):
    server: JobsServer

    def do_GET(self) -> None:
        if self.server.refuse is not None:
            self.send_error(self.server.refuse)
        elif self.path == "/api/version":
            self.answer({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})
        elif self.path.endswith("/logs"):
            self.answer({"logs": self.server.log})
        elif (now := next(self.server.script)) is None:
            self.close_connection = True  # as if the network were gone
        else:
            status, self.server.log = now
            job = {"type": "SUBMISSION", "status": status, "entrypoint": "train"}
            self.answer(job | {"message": "Job entrypoint command failed"})

    def answer(self, content: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Not on stderr."""


@pytest.fixture
def serve(monkeypatch):
    """Start a `JobsServer` with a script; its address."""
    servers = []
    monkeypatch.setattr(jobs, "POLL_S", 0.001)

    def start(script=(), refuse: int | None = None) -> str:
        server = JobsServer(iter(script), refuse)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_every_line_is_told_once_though_the_connection_is_lost(serve):
    log = "".join(f"epoch {k}\n" for k in range(5)) + "model: town/1"
    script = []
    for end in (0, 3, 8, 8, 17, 40, len(log)):
        script += [("PENDING" if end == 0 else "RUNNING", log[:end]), None, None]
    lines, states = [], []
    follow(serve([*script, ("SUCCEEDED", log)]), "job", lines.append, states.append)
    assert lines == log.splitlines()
    assert states == ["PENDING", "RUNNING", "SUCCEEDED"]


def test_a_cluster_that_stays_away_is_an_error(serve):
    script = itertools.chain([("RUNNING", "epoch 1\n")], itertools.repeat(None))
    lines = []
    with pytest.raises(JobError, match="no Ray cluster to be reached"):
        follow(serve(script), "job", lines.append, print, patience_s=0.2)
    assert lines == ["epoch 1"]


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("squall: no archive: found nothing at x\nRunning entrypoint for job x: y\n", "no archive"),
        (
            "Traceback:\nRuntimeError: out of memory\nRunning entrypoint for job x: y\n",
            "found RuntimeError: out of memory;",
        ),
        ("", "found Job entrypoint command failed;"),
    ],
)
def test_a_job_that_fails_is_one_line_with_its_cause(serve, log, cause):
    with pytest.raises(JobError, match=cause) as error:
        follow(serve([("FAILED", log)]), "job", print, print)
    assert "\n" not in str(error.value)


def test_what_cannot_be_reached_is_a_clear_error(serve):
    for address, found in {
        serve(refuse=401): "does not let us in.*RAY_AUTH_TOKEN",
        serve(refuse=403): "does not let us in.*RAY_AUTH_TOKEN",
        serve(refuse=404): "no Ray cluster to be reached",
        "http://127.0.0.1:1": "no Ray cluster to be reached.*http://127.0.0.1:1",
        "ray://head:10001": "no http:// or https:// address",
        "head:8265": "no http:// or https:// address",
    }.items():
        with pytest.raises(JobError, match=found):
            submit(address, "root", "town", LONG, "run")


def test_a_run_has_a_name_that_fits_into_an_address():
    with pytest.raises(SquallError, match="a name that no run can have"):
        submit("http://127.0.0.1:1", "root", "town", LONG, "../town")


def test_a_job_is_told_whether_a_first_version_becomes_the_champion():
    words = [jobs._entrypoint("root", "town", LONG, "run", first=first) for first in (True, False)]
    assert ["--no-first" in entrypoint for entrypoint in words] == [False, True]


def test_only_a_folder_of_this_machine_may_be_unseen_by_a_cluster_elsewhere(tmp_path):
    assert is_elsewhere("http://192.0.2.1:8265", str(tmp_path))
    assert not is_elsewhere("http://192.0.2.1:8265", "s3://bucket/root")
    assert not is_elsewhere("http://127.0.0.1:8265", str(tmp_path))
    assert not is_elsewhere("http://localhost:8265", str(tmp_path))


# A cluster ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, root, archive) -> str:
    """A root with `archive` in it that may be written to."""
    (tmp_path / "archive").symlink_to(Path(root) / "archive")
    return str(tmp_path)


def race(line, address: str, store: str, queue) -> None:
    jobs._client(address)  # the imports
    line.wait(timeout=120)
    queue.put(submit(address, store, "test", LONG, "race", labels={"who": "racer"}))


def states(address: str) -> dict[str, str]:
    return {job.submission_id: str(job.status) for job in jobs._client(address).list_jobs()}


@pytest.mark.slow
def test_two_who_submit_a_run_at_once_get_one_job_which_stops_when_told(
    ray_head, store, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:8265")  # which Ray alone would prefer
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    arguments = (spawn.Barrier(2), ray_head, store, queue)
    racers = [spawn.Process(target=race, args=arguments) for _ in range(2)]
    for racer in racers:
        racer.start()
    first, second = (queue.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join()
    assert first == second
    assert running(ray_head, who="racer") == [first]
    assert running(ray_head, who="somebody else") == []

    end = time.monotonic() + 120
    while read_status(store, "race") is None and time.monotonic() < end:
        time.sleep(0.2)
    assert submit(ray_head, store, "test", LONG, "race") == first, "it is under way"
    other = LONG.model_copy(update={"seed": 1})
    with pytest.raises(JobError, match="under way with other settings"):
        submit(ray_head, store, "test", other, "race")

    stop(ray_head, first)
    assert states(ray_head)[first] == "STOPPED"
    assert running(ray_head, who="racer") == []
    stop(ray_head, first)  # again: nothing happens
    with pytest.raises(JobError, match="was stopped"):
        follow(ray_head, first, print, print)
    again = submit(ray_head, store, "test", LONG, "race")
    assert again != first, "a run that was stopped goes on in a new job"
    stop(ray_head, again)


@pytest.mark.slow
def test_a_job_runs_the_code_of_here_with_the_variables_that_were_named(
    ray_head, tmp_path, monkeypatch
):
    for package in jobs.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "models/__init__.py").open("a") as code:
        code.write('import os\nprint("this code", os.environ["AWS_REGION"], flush=True)\n')
        code.write('assert "AWS_SECRET_ACCESS_KEY" not in os.environ\n')
    monkeypatch.setattr(jobs, "_folder", lambda package: tmp_path / package)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    job = submit(ray_head, str(tmp_path), "no such product", LONG, "nothing")
    lines: list[str] = []
    with pytest.raises(JobError, match=r"found no archive: found nothing at .*no such product"):
        follow(ray_head, job, lines.append, print)
    assert "this code eu-north-1" in lines
