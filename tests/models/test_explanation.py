"""Every timestep of a replay without a forecast has its reason; one that should have one, none."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest

from models.explanation import UNEXPLAINED, explain
from models.nowcasting import Nowcaster, NowcastSettings
from models.replay import Arrivals, replay, simulate
from models.replay import ReplaySettings as Settings
from models.rounds import Service
from pipelines.forecasts import forecast_url
from pipelines.ingest import IngestSettings
from pipelines.sources import get_source
from pipelines.sources.synthetic import SyntheticRadar
from pipelines.storage import local_path

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
RADAR = SyntheticRadar(size=48, frames=20, cells=12)
CATCH_UP = pd.Timedelta("20min")


def at(slot):
    return START + slot * TIMESTEP


@pytest.fixture(scope="module")
def folder(tmp_path_factory, send):
    """Frames 0 … 19; the provider has no 4, and its 6 is truncated."""
    folder = tmp_path_factory.mktemp("provider")
    for slot, field in enumerate(RADAR.rain_rate()):
        if slot != 4:
            send(folder, at(slot), field, grid=RADAR.grid, keep=0.5 if slot == 6 else 1.0)
    return folder


@pytest.fixture(scope="module")
def replayed(folder, tmp_path_factory):
    """2 never comes, nor do 12 and 13, so that 14 has no frame near; 15 comes half an hour late."""
    root = str(tmp_path_factory.mktemp("root"))
    files = simulate(get_source("odim").find(str(folder)), Settings()).files
    lost = [file for file in files if file.valid_time in (at(2), at(12), at(13))]
    arriving = [
        replace(file, received=at(21)) if file.valid_time == at(15) else file
        for file in files
        if file not in lost
    ]
    arrivals = Arrivals(sorted(arriving, key=lambda file: (file.received, file)), lost, [])
    nowcast = NowcastSettings(lead_time="5min", catch_up=CATCH_UP, most_missing=1)
    ingest = IngestSettings(source="odim", timestep="5min", workers=1)
    service = Service(root, "test", ingest, Nowcaster(root, "advection", nowcast))
    rounds = list(replay(service, arrivals.files))

    def reasons(rounds=rounds, first=0, last=22):
        init_times = pd.date_range(at(first), at(last), freq=TIMESTEP)
        found = explain(root, "test", init_times, arrivals, rounds, CATCH_UP)
        return {round((time - START) / TIMESTEP): reason for time, reason in found.items()}

    return root, rounds, reasons


def test_every_reason_is_the_one_that_it_was(replayed):
    _, _, reasons = replayed
    assert reasons() == {
        0: "too few past frames",
        2: "the frame never came",
        4: "there is no file of that time",
        6: "the frame could not be read",
        12: "the frame never came",
        13: "the frame never came",
        14: "too few past frames",
        15: "the frame came after 20min of newer ones",
        20: "there is no file of that time",
        21: "there is no file of that time",
        22: "there is no file of that time",
    }


def test_a_forecast_that_should_be_there_and_is_not_is_unexplained(replayed, tmp_path):
    root, _, reasons = replayed
    place = local_path(forecast_url(root, "test", at(10)))
    shutil.move(place, tmp_path)
    try:
        assert reasons(first=9, last=11) == {10: UNEXPLAINED}
    finally:
        shutil.move(tmp_path / place.name, place)
    assert reasons(first=9, last=11) == {}


def test_a_service_that_was_too_slow_is_a_reason_only_for_what_waited_meanwhile(replayed, tmp_path):
    root, rounds, reasons = replayed
    place = local_path(forecast_url(root, "test", at(10)))
    shutil.move(place, tmp_path)

    def slow(slot):
        """The round of that slot took half a timestep."""
        began = at(slot) + pd.Timedelta("1min")
        return [
            replace(one, ended=one.began + TIMESTEP / 2) if one.began == began else one
            for one in rounds
        ]

    try:
        assert reasons(slow(11), 10, 10) == {10: "the rounds had no time for it"}
        assert reasons(slow(9), 10, 10) == {10: UNEXPLAINED}
        assert reasons(slow(16), 10, 10) == {10: UNEXPLAINED}
    finally:
        shutil.move(tmp_path / place.name, place)
