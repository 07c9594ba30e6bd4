"""From archive to registered model: samples, Ray Train, scores, registry."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
import xarray as xr
from pydantic import ValidationError

from models import registry
from models.baselines import build_baseline
from models.evaluation import evaluate_forecasters, spread
from models.fine_tuning import fine_tuned
from models.following import following
from models.prediction import NetworkForecaster
from models.preparation import Prepared, prepare
from models.ray_training import fit
from models.run_status import mark, reported
from models.runs import Trained
from models.training import TrainSettings
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.compact import best_for_training
from pipelines.errors import NotFoundError, SquallError
from pipelines.info import provenance
from pipelines.times import lead_times, now

log = logging.getLogger(__name__)


def train_model(
    root: str,
    name: str,
    archive_url: str,
    settings: TrainSettings,
    *,
    first: bool = True,
    progress: bool = False,
) -> str:
    """Train on an archive, compare with baselines, register as a challenger; its id.

    The `first` version of a name becomes its champion, unproven; of any other its forecasts decide
    (`models.promotion`).

    Raises `SquallError` where the archive has no sequence to learn from.
    """
    parent = None
    if settings.fine_tune is not None:
        parent = registry.load_model(root, *settings.fine_tune.split("/", 1))
        settings = fine_tuned(settings, parent, Archive(archive_url))
    prepared = prepare(archive_url, settings)
    archive = provenance(prepared.archive, prepared.times)
    archive["training_samples"] = len(prepared.data.training_index)
    run = settings.run or f"{name}-{now():%Y%m%dT%H%M%SZ}"
    facts = {"archive": archive, "parent": parent.id if parent else None}
    with following(
        root, run, name, prepared.data, settings, facts, progress=progress
    ) as on_message:
        trained = fit(
            prepared.data,
            settings,
            storage_url=storage.join(root, "runs"),
            run_name=run,
            weights=parent.network.state_dict() if parent else None,
            on_message=on_message,
        )
    mark(root, run, "scoring")
    version = registry.save_model(
        root,
        name,
        trained.weights,
        settings,
        past_frames=prepared.data.past_frames,
        timestep=prepared.archive.timestep,
        archive=archive,
        metrics=trained.metrics,
        history=trained.history,
        scores=validation_scores(name, trained, prepared, settings, progress=progress),
        parent=parent.id if parent else None,
    )
    if first:
        registry.promote_first(root, name, version)
    return f"{name}/{version}"


def validation_scores(
    name: str,
    trained: Trained,
    prepared: Prepared,
    settings: TrainSettings,
    *,
    progress: bool = False,
) -> xr.Dataset | None:
    """Sums of the trained network and the baselines on validation events; None without events."""
    events = spread(prepared.parts.validation, settings.score_events)
    if len(events) == 0:
        return None
    network = settings.build_network(prepared.data.in_channels)
    network.load_state_dict(trained.weights)
    model = registry.Model(
        name,
        version="",
        network=network.eval(),
        settings=settings,
        weights_sha256="",
        past_frames=prepared.data.past_frames,
        timestep=prepared.archive.timestep,
        metrics=trained.metrics,
    )
    forecasters: dict[str, Any] = {name: NetworkForecaster(model)}
    forecasters |= {baseline: build_baseline(baseline) for baseline in settings.baselines}
    ahead = lead_times(prepared.archive.timestep, pd.Timedelta(settings.future))
    try:
        return evaluate_forecasters(
            prepared.archive.url, forecasters, events, ahead, progress=progress
        )
    except NotFoundError as error:  # the model is no worse for it
        log.warning("%s", error)
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """What a Ray job runs: `python -m models.train --root URL --product NAME`.

    Ray gives a job RAY_ADDRESS, so it trains on the cluster that runs it. Prints the name of the
    run and, at the end, the id of the model. Bad input is one line on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description="Train a network on the archive of a product with Ray Train and register it. "
        "Inside a Ray job it trains on that cluster.",
    )
    parser.add_argument("--root", required=True, help="where archives and models live: a URL")
    parser.add_argument("--product", required=True, help="which archive")
    parser.add_argument(
        "--settings", default="{}", help="JSON of what differs from the defaults of section train"
    )
    parser.add_argument("--run", help="name of the run; the name of an earlier one continues it")
    parser.add_argument(
        "--no-first", action="store_true", help="no champion without proof, not even the first one"
    )
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # which the status then says
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        settings = _settings(given.settings)
        name = settings.model or given.product
        run = given.run or settings.run or f"{name}-{now():%Y%m%dT%H%M%SZ}"
        settings = settings.model_copy(update={"run": run})
        url = best_for_training(archive_url(given.root, given.product))
        print(f"run: {run}", flush=True)
        first = not given.no_first
        model = reported(
            given.root, run, lambda: train_model(given.root, name, url, settings, first=first)
        )
    except SquallError as error:
        print(f"squall: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"model: {model}")


def _settings(text: str) -> TrainSettings:
    try:
        return TrainSettings.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["train", *map(str, first["loc"])])
        raise SquallError(
            f"setting {key} does not fit",
            found=repr(first["input"]),
            expected=first["msg"].removeprefix("Value error, "),
            remedy="mend --settings; `squall doctor` lists the settings",
        ) from error


if __name__ == "__main__":
    main()
