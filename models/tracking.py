"""What a run tells while it trains: to MLflow, to TensorBoard, or to nobody.

    tracker = open_tracker(None, None, root, "knmi", run)
    tracker.settings({"train": settings.model_dump(mode="json"), "code": code_version()})
    tracker.metrics(40, {"loss": 0.02, "learning_rate": 1e-3})
    tracker.end()

A tracker works on a thread of its own, and a store that fails costs what was to be told and a
warning: training neither waits nor stops for it.
"""

import importlib.util
import io
import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from pipelines import storage
from pipelines.errors import SquallError

log = logging.getLogger(__name__)

Kind = Literal["mlflow", "tensorboard", "none"]
MOST_WAITING = 1000
"""Calls that wait for a slow store; more than that are dropped."""
END_S = 60.0
"""How long the end of a run waits for what is still to be told."""
QUIET_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # DO_NOT_TRACK=1 is not enough: MLflow wants "true"
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@runtime_checkable
class Tracker(Protocol):
    """Where a run tells how it goes. After a resume the steps since its checkpoint come again."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """All that the run follows from, nested, of JSON values: settings, code, archive."""
        ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name: letters, digits and any of ``_-./ :``, such as ``gpu_memory_mb``."""
        ...

    def picture(self, step: int, name: str, png: bytes) -> None:
        """A picture, in PNG; one of the same name at every step can be leafed through."""
        ...

    def end(self, *, failed: bool = False) -> None:
        """No more is to come."""
        ...


def open_tracker(
    kind: Kind | None, url: str | None, root: str, experiment: str, run: str
) -> Tracker:
    """The tracker of a run; one of a name that the experiment knows is continued.

    mlflow       a server, or a database, at `url`; by default SQLite in `root`/mlflow.db, with
                 artifacts in `root`/mlflow-artifacts
    tensorboard  event files under `root`/runs/`run`/tensorboard
    none         nothing
    None         mlflow where a `url` says so, or where it is installed and `root` is a local
                 folder; tensorboard elsewhere

    Raises `SquallError` for what can never work; a store that is not there now is a warning.
    """
    folder = storage.local_path(root)
    installed = importlib.util.find_spec("mlflow") is not None
    if kind is None:
        kind = "mlflow" if url or (installed and folder) else "tensorboard"
    if kind == "none":
        return NoTracker()
    if kind == "tensorboard":
        place = storage.join(root, "runs", run, "tensorboard")
        return Sheltered(storage.display(place), lambda: TensorBoardTracker(place))
    if not installed:
        raise SquallError(
            "runs cannot be tracked with MLflow",
            found="no package mlflow",
            expected="mlflow 3.10 or newer",
            remedy='pip install "squall[tracking]", or track with tensorboard or none',
        )
    if url is None and folder is None:
        raise SquallError(
            "MLflow's SQLite database needs a local folder",
            found=storage.display(root),
            expected="a local root, or the URL of an MLflow server",
            remedy="name a server, or track with tensorboard, which can write there",
        )
    store = url or f"sqlite:///{folder}/mlflow.db"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    artifacts = None if store.startswith("http") else storage.join(root, "mlflow-artifacts")
    return Sheltered(store, lambda: MLflowTracker(store, artifacts, experiment, run))


class NoTracker:
    """Tells nobody."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""

    def end(self, *, failed: bool = False) -> None:
        """See `Tracker`."""


class MLflowTracker:
    """A run in an MLflow store.

    Parameters
    ----------
    store : tracking URI
    artifacts : where those of a new experiment go; where the server says, if None
    """

    def __init__(self, store: str, artifacts: str | None, experiment: str, run: str) -> None:
        for name, value in QUIET_MLFLOW.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=store)
        known = self._client.get_experiment_by_name(experiment)
        self._experiment = (
            known.experiment_id
            if known
            else self._client.create_experiment(experiment, artifact_location=artifacts)
        )
        earlier = self._client.search_runs([self._experiment], f'run_name = "{run}"', max_results=1)
        found = earlier[0] if earlier else self._client.create_run(self._experiment, run_name=run)
        self._id = found.info.run_id
        self._params = dict(found.data.params)
        self._client.update_run(self._id, status="RUNNING")

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`. MLflow's parameters cannot change: what a resumed run changes is a tag."""
        from mlflow.entities import Param, RunTag

        self._client.log_dict(self._id, dict(values), "settings.json")
        told = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in flat(values).items()
        }
        new = [Param(key, value) for key, value in told.items() if key not in self._params]
        changed = [
            RunTag(f"resumed.{key}", value)
            for key, value in told.items()
            if self._params.get(key, value) != value
        ]
        self._client.log_batch(self._id, params=new, tags=changed)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        numbers = [Metric(name, float(value), now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=numbers)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""
        image = Image.open(io.BytesIO(png))
        self._client.log_image(self._id, image, key=name, step=step, synchronous=True)

    def end(self, *, failed: bool = False) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class TensorBoardTracker:
    """Event files in a folder, local or not; TensorBoard reads all files of a folder as one run."""

    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory

        register_writer_factory("squall+fsspec", _EventFiles())
        path = storage.local_path(folder)
        self._folder = folder
        self._writer = SummaryWriter(
            str(path) if path else f"squall+fsspec:{folder}",
            filename_suffix=f".{uuid.uuid4().hex[:8]}",  # two that start in one second are two
        )

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        storage.write_json(storage.join(self._folder, "settings.json"), dict(values))
        text = json.dumps(values, indent=1)
        self._writer.add_text("settings", f"```\n{text}\n```")
        self._writer.flush()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""
        image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, image, step, dataformats="HWC")
        self._writer.flush()

    def end(self, *, failed: bool = False) -> None:
        """See `Tracker`."""
        self._writer.close()


class _EventFiles:
    """Event files on any fsspec file system, for tensorboardX: written anew at every flush."""

    def directory_check(self, path: str) -> None:
        """Nothing: an object store has no folders, and writing makes those of others."""

    def open(self, path: str) -> "_EventFile":
        return _EventFile(path.partition(":")[2])


class _EventFile:
    def __init__(self, url: str) -> None:
        self._url, self._content = url, bytearray()

    def write(self, content: bytes) -> None:
        self._content += content

    def flush(self) -> None:
        storage.write_bytes(self._url, bytes(self._content))

    close = flush


class Sheltered:
    """A tracker on a thread of its own, whose failures are a warning, the first one.

    Parameters
    ----------
    place : where it tells, for the warning
    open_ : opens it, on that thread; tried again at the next call where it fails
    """

    def __init__(self, place: str, open_: Callable[[], Tracker]) -> None:
        self._place, self._open = place, open_
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._tell, name="tracker", daemon=True)
        self._thread.start()

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._put(lambda tracker: tracker.settings(values))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        numbers = dict(values)
        self._put(lambda tracker: tracker.metrics(step, numbers))

    def picture(self, step: int, name: str, png: bytes) -> None:
        """See `Tracker`."""
        self._put(lambda tracker: tracker.picture(step, name, png))

    def end(self, *, failed: bool = False) -> None:
        """See `Tracker`. Waits until all is told, or `END_S`."""
        self._put(lambda tracker: tracker.end(failed=failed))
        self._put(None)
        self._thread.join(END_S)
        if self._thread.is_alive():
            self._failed(f"not done {END_S:g} s after the end of the run")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._failed(f"{MOST_WAITING} calls wait")

    def _tell(self) -> None:
        tracker = None
        while (call := self._calls.get()) is not None:
            try:
                tracker = tracker or self._open()
                call(tracker)
            except Exception as error:
                self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, reason: str) -> None:
        self._lost += 1
        if self._lost == 1:
            log.warning("%s is not told how the run goes (it goes on): %s", self._place, reason)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key.

    >>> flat({"train": {"epochs": 5, "network": {"name": "convlstm"}}})
    {'train.epochs': 5, 'train.network.name': 'convlstm'}
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        result |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return result
