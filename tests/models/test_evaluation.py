"""Evaluation: fixed events, the same pixels for all; a baseline that fails costs nobody else."""

import numpy as np
import pandas as pd
import pytest

from models.baselines import BASELINES, Persistence, build_baseline
from models.evaluation import evaluate_forecasters, spread
from pipelines.archive import Status
from pipelines.errors import NotFoundError
from pipelines.scores import merge, scores

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
LEAD_TIMES = pd.timedelta_range(TIMESTEP, periods=2, freq=TIMESTEP, name="lead_time")
EVENTS = pd.date_range(START + 2 * TIMESTEP, periods=4, freq=TIMESTEP)


class Adding(Persistence):
    """Persistence that says so much more, and fails or does not know the first row at times."""

    paper, past_frames = "none", 2

    def __init__(self, name, more=1.0, fails_at=(), unknown_at=()):
        self.name, self.more, self.fails_at, self.unknown_at = name, more, fails_at, unknown_at

    def predict(self, past, lead_times):
        if past["time"].values[-1] in self.fails_at:
            raise IndexError("an odd sky")
        forecast = super().predict(past, lead_times) + self.more
        known = forecast["y"] < forecast["y"][0]
        return forecast.where(known) if past["time"].values[-1] in self.unknown_at else forecast


@pytest.fixture
def archive(tmp_path, build_archive, grid):
    """Rain of 1, 2, 3, … mm/h everywhere by slot number; 9 slots."""
    return build_archive(
        tmp_path / "a.zarr", {slot: np.full(grid.shape, 1.0 + slot) for slot in range(9)}
    )


def evaluate(archive, *forecasters, events=EVENTS, **options):
    named = {one.name: one for one in forecasters}
    return evaluate_forecasters(archive.url, named, events, LEAD_TIMES, (2.0,), **options)


def test_sums_are_over_all_events_as_computed_by_hand(archive):
    sums = evaluate(archive, Adding("net"), Persistence())
    assert sums["forecaster"].values.tolist() == ["net", "persistence"]
    assert sums["pixels"].values.tolist() == [[4 * 64] * 2] * 2
    result = scores(sums)
    # Rain grows by 1 mm/h a timestep: persistence is short by the lead time, net by one less.
    assert result["mae"].values.tolist() == [[0, 1], [1, 2]]
    assert result["csi"].min() == 1
    assert sums.attrs["events"] == 4
    assert result["scale"].values.tolist() == [1, 5, 20]
    assert "fss" not in scores(evaluate(archive, Persistence(), scales_km=()))


def test_all_are_scored_on_the_same_pixels(archive):
    sums = evaluate(archive, Adding("net", unknown_at=EVENTS[:1]), Persistence())
    assert sums["pixels"].values.tolist() == [[4 * 64 - 8] * 2] * 2


def test_events_add_up_one_by_one(archive):
    whole = evaluate(archive, Persistence())
    parts = [evaluate(archive, Persistence(), events=[event]) for event in EVENTS]
    assert merge(parts).equals(whole)


def test_an_event_on_which_a_baseline_fails_counts_for_nobody(archive):
    sums = evaluate(archive, Adding("net"), Persistence(), Adding("sprog", fails_at=EVENTS[1:2]))
    assert sums.attrs["events"] == 3
    assert sums["forecaster"].values.tolist() == ["net", "persistence", "sprog"]
    assert np.unique(sums["pixels"]).tolist() == [3 * 64]


def test_a_baseline_that_fails_on_most_events_is_left_out_and_costs_none(archive):
    sums = evaluate(archive, Adding("net"), Persistence(), Adding("sprog", fails_at=EVENTS[1:]))
    assert sums["forecaster"].values.tolist() == ["net", "persistence"]
    assert sums.attrs["events"] == 4


def test_what_a_network_raises_is_raised(archive):
    with pytest.raises(IndexError, match="an odd sky"):
        evaluate(archive, Adding("net", fails_at=EVENTS[:1]), Persistence())


def test_a_lead_time_without_a_frame_and_an_event_whose_frame_has_gone_do_not_count(archive):
    archive.commit([], {EVENTS[0]: Status.BAD, archive.times[8]: Status.BAD})
    events = [EVENTS[0], EVENTS[3], archive.times[6], archive.times[7]]
    sums = evaluate(archive, Persistence(), events=events)
    assert sums.attrs["events"] == 2
    assert sums["pixels"].squeeze("forecaster").values.tolist() == [2 * 64, 64]


def test_no_event_at_all_is_an_error(archive):
    for events in ([], [archive.times[8]], [archive.times[20]]):
        with pytest.raises(NotFoundError, match="no event to evaluate"):
            evaluate(archive, Persistence(), events=events)
    with pytest.raises(NotFoundError, match="no event to evaluate"):
        evaluate(archive, Adding("sprog", fails_at=EVENTS))


@pytest.mark.filterwarnings("ignore")  # pysteps' own
def test_every_baseline_can_be_scored(archive):
    named = {
        name: build_baseline(name, **({"members": 2} if name == "steps" else {}))
        for name in BASELINES
    }
    sums = evaluate_forecasters(archive.url, named, EVENTS[2:3], LEAD_TIMES)
    assert sums["forecaster"].values.tolist() == list(BASELINES)
    assert sums["pixels"].min() > 0


def test_events_are_spread_evenly_and_always_the_same():
    times = pd.date_range("2024-06-01", periods=101, freq="5min")
    assert list(spread(times, 5)) == list(times[[0, 25, 50, 75, 100]])
    assert list(spread(times, 1)) == [times[0]]
    assert list(spread(times[:3], 5)) == list(times[:3])
    assert len(spread(times, 100).unique()) == 100
