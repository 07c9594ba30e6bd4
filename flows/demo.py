"""The main job from files to verified nowcasts: ingest, train, replay, verify.

Without an archive it builds a synthetic one. Frames of the replayed part arrive one by one, in the
order in which the provider delivered them, late ones late.
"""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow

from flows.ingest import ingest
from flows.nowcast import picture_of, service_of
from flows.settings import Settings
from flows.tasks import publish_picture
from flows.train import train
from flows.verify import VerifyReport, verify
from models.replay import replay as replay_arrivals
from models.rounds import NowcastReport
from pipelines import storage
from pipelines.archive import Archive, Status, archive_url
from pipelines.errors import NoFramesError, SquallError
from pipelines.forecasts import forecast_url, published_init_times
from pipelines.ingest import arrival
from pipelines.manifest import read_manifest
from pipelines.progress import bar
from pipelines.sources import FrameFile, get_source
from pipelines.sources.synthetic import SyntheticRadar, write_archive

MARKER = ".squall-demo"
REPLAYED = pd.Timedelta("1h")
"""How much of the synthetic archive is replayed."""

SYNTHETIC: dict[str, Any] = {
    "ingest": {"source": "odim"},
    "train": {
        "past": "20min",
        "future": "30min",
        "crop": 64,
        "epochs": 6,
        "samples_per_epoch": 128,
        "batch_size": 8,
        "network": {"hidden_channels": (32, 32)},
        "tracking": {"kind": "tensorboard"},
        "score_events": 2,
    },
    "nowcast": {"lead_time": "30min"},
    "verify": {"partial": True},
}
"""Settings that differ from the defaults: small enough for two cores and a few minutes."""

REAL: dict[str, Any] = {
    "train": {
        "crop": 64,
        "epochs": 10,
        "samples_per_epoch": 192,
        "batch_size": 8,
        "network": {"hidden_channels": (32, 32)},
        "tracking": {"kind": "tensorboard"},
        "score_events": 2,
    },
    "verify": {"partial": True},
}


@dataclass(frozen=True)
class DemoReport:
    """What a demo made, and where it lies."""

    archive: str
    model: str
    forecast: str
    picture: str
    frames: str
    errors: list[str]
    nowcasts: NowcastReport
    verification: VerifyReport


def prepare_folder(folder: Path) -> None:
    """An empty folder for the demo; an earlier demo's is emptied, anyone else's is left alone."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise SquallError(
                "the demo's folder is in use",
                found=f"{folder} with files that no demo made",
                expected="a new or empty folder, or an earlier demo's",
                remedy="name another one: `squall demo --folder NAME`",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def write_synthetic(folder: Path) -> tuple[str, int]:
    """Write the synthetic archive; its location, and how many frames are for training."""
    radar = SyntheticRadar()
    write_archive(folder / "radar", radar)
    replayed = round(REPLAYED / radar.timestep)
    return str(folder / "radar"), radar.frames - replayed


def split_files(
    settings: Settings, location: str, train_frames: int
) -> tuple[list[FrameFile], list[FrameFile]]:
    """The files of the first `train_frames` timesteps, and the rest in order of arrival."""
    source = get_source(settings.ingest.source)
    files = source.find(location)
    times = pd.DatetimeIndex([file.valid_time for file in files])
    spacing = settings.ingest.timestep or source.timestep
    if spacing is None:
        spacing = pd.Series(times.unique().sort_values().diff()[1:]).mode().iloc[0]
    cut = times.min() + train_frames * pd.Timedelta(spacing)
    history_after = pd.Timedelta(settings.ingest.history_after)
    history = [file for file in files if file.valid_time < cut]
    rest = [file for file in files if file.valid_time >= cut]
    if not rest:
        raise NoFramesError(
            "no frames left to nowcast from",
            found=f"{len(files)} files, all in the first {train_frames} timesteps",
            expected="more frames than are trained on",
            remedy="lower --train-frames",
        )
    rest = [replace(file, received=arrival(file, history_after)) for file in rest]
    return history, sorted(rest, key=lambda file: (file.received, file))


def _arrivals(url: str) -> tuple[str, list[str]]:
    """What became of every file, and of the timesteps without one; a line for each bad file."""
    rows = read_manifest(url)
    outcomes = Counter(row.outcome for row in rows)
    status = Archive(url).status()
    seen = status.loc[rows[0].valid_time[:-1] : rows[-1].valid_time[:-1]]
    missing = int((seen == Status.MISSING).sum())
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    errors = [f"{row.key.rsplit('/', 1)[-1]}: {row.error}" for row in rows if row.error]
    return f"{len(rows)} files: {counts}; {missing} timestep(s) missing", errors


@flow(name="arrivals")
def arrivals(settings: Settings, files: list[FrameFile], progress: bool = False) -> NowcastReport:
    """Take in files as they arrived, and forecast from every frame they bring."""
    report = NowcastReport()
    with (
        service_of(settings) as service,
        bar(len(files), "replay", "file", shown=progress) as shown,
    ):
        since = min(file.valid_time for file in files)
        service = replace(service, since=since, shadows=None)
        for done in replay_arrivals(service, files):
            report.outcomes += done.outcomes
            if done.trouble is not None:
                raise done.trouble
            shown.update(len(done.files))
    return report


@flow(name="demo")
def demo(
    settings: Settings, location: str, train_frames: int, progress: bool = False
) -> DemoReport:
    """Ingest and train on the first `train_frames` timesteps, replay and verify the rest."""
    history, rest = split_files(settings, location, train_frames)
    root, product = settings.root, settings.product
    last = max(file.valid_time for file in history)
    section = settings.ingest.model_copy(update={"location": location})
    ingest(root=root, product=product, ingest=section, end=last.to_pydatetime(), progress=progress)
    model = train(root=root, product=product, train=settings.train, progress=progress)
    nowcasts = arrivals(settings, rest, progress)
    verification = verify(root=root, product=product, verify=settings.verify, progress=progress)
    shown = published_init_times(root, product)[0]  # the one with most observations after it
    png = picture_of(root, product, shown)
    picture = storage.join(root, "pictures", product, f"{shown:%Y%m%dT%H%MZ}.png")
    storage.write_bytes(picture, png)
    publish_picture("demo-picture", png, f"Observed against forecast, {product}")
    frames, errors = _arrivals(archive_url(root, product))
    return DemoReport(
        archive=archive_url(root, product),
        model=storage.join(root, "models", model),
        forecast=forecast_url(root, product, shown),
        picture=picture,
        frames=frames,
        errors=errors,
        nowcasts=nowcasts,
        verification=verification,
    )
