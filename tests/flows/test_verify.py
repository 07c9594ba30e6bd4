"""Verification as it runs: incrementally, whoever dies, races or comes in another order."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from flows.verify import markdown, score_table, verify_forecasts
from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import publish_nowcast
from models.verification import VerifySettings
from pipelines import storage
from pipelines.archive import Archive, Status, archive_url
from pipelines.errors import NotFoundError, SquallError
from pipelines.forecasts import folder_url, forecast_name
from pipelines.score_store import open_scores, read_rows
from pipelines.scores import merge, scores
from pipelines.shadows import shadow_root
from pipelines.units import pack

START = pd.Timestamp("2024-06-01T23:30")  # the forecasts start on two days
STEP = pd.Timedelta("5min")
FRAMES, FORECASTS = 14, range(2, 12)
SETTINGS = VerifySettings(
    thresholds_mm_h=(0.5, 2.0), scales_km=(2.0,), baselines=("persistence",), workers=1
)


def field(slot):
    """Rain that differs from slot to slot; a corner is not observed."""
    rain = np.random.default_rng(slot).gamma(0.5, 4.0, (8, 8))
    rain[0, slot % 8] = np.nan
    return rain


@pytest.fixture
def world(tmp_path, build_archive, grid):
    """Forecasts by persistence of 10 min, ten of them due; the frame of slot 9 never came."""
    return build_world(str(tmp_path / "root"), build_archive, grid)


def build_world(root, build_archive, grid):
    fields = {slot: field(slot) for slot in range(FRAMES) if slot != 9}
    archive = build_archive(archive_url(root, "test"), fields, grid=grid, start=START)
    how = NowcastSettings(lead_time="10min")
    with Nowcaster(root, "persistence", how) as nowcaster:
        for slot in FORECASTS:
            if slot != 9:
                publish_nowcast(nowcaster, archive, root, "test", archive.times[slot])
    return root


def verify(root, settings=SETTINGS, **changes):
    return verify_forecasts(root, "test", settings.model_copy(update=changes))


def contents(root):
    """The bytes of every day of scores."""
    folder = Path(storage.local_path(f"{storage.normalise(root)}/scores/test"))
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_each_forecast_is_scored_once_and_the_table_is_of_all(world):
    report = verify(world)
    counts = (report.verified, report.scored, report.unchanged, report.waiting, report.missing)
    assert counts == (9, 9, 0, 0, 1)
    assert report.models == {"persistence": 9}
    assert report.sums["forecaster"].values.tolist() == ["persistence", "served"]
    before = contents(world)
    again = verify(world)
    assert (again.verified, again.scored, again.unchanged) == (9, 0, 9)
    assert contents(world) == before
    xr.testing.assert_identical(again.sums, report.sums)


def test_the_sums_are_those_of_the_forecasts_one_by_one(world):
    report = verify(world)
    each = open_scores(world, "test")
    parts = [each.isel(init_time=k, drop=True) for k in range(each.sizes["init_time"])]
    expected = merge([part.drop_vars(set(part.coords) - set(part.dims)) for part in parts])
    xr.testing.assert_allclose(report.sums, expected)


def test_a_forecast_that_comes_later_is_added_and_no_other_is_scored(world):
    verify(world)
    archive = Archive(archive_url(world, "test"))
    archive.write_frame(archive.times[FRAMES], pack(field(FRAMES))[0])
    archive.commit([], {archive.times[FRAMES]: Status.OK})
    how = NowcastSettings(lead_time="10min")
    with Nowcaster(world, "persistence", how) as nowcaster:
        for slot in (12, 13):
            publish_nowcast(nowcaster, archive, world, "test", archive.times[slot])
    report = verify(world)
    assert (report.verified, report.scored, report.unchanged, report.waiting) == (10, 1, 9, 1)


def test_a_late_observation_has_the_forecasts_scored_again_that_wanted_it(world):
    before = verify(world)
    archive = Archive(archive_url(world, "test"))
    archive.write_frame(archive.times[9], pack(field(9))[0])
    archive.commit([], {archive.times[9]: Status.LATE})
    report = verify(world)
    assert (report.verified, report.scored, report.unchanged, report.missing) == (9, 2, 7, 0)
    pixels = [one.sums["pixels"].sel(forecaster="served").sum().item() for one in (before, report)]
    assert pixels[1] > pixels[0]


def test_other_thresholds_replace_what_was_scored(world):
    verify(world)
    report = verify(world, thresholds_mm_h=(5.0,))
    assert report.scored == 9
    assert report.sums["threshold"].values.tolist() == [5.0]
    assert not [column for column in read_rows(world, "test") if "threshold=0.5" in column]


def test_a_shadow_forecast_is_scored_when_it_comes(world):
    verify(world)
    init_time = START + 5 * STEP
    name = forecast_name(init_time)
    place = folder_url(shadow_root(world, "net/2"), "test")
    served = storage.local_path(f"{folder_url(world, 'test')}/{name}")
    copy = storage.local_path(f"{place}/{name}")
    copy.parent.mkdir(parents=True)
    shutil.copytree(served, copy)
    report = verify(world)
    assert (report.scored, report.unchanged) == (1, 8)
    each = open_scores(world, "test")["pixels"]
    assert float(each.sel(forecaster="net/2", init_time=init_time).sum()) > 0
    assert float(each.sel(forecaster="net/2").sum()) == float(
        each.sel(forecaster="net/2", init_time=init_time).sum()
    )


def test_in_part_forecasts_are_scored_that_still_wait(world):
    archive = Archive(archive_url(world, "test"))
    archive.commit([], {archive.times[13]: Status.MISSING})
    assert verify(world).waiting == 1
    report = verify(world, partial=True)
    assert (report.scored, report.waiting, report.verified) == (1, 0, 9)


def test_the_period_is_that_of_the_settings(world):
    verify(world)
    report = verify(world, since=pd.Timedelta("10min").to_pytimedelta())
    assert (report.verified, report.unchanged) == (2, 2)


def test_what_is_older_than_scores_are_kept_is_not_scored_again(world):
    keep = pd.Timedelta("10min").to_pytimedelta()
    report = verify_forecasts(world, "test", SETTINGS, keep=keep)
    assert (report.verified, report.scored) == (2, 2)


def test_one_that_cannot_be_read_keeps_no_other_from_being_scored(world, caplog):
    name = forecast_name(START + 5 * STEP)
    chunks = storage.local_path(f"{folder_url(world, 'test')}/{name}/rain_rate/c")
    for chunk in chunks.rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    report = verify(world)
    assert (report.scored, report.verified) == (8, 8)
    (why,) = report.failed.items()
    assert why[0] == "2024-06-01T23:55:00Z"
    assert "1 failed" in report.counts()
    assert "2024-06-01T23:55:00Z is not scored" in caplog.text
    with pytest.raises(SquallError, match="no forecast that is due can be scored"):
        verify(world)


def test_nothing_to_verify_says_what_to_do(tmp_path, build_archive, grid):
    root = str(tmp_path)
    build_archive(archive_url(root, "test"), {0: field(0)})
    with pytest.raises(NotFoundError, match="nothing to verify"):
        verify(root)


def test_the_table_has_what_was_served_first_and_says_who_served(world):
    report = verify(world)
    rows = report.table()
    assert [row["forecaster"] for row in rows[:2]] == ["served", "persistence"]
    values = scores(report.sums.sel(region="domain"))
    csi = float(values["csi"].sel(forecaster="served", threshold=0.5, lead_time=STEP))
    assert rows[0] == {"score": "CSI ≥ 0.5 mm/h", "forecaster": "served"} | {
        "5min": f"{csi:.3f}",
        "10min": rows[0]["10min"],
    }
    text = markdown(report)
    assert "| CSI ≥ 0.5 mm/h | served | " in text
    assert "9 forecasts verified, served by persistence 9; 9 scored now, 0 unchanged" in text
    assert score_table(report.sums.sel(region="domain", drop=True)) == rows, "of a model's card too"


def test_the_order_of_forecasts_does_not_change_the_store(world, monkeypatch):
    verify(world)
    expected = contents(world)
    storage.remove(f"{storage.normalise(world)}/scores")

    def backwards(function, tasks, **_):
        yield from (function(*task) for task in tasks[::-1])

    monkeypatch.setattr("flows.verify.run_parallel", backwards)
    monkeypatch.setattr("flows.verify.BATCH", 2)
    verify(world)
    assert contents(world) == expected


def killed(root):
    """A verification that is killed when it has scored five forecasts, in batches of two."""
    import flows.verify

    def few(function, tasks, **_):
        for number, task in enumerate(tasks):
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield function(*task)

    flows.verify.BATCH = 2
    flows.verify.run_parallel = few
    verify(root)


def in_processes(function, *arguments):
    """Run it in processes of their own, at the same time, one for each tuple; the exit codes."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=function, args=one) for one in arguments]
    for one in processes:
        one.start()
    for one in processes:
        one.join(240)
    return [one.exitcode for one in processes]


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next_with_the_same_store(world):
    assert in_processes(killed, (world,)) == [-signal.SIGKILL]
    assert read_rows(world, "test")["init_time"].nunique() == 4
    report = verify(world)
    assert (report.scored, report.unchanged) == (5, 4)
    after = contents(world)
    storage.remove(f"{storage.normalise(world)}/scores")
    verify(world)
    assert contents(world) == after


@pytest.mark.slow
def test_runs_that_race_and_workers_do_not_change_the_store(world):
    verify(world)
    expected = contents(world)
    storage.remove(f"{storage.normalise(world)}/scores")
    verify(world, workers=2)
    assert contents(world) == expected
    storage.remove(f"{storage.normalise(world)}/scores")
    assert in_processes(verify, (world,), (world,)) == [0, 0]
    assert contents(world) == expected
