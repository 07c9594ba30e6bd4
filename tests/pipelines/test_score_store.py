"""The scores store: rows, days, and what comes back."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipelines import score_store
from pipelines.errors import NotFoundError
from pipelines.score_store import (
    of_forecaster,
    open_scores,
    prune_scores,
    read_rows,
    remove_before,
    total,
    write_scores,
)
from pipelines.scores import merge, scores

FIRST = pd.Timestamp("2024-03-09T23:00")
LEADS = pd.to_timedelta([5, 10], "min")


def part(k, forecasters=("served", "persistence"), thresholds=(0.5, 2.0), seed=None):
    """The sums of one forecast, whole numbers as of pixels counted."""
    rng = np.random.default_rng(k if seed is None else seed)
    sizes = {
        "forecaster": len(forecasters), "lead_time": 2, "region": 1,
        "threshold": len(thresholds), "scale": 2,
    }  # fmt: skip
    dims = {"hits": 4, "misses": 4, "false_alarms": 4, "fraction_error": 5, "pixels": 3}
    variables = {
        name: (list(sizes)[:count], rng.integers(0, 99, list(sizes.values())[:count]).astype("f8"))
        for name, count in dims.items()
    }
    return xr.Dataset(
        variables,
        coords={
            "forecaster": list(forecasters),
            "lead_time": LEADS,
            "region": ["domain"],
            "threshold": list(thresholds),
            "scale": [1.0, 7.5],
        },
    ).expand_dims(init_time=[FIRST + k * pd.Timedelta("30min")])


def labelled(k, model, *of):
    return part(k, *of).assign_coords(model=("init_time", [model]), revision=("init_time", [1]))


def test_what_is_written_comes_back(tmp_path):
    parts = [labelled(k, f"net/{k}") for k in range(4)]
    urls = write_scores(str(tmp_path), "knmi", parts)
    assert [url.rsplit("/", 1)[-1] for url in urls] == ["20240309.parquet", "20240310.parquet"]
    opened = open_scores(str(tmp_path), "knmi")
    expected = xr.concat(parts, "init_time").sortby("forecaster")
    xr.testing.assert_equal(opened.transpose(*expected.dims), expected)


def test_a_sum_by_pandas_is_the_sum_of_all(tmp_path):
    parts = [part(k) for k in range(4)]
    write_scores(str(tmp_path), "knmi", parts)
    rows = pd.read_parquet(tmp_path / "scores" / "knmi")
    total = rows.groupby(["forecaster", "lead_time"]).sum(numeric_only=True)
    wanted = sum(one["hits"].isel(init_time=0, drop=True) for one in parts)
    wanted = wanted.sel(forecaster="served", lead_time=LEADS[1], region="domain", threshold=2.0)
    assert total.loc[("served", LEADS[1]), "hits[threshold=2]"] == float(wanted)


def test_the_order_of_writing_changes_nothing(tmp_path):
    parts = [part(k) for k in range(5)]
    write_scores(str(tmp_path / "a"), "knmi", parts)
    for one in parts[::-1]:
        write_scores(str(tmp_path / "b"), "knmi", [one])
    xr.testing.assert_identical(
        open_scores(str(tmp_path / "a"), "knmi"), open_scores(str(tmp_path / "b"), "knmi")
    )


def test_scoring_again_replaces_that_forecast_alone(tmp_path):
    root = str(tmp_path)
    write_scores(root, "knmi", [part(0), part(1)])
    write_scores(root, "knmi", [part(1, seed=77)])
    opened = open_scores(root, "knmi")
    assert opened.sizes["init_time"] == 2
    xr.testing.assert_equal(opened.isel(init_time=[0]), part(0).sortby("forecaster"))
    xr.testing.assert_equal(opened.isel(init_time=[1]), part(1, seed=77).sortby("forecaster"))


def test_what_was_not_measured_adds_nothing(tmp_path):
    """A forecaster or threshold that came later."""
    root = str(tmp_path)
    write_scores(root, "knmi", [part(0), part(1, ("served", "net/2"), (0.5, 2.0, 5.0))])
    opened = open_scores(root, "knmi")
    assert list(opened["forecaster"].values) == ["net/2", "persistence", "served"]
    assert float(opened["pixels"].sel(forecaster="net/2").isel(init_time=0).sum()) == 0
    assert float(opened["hits"].sel(threshold=5.0).isel(init_time=0).sum()) == 0
    of_served = opened.sum("init_time").sel(forecaster="served", threshold=0.5)
    both = (part(0), part(1, ("served", "net/2"), (0.5, 2.0, 5.0)))
    wanted = merge(one.isel(init_time=0, drop=True) for one in both)
    assert of_served["hits"].equals(wanted["hits"].sel(forecaster="served", threshold=0.5))
    assert not opened.isnull().any().to_array().any()


def test_a_period_and_columns(tmp_path):
    root = str(tmp_path)
    write_scores(root, "knmi", [labelled(k, "net/1") for k in range(6)])
    rows = read_rows(root, "knmi", FIRST + LEADS[1], FIRST + pd.Timedelta("1h"))
    assert sorted(set(rows["init_time"])) == [
        FIRST + pd.Timedelta("30min"),
        FIRST + pd.Timedelta("1h"),
    ]
    few = read_rows(root, "knmi", columns=["init_time", "model"])
    assert list(few.columns) == ["init_time", "model"]
    assert read_rows(root, "fmi").empty


def test_a_forecaster_is_its_own_rows_and_what_it_served(tmp_path):
    names = ("served", "net/1", "persistence")
    parts = [part(k, names).assign_coords(model=("init_time", [f"net/{k}"])) for k in range(3)]
    sums = xr.concat(parts, "init_time")
    found = of_forecaster(sums, "net/1")
    assert "forecaster" not in found.dims
    for k, name in enumerate(["net/1", "served", "net/1"]):
        wanted = sums.isel(init_time=k).sel(forecaster=name, drop=True)
        xr.testing.assert_equal(found.isel(init_time=k), wanted)
    of_another = of_forecaster(sums, "net/2")
    assert (of_another["pixels"].isel(init_time=[0, 1]) == 0).all()
    xr.testing.assert_equal(
        of_another.isel(init_time=2), sums.isel(init_time=2).sel(forecaster="served", drop=True)
    )
    assert (of_forecaster(sums, "net/9")["pixels"] == 0).all()
    alone = sums.sel(forecaster=["persistence"])
    xr.testing.assert_equal(
        of_forecaster(alone, "persistence"), alone.isel(forecaster=0, drop=True)
    )


def test_no_scores_is_said_so(tmp_path):
    with pytest.raises(NotFoundError, match="run `squall verify`"):
        open_scores(str(tmp_path), "knmi")


def test_old_days_are_removed_whole(tmp_path):
    root = str(tmp_path)
    write_scores(root, "knmi", [part(0), part(3)])
    assert remove_before(root, "knmi", pd.Timestamp("2024-03-10T12:00")) == [
        score_store.folder_url(root, "knmi") + "/20240309.parquet"
    ]
    assert open_scores(root, "knmi").sizes["init_time"] == 1


def test_the_same_sums_are_the_same_bytes_however_they_came(tmp_path):
    """Also where other thresholds and forecasters were scored in between."""
    parts = [labelled(0, "net/1"), labelled(1, "net/2", ("served", "net/9"), (0.5, 10.0))]
    parts.append(labelled(3, "net/1"))
    once, again = str(tmp_path / "once"), str(tmp_path / "again")
    write_scores(once, "knmi", parts)
    for k in (3, 1, 0):
        write_scores(again, "knmi", [labelled(k, "net/3", ("served", "other"), (2.0, 30.0))])
    for one in parts[::-1]:
        write_scores(again, "knmi", [one])
    assert contents(once) == contents(again)
    assert len(contents(once)) == 2


def contents(root):
    """The bytes of every day."""
    return {path.name: path.read_bytes() for path in Path(root).glob("scores/knmi/*.parquet")}


def test_a_total_is_the_sum_of_all_forecasts_and_says_who_made_them(tmp_path):
    root = str(tmp_path)
    parts = [labelled(k, f"net/{k % 2}") for k in range(5)]  # on two days
    write_scores(root, "knmi", parts)
    of_all = total(root, "knmi")
    expected = open_scores(root, "knmi").sum("init_time")
    xr.testing.assert_equal(of_all.sums.transpose(*expected.dims), expected)
    assert (of_all.forecasts, of_all.models) == (5, {"net/0": 3, "net/1": 2})
    first = total(root, "knmi", end=FIRST)
    assert (first.forecasts, first.models) == (1, {"net/0": 1})
    with pytest.raises(NotFoundError, match="no scores"):
        total(root, "knmi", start=FIRST + pd.Timedelta("1D"))


def test_a_total_over_days_with_other_thresholds_and_forecasters(tmp_path):
    root = str(tmp_path)
    write_scores(root, "knmi", [part(0), part(2, ("served", "net/2"), (0.5, 5.0))])
    of_all, each = total(root, "knmi").sums, open_scores(root, "knmi").sum("init_time")
    xr.testing.assert_equal(of_all.transpose(*each.dims), each)


def test_scores_are_pruned_by_age_before_the_newest(tmp_path):
    root = str(tmp_path)
    write_scores(root, "knmi", [part(48 * day) for day in (0, 1, 10)])
    staged = tmp_path / "scores" / "knmi" / f".20240309.parquet.{'0' * 32}"
    staged.write_bytes(b"half")
    assert prune_scores(root, "knmi", None) == 0
    assert prune_scores(root, "knmi", pd.Timedelta("9D").to_pytimedelta()) == 1
    kept = ["2024-03-10", "2024-03-19"]
    assert [f"{day:%Y-%m-%d}" for day in score_store.days(root, "knmi")] == kept
    assert staged.exists(), "its writer may live"
    os.utime(staged, (0, 0))
    assert prune_scores(root, "knmi", None) == 0
    assert not staged.exists()
    assert prune_scores(root, "fmi", pd.Timedelta("9D").to_pytimedelta()) == 0


def test_a_day_that_is_removed_while_it_is_read_has_no_rows(tmp_path, monkeypatch):
    root = str(tmp_path)
    write_scores(root, "knmi", [part(0), part(3)])
    listed = score_store.days(root, "knmi")
    remove_before(root, "knmi", pd.Timestamp("2024-03-10"))
    monkeypatch.setattr(score_store, "days", lambda *_: listed)
    assert open_scores(root, "knmi").sizes["init_time"] == 1


def test_in_an_object_store():
    root = "memory://scores-of-test"
    write_scores(root, "knmi", [part(0)])
    write_scores(root, "knmi", [part(1)])
    assert open_scores(root, "knmi").sizes["init_time"] == 2


def _write(root, k):
    write_scores(root, "knmi", [part(k)])


@pytest.mark.slow
def test_writers_that_race_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_write, args=(str(tmp_path), k)) for k in range(2, 8)]
    for one in racers:
        one.start()
    for one in racers:
        one.join(120)
    assert open_scores(str(tmp_path), "knmi").sizes["init_time"] == 6


def test_scores_of_what_is_stored_are_those_of_the_sums(tmp_path):
    parts = [part(k) for k in range(3)]
    write_scores(str(tmp_path), "knmi", parts)
    total = open_scores(str(tmp_path), "knmi").sum("init_time").sortby("forecaster")
    hits = sum(one["hits"].isel(init_time=0, drop=True) for one in parts)
    misses = sum(one["misses"].isel(init_time=0, drop=True) for one in parts)
    wanted = (hits / (hits + misses)).sortby("forecaster")
    variables = total.assign(
        squared_error=total["pixels"], absolute_error=total["pixels"]
    ).drop_vars("fraction_error")
    assert np.allclose(scores(variables)["pod"].transpose(*wanted.dims), wanted)
