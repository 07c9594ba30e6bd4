"""Publishers are killed fifty times, at any moment, while stock readers look on.

What must hold: whoever opens a forecast finds all of it or none; what is resumed ends with exactly
one forecast for each init_time, model and inputs, with the marks and `latest.json` that belong to
it, and what the dead have left can be swept away.
"""

import os
import random
import signal
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from zarr.errors import GroupNotFoundError

from pipelines import storage
from pipelines.errors import ExistsError
from pipelines.forecasts import (
    folder_url,
    forecast_dataset,
    forecast_name,
    forecast_url,
    open_forecast,
    parse_name,
    published,
)
from pipelines.grid import Grid
from pipelines.once import sweep
from pipelines.publishing import publish
from pipelines.sources.synthetic import PROJECTION

from .publishers import processes, race

ROUNDS = 50
TIMES = pd.date_range("2024-06-01T05:00", periods=4, freq="5min")
GRID = Grid.from_corner(PROJECTION, -8000.0, 8000.0, (2000.0, 2000.0), (8, 8))
MADE = [("net/1", "first"), ("advection", "first"), ("net/2", "corrected")]
"""The model and inputs of each revision, as one publisher makes them after the other."""


def rain_rate_of(init_time, model, inputs):
    """A rain rate by which a forecast is known: no two are the same."""
    return 1.0 + 10 * list(TIMES).index(init_time) + MADE.index((model, inputs))


def forecast_of(init_time, model, inputs):
    lead_times = pd.timedelta_range("5min", periods=6, freq="5min")
    rain_rate = xr.DataArray(
        np.full((6, 8, 8), rain_rate_of(init_time, model, inputs), np.float32),
        dims=("lead_time", "y", "x"),
        coords=GRID.coords(lonlat=False)
        | {"lead_time": lead_times, "init_time": init_time.to_datetime64()},
    )
    return forecast_dataset(rain_rate, {"model": model, "inputs_sha256": inputs})


def publish_all(root):
    """What is killed: three revisions of each forecast; those that are there stay."""
    for model, inputs in MADE:
        for init_time in TIMES:
            publish_one(root, init_time, model, inputs)


def publish_one(root, init_time, model, inputs):
    try:
        return publish(root, "test", forecast_of(init_time, model, inputs))
    except ExistsError as error:
        return error


def wrong_in(url):
    """What a stock reader sees of a forecast that is not right; None where it is not there."""
    try:
        forecast = xr.open_zarr(url.removeprefix("file://"), chunks=None)
    except (FileNotFoundError, GroupNotFoundError):
        return None
    init_time = pd.Timestamp(forecast["init_time"].item())
    model, inputs = forecast.attrs["model"], forecast.attrs["inputs_sha256"]
    values = forecast["rain_rate"].values
    right = (
        values.shape == (6, 8, 8)
        and (values == rain_rate_of(init_time, model, inputs)).all()
        and (init_time, forecast.attrs["revision"]) == parse_name(url.rsplit("/", 1)[1])
        and "publish_time" in forecast.attrs
    )
    return [] if right else [f"{url}: {forecast.attrs} {np.unique(values)}"]


def look(root, stop, seen):
    """Open every forecast that may be there, over and over, and the one that `latest` names."""
    looks, early, wrong = 0, 0, []
    try:
        while not stop.is_set():
            for init_time in TIMES:
                for revision in (1, 2, 3, 4):
                    found = wrong_in(forecast_url(root, "test", init_time, revision))
                    early += found is None
                    looks += found is not None
                    wrong += found or []
            latest = f"{folder_url(root, 'test')}/latest.json"
            if storage.exists(latest):
                name = storage.read_json(latest)["forecast"]
                found = wrong_in(f"{folder_url(root, 'test')}/{name}")
                wrong += ["latest names what is not there"] if found is None else found
    except BaseException:
        wrong.append(traceback.format_exc())
    seen.send((looks, early, wrong))


def assert_as_if_nothing_had_happened(root):
    """Three revisions of each init_time; which is first depends on nobody's death."""
    there = published(root, "test")
    assert [(one.init_time, one.revision) for one in there] == [
        (init_time, revision) for init_time in TIMES for revision in (1, 2, 3)
    ]
    for one in there:
        assert wrong_in(one.url) == []
        assert (one.attributes["model"], one.attributes["inputs_sha256"]) == MADE[one.revision - 1]
        successor = forecast_name(one.init_time, one.revision + 1) if one.revision < 3 else None
        assert one.attributes.get("superseded_by") == successor
        if successor:
            then = open_forecast(root, "test", one.init_time, one.revision + 1).attrs
            assert one.attributes["superseded_time"] == then["publish_time"]
    assert storage.read_json(f"{folder_url(root, 'test')}/latest.json") == {
        "init_time": "2024-06-01T05:15:00Z",
        "forecast": "20240601T0515Z.r3.zarr",
    }


def hidden(root):
    folder = Path(root) / "forecasts/test"
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def swept_clean(root):
    """Sweep; what was swept. Nothing hidden is left, at any depth."""
    count = sweep(folder_url(root, "test"), older_than_s=-1.0)
    assert hidden(root) == []
    return count


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_no_reader_sees_part_of_a_forecast(tmp_path):
    undisturbed = str(tmp_path / "undisturbed")
    race([os.getpid])  # the fork server is up
    began = time.perf_counter()
    assert race([partial(publish_all, undisturbed)]) == [None]
    duration = time.perf_counter() - began
    assert_as_if_nothing_had_happened(undisturbed)
    assert hidden(undisturbed) == []

    moments = random.Random(0)
    kills, lives, looks, early, swept = 0, 0, 0, 0, 0
    while kills < ROUNDS:
        root = str(tmp_path / str(lives))
        stop, pipes = processes.Event(), [processes.Pipe(duplex=False) for _ in range(2)]
        readers = [processes.Process(target=look, args=(root, stop, seen)) for _, seen in pipes]
        for reader in readers:
            reader.start()
        finished = False
        while not finished:
            publisher = processes.Process(target=publish_all, args=(root,))
            publisher.start()
            publisher.join(moments.uniform(0, duration) if kills < ROUNDS else 60)
            if publisher.exitcode is None:
                publisher.kill()
                kills += 1
            publisher.join()
            assert publisher.exitcode in (0, -signal.SIGKILL)
            finished = publisher.exitcode == 0
        stop.set()
        for reader, (told, _) in zip(readers, pipes, strict=True):
            assert told.poll(60), "a reader is stuck"
            looked, not_yet, wrong = told.recv()
            reader.join()
            assert wrong == []
            looks, early = looks + looked, early + not_yet
        assert_as_if_nothing_had_happened(root)
        swept += swept_clean(root)
        assert_as_if_nothing_had_happened(root)
        lives += 1
    print(f"{kills} kills in {lives} lives, {looks} looks, {early} too early, {swept} swept")
    assert looks > ROUNDS
    assert early > 0
    assert swept > 0, "no kill has met a publisher at work"


# Kills at a chosen moment ------------------------------------------------------------------------


def publish_and_die(root, moment, number):
    """Publish, killed before or after its so manieth rename to where readers look."""
    renames = 0

    def dying(rename, old, new):
        nonlocal renames
        renames += not any(part.startswith(".") for part in Path(new).parts)
        if (renames, moment) == (number, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new)
        if (renames, moment) == (number, "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = partial(dying, os.rename)
    os.replace = partial(dying, os.replace)
    Path.replace = lambda path, target: os.replace(path, target)
    publish(root, "test", forecast_of(TIMES[0], *MADE[1]))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("number", "what"), [(1, "store"), (2, "mark"), (3, "latest")])
def test_a_death_at_any_rename_is_made_up_for_by_the_next_attempt(tmp_path, number, what, moment):
    root = str(tmp_path)
    publish(root, "test", forecast_of(TIMES[0], *MADE[0]))
    dead = processes.Process(target=publish_and_die, args=(root, moment, number))
    dead.start()
    dead.join(60)
    assert dead.exitcode == -signal.SIGKILL
    there = published(root, "test")
    visible = (number, moment) != (1, "before")
    assert [one.revision for one in there] == ([1, 2] if visible else [1])
    assert [wrong_in(one.url) for one in there] == [[]] * len(there)

    assert isinstance(publish_one(root, TIMES[0], *MADE[1]), ExistsError) == visible
    first, second = published(root, "test")
    assert first.attributes["superseded_by"] == "20240601T0500Z.r2.zarr"
    assert first.attributes["superseded_time"] == second.attributes["publish_time"]
    latest = storage.read_json(f"{folder_url(root, 'test')}/latest.json")
    assert latest["forecast"] == "20240601T0500Z.r2.zarr", what
    assert swept_clean(root) == (moment == "before")
    assert wrong_in(first.url) == wrong_in(second.url) == []


# Races -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("publishers", [2, 4])
def test_of_those_that_race_with_the_same_forecast_one_publishes(tmp_path, publishers):
    for number, init_time in enumerate(TIMES[:2], start=1):
        work = partial(publish_one, str(tmp_path), init_time, *MADE[0])
        outcomes = race([work] * publishers)
        urls = [one for one in outcomes if isinstance(one, str)]
        assert urls == [forecast_url(str(tmp_path), "test", init_time)]
        others = [one for one in outcomes if isinstance(one, ExistsError)]
        assert len(others) == publishers - 1
        assert [one.revision for one in published(str(tmp_path), "test")] == [1] * number
        assert wrong_in(urls[0]) == []
    assert swept_clean(str(tmp_path)) == 0


def test_of_those_that_race_with_different_forecasts_each_publishes_a_revision(tmp_path):
    root = str(tmp_path)
    for init_time in TIMES:
        works = [partial(publish_one, root, init_time, *made) for made in MADE]
        outcomes = race([*works, works[1]])
        assert [isinstance(one, str) for one in outcomes].count(True) == 3
        assert [isinstance(one, ExistsError) for one in outcomes].count(True) == 1
        there = published(root, "test", init_time, init_time)
        assert [one.revision for one in there] == list(range(1, len(there) + 1))
        made = {(one.attributes["model"], one.attributes["inputs_sha256"]) for one in there}
        assert made == set(MADE)
        assert [wrong_in(one.url) for one in there] == [[]] * len(there)
        successors = [one.attributes.get("superseded_by") for one in there]
        assert successors == [one.url.rsplit("/", 1)[1] for one in there[1:]] + [None]
        latest = storage.read_json(f"{folder_url(root, 'test')}/latest.json")
        assert latest["forecast"] == there[-1].url.rsplit("/", 1)[1]
    assert swept_clean(root) == 0


def test_a_fallback_supersedes_no_good_forecast_from_the_same_frames(tmp_path):
    root = str(tmp_path)
    publish(root, "test", forecast_of(TIMES[0], "net/1", "first"))
    attrs = {"quality": "fallback", "requested_model": "net/1"}
    with pytest.raises(ExistsError):
        publish(root, "test", forecast_of(TIMES[0], "advection", "first").assign_attrs(attrs))
    corrected = forecast_of(TIMES[0], "net/2", "corrected").assign_attrs(attrs, model="advection")
    publish(root, "test", corrected)
    assert [one.attributes["model"] for one in published(root, "test")] == ["net/1", "advection"]


def test_a_model_that_is_mended_supersedes_its_fallback(tmp_path):
    root = str(tmp_path)
    attrs = {"quality": "fallback", "requested_model": "net/1"}
    publish(root, "test", forecast_of(TIMES[0], "advection", "first").assign_attrs(attrs))
    publish(root, "test", forecast_of(TIMES[0], "net/1", "first"))
    assert [one.attributes["model"] for one in published(root, "test")] == ["advection", "net/1"]
