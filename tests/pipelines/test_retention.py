"""Retention: forecasts read the same after their day went into one store, whoever died."""

import os
import subprocess
import sys
import tempfile
import textwrap
import uuid

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import once, publishing, retention, storage
from pipelines.day_writer import UnequalDayError
from pipelines.errors import ExistsError, NotFoundError
from pipelines.forecast_days import DAY, day_url
from pipelines.forecasts import (
    folder_url,
    forecast_dataset,
    forecast_url,
    is_complete,
    is_published,
    latest_init_time,
    open_forecast,
    open_forecasts,
    parse_name,
    published,
    published_init_times,
    revisions,
)
from pipelines.once import sweep
from pipelines.publishing import CompactedError, publish
from pipelines.retention import (
    CompactionReport,
    RetentionSettings,
    compact_days,
    prune_forecasts,
    retain,
)
from pipelines.score_store import days, write_scores
from pipelines.storage import open_group
from pipelines.times import clock_set_to, utc

DATE = pd.Timestamp("2024-06-01")
LATER = DATE + pd.Timedelta("10D")
NO_GRACE = pd.Timedelta(0).to_pytimedelta()


def at(text):
    return DATE + pd.Timedelta(text)


@pytest.fixture(scope="module")
def make(grid):
    """A forecast of seeded rain; some pixels dry, some unknown."""

    def make_forecast(init_time, lead_times=3, members=0, seed=0, model="persistence", **extra):
        generator = np.random.default_rng(seed)
        shape = ((members,) if members else ()) + (lead_times, *grid.shape)
        rain_rate = generator.integers(0, 5000, shape) / 100
        rain_rate[..., 0, :], rain_rate[..., -1, :] = 0.0, np.nan
        array = xr.DataArray(
            rain_rate,
            dims=(("member",) if members else ()) + ("lead_time", "y", "x"),
            coords=grid.coords(lonlat=False)
            | {
                "lead_time": pd.timedelta_range("5min", periods=lead_times, freq="5min"),
                "init_time": init_time.to_datetime64(),
            },
        )
        attrs = {"model": model, "quality": "good", "inputs_sha256": f"{seed}", **extra}
        return forecast_dataset(array, attrs)

    return make_forecast


def day_of(root, text="0h"):
    return day_url(folder_url(root, "test"), at(text))


def compact(root, before=DATE + 2 * DAY, grace=NO_GRACE):
    return compact_days(root, "test", before, grace=grace)


def singles_in(root):
    return [name for name in storage.names(folder_url(root, "test")) if parse_name(name)]


def all_read(root):
    """Everything that can be asked of a product's forecasts, loaded."""
    every = {(one.init_time, one.revision): one for one in published(root, "test")}
    times = sorted({utc(one.attributes["publish_time"]) for one in every.values()})
    return {
        "all": open_forecasts(root, "test").load(),
        "attributes": {key: one.attributes for key, one in every.items()},
        "one": {key: open_forecast(root, "test", *key).load() for key in every},
        "newest": {time: open_forecast(root, "test", time).load() for time, _ in every},
        "known": {time: open_forecasts(root, "test", known_at=time).load() for time in times[::2]},
        "revisions": {time: len(revisions(root, "test", time)) for time, _ in every},
        "init_times": list(published_init_times(root, "test")),
    }


def assert_same(found, expected):
    for question, answer in expected.items():
        if isinstance(answer, xr.Dataset):
            xr.testing.assert_identical(found[question], answer)
        elif isinstance(answer, dict):
            assert found[question].keys() == answer.keys()
            assert_same(found[question], answer)
        else:
            assert found[question] == answer


@pytest.fixture(params=["folder", "object store"])
def root(tmp_path, request):
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def with_revisions(root, make):
    """Two days: on the first an ensemble, a shorter forecast, and one of three revisions."""
    with clock_set_to(DATE + DAY):
        publish(root, "test", make(at("1h")))
        publish(root, "test", make(at("2h"), lead_times=2, seed=1))
        publish(root, "test", make(at("2h"), lead_times=4, members=2, seed=2, quality="degraded"))
        publish(root, "test", make(at("2h"), lead_times=1, seed=3, model="steps"))
        publish(root, "test", make(at("3h"), lead_times=2, seed=4, members=3))
        publish(root, "test", make(at("25h"), seed=5))
    return root


def test_a_compacted_day_reads_as_its_forecasts_did(with_revisions):
    root = with_revisions
    before = all_read(root)
    report = compact(root)
    assert (report.days, report.forecasts, report.removed) == (["2024-06-01"], 5, 5)
    assert singles_in(root) == ["20240602T0100Z.zarr"]
    assert_same(all_read(root), before)
    assert compact(root) == CompactionReport()


def test_single_stores_stay_for_the_grace_period_and_the_day_counts(with_revisions):
    root = with_revisions
    before = all_read(root)
    hour = pd.Timedelta("1h").to_pytimedelta()
    with clock_set_to(LATER):
        assert compact(root, grace=hour).removed == 0
    assert len(singles_in(root)) == 6
    assert_same(all_read(root), before)
    assert all(
        (one.day is None) == (one.init_time >= DATE + DAY) for one in published(root, "test")
    )
    with clock_set_to(LATER + pd.Timedelta("59min")):
        assert compact(root, grace=hour).waiting == ["2024-06-01"]
    with clock_set_to(LATER + pd.Timedelta("61min")):
        assert compact(root, grace=hour).removed == 5
    assert_same(all_read(root), before)


def test_a_day_in_which_something_was_just_published_waits(with_revisions):
    with clock_set_to(DATE + DAY + pd.Timedelta("30min")):
        report = compact(with_revisions, grace=pd.Timedelta("1h").to_pytimedelta())
    assert (report.days, report.waiting) == ([], ["2024-06-01"])


@st.composite
def histories(draw):
    """What was published, in order: (hours since the first day, lead times, members, extra)."""
    one = st.tuples(
        st.sampled_from([0, 1, 23, 24, 47, 48]),
        st.integers(1, 3),
        st.sampled_from([0, 0, 2]),
        st.booleans(),
    )
    return draw(st.lists(one, min_size=1, max_size=6))


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories(), compacted_before=st.sampled_from(["1D", "2D", "3D"]))
def test_no_answer_changes_whatever_was_published(make, history, compacted_before):
    with tempfile.TemporaryDirectory() as root:
        for number, (hours, lead_times, members, extra) in enumerate(history):
            forecast = make(at(f"{hours}h"), lead_times, members, seed=number)
            if extra:
                forecast["rain_amount"] = forecast["rain_rate"].astype("float32") / 12
            with clock_set_to(LATER + number * pd.Timedelta("1h")):
                publish(root, "test", forecast)
        before = all_read(root)
        compact(root, at(compacted_before))
        newest = max(hours for hours, *_ in history) // 24
        days = {hours // 24 for hours, *_ in history} - {newest}
        assert {one.init_time.floor("D") for one in published(root, "test") if one.day} == {
            at(f"{day}D") for day in days if day < pd.Timedelta(compacted_before).days
        }
        assert_same(all_read(root), before)


STOCK_READER = """
    import sys, warnings
    import numpy as np
    import xarray as xr

    warnings.simplefilter("error")
    day = xr.open_zarr(sys.argv[1])
    ours = {name.partition(".")[0] for name in sys.modules} & {"pipelines", "models", "flows"}
    assert not ours, ours
    assert day["rain_rate"].dims == ("init_time", "member", "lead_time", "y", "x")
    assert list(day["init_time"].dt.hour.values) == [1, 2, 3]
    assert day["revision"].values.tolist() == [1, 3, 1]
    assert day["model"].values.tolist() == ["persistence", "steps", "persistence"]
    assert (day["valid_time"] == day["init_time"] + day["lead_time"]).all()
    assert day["rain_rate"].attrs["units"] == "mm h-1"
    assert day["crs"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    one = day["rain_rate"].sel(init_time="2024-06-01T02:00")
    seen = one.notnull().any(("y", "x")).values
    assert np.argwhere(seen).tolist() == [[0, 0]], "missing is missing"
    older = xr.open_zarr(sys.argv[1], group="superseded")
    assert older["revision"].values.tolist() == [1, 2]
    assert older["quality"].values.tolist() == ["good", "degraded"]
    assert older["rain_rate"].sel(member=0)[0, :2, 1:-1].notnull().all()
    print("read")
"""


def test_stock_xarray_opens_a_day_elsewhere_without_us_and_without_warnings(make, tmp_path):
    root = str(tmp_path / "root")
    for time, lead_times, members, seed, model, quality in (
        ("1h", 3, 0, 0, "persistence", "good"),
        ("2h", 2, 0, 1, "persistence", "good"),
        ("2h", 4, 2, 2, "persistence", "degraded"),
        ("2h", 1, 0, 3, "steps", "good"),
        ("3h", 2, 3, 4, "persistence", "good"),
        ("25h", 2, 0, 5, "persistence", "good"),
    ):
        publish(root, "test", make(at(time), lead_times, members, seed, model, quality=quality))
    compact(root)
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(STOCK_READER), day_of(root)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("read\n", "")


def test_a_day_is_few_objects_of_the_same_integers(make, tmp_path):
    root = str(tmp_path)
    for number in range(4):
        publish(root, "test", make(at(f"{number}h"), lead_times=3, members=2, seed=number))
    stored = open_group(forecast_url(root, "test", at("0h")))["rain_rate"]
    integers = stored[:]
    publish(root, "test", make(at("25h")))
    compact(root)
    array = open_group(day_of(root))["rain_rate"]
    np.testing.assert_array_equal(array[0], integers)
    assert array.dtype == np.uint16
    assert array.fill_value == 65535
    assert array.chunks == (1, 1, 1, 8, 8)
    assert array.shards == (1, 1, 3, 8, 8)
    folder = tmp_path / "forecasts/test/days/20240601.zarr/rain_rate"
    assert sum(path.is_file() for path in folder.rglob("*")) == 4 * 2 + 1


def test_product_variables_come_along_and_are_missing_where_there_were_none(root, make):
    publish(root, "test", make(at("1h")))
    rich = make(at("2h"), lead_times=2, members=2)
    rain_rate = rich["rain_rate"]
    chance = xr.concat([rain_rate.mean("member")] * 2, "threshold").astype("float32")
    rich["exceedance_probability"] = chance.assign_coords(threshold=[1.0, 5.0])
    publish(root, "test", rich)
    publish(root, "test", make(at("25h")))
    before = all_read(root)
    compact(root)
    assert_same(all_read(root), before)
    assert "exceedance_probability" not in open_forecast(root, "test", at("1h"))
    day = xr.open_zarr(storage.zarr_store(day_of(root)))
    assert day["exceedance_probability"].dims == ("init_time", "threshold", "lead_time", "y", "x")
    assert day["exceedance_probability"][0].isnull().all()


def shifted(forecast):
    return forecast.assign_coords(x=forecast["x"] + 1000.0)


def with_counts(forecast):
    count = xr.zeros_like(forecast["rain_rate"], dtype="int32").isel(lead_time=0, drop=True)
    return forecast.assign(count=count)


@pytest.mark.parametrize(
    ("unlike", "why"), [(shifted, "grids"), (with_counts, "cannot be missing")]
)
def test_a_day_whose_forecasts_do_not_go_together_is_left_alone(root, make, unlike, why):
    publish(root, "test", make(at("1h")))
    publish(root, "test", unlike(make(at("2h"))))
    publish(root, "test", make(at("24h")))
    publish(root, "test", make(at("50h")))
    report = compact(root)
    assert report.days == ["2024-06-02"]
    assert why in report.left["2024-06-01"]
    assert why in str(report)
    assert len(singles_in(root)) == 3
    assert list(published_init_times(root, "test")) == [at(f"{h}h") for h in (1, 2, 24, 50)]


def test_nothing_is_added_to_a_compacted_day(with_revisions, make):
    root = with_revisions
    compact(root)
    with pytest.raises(ExistsError, match="already published"):
        publish(root, "test", make(at("1h")))
    for init_time in (at("1h"), at("1h05min")):
        with pytest.raises(CompactedError, match="no forecast can be added to 2024-06-01"):
            publish(root, "test", make(init_time, seed=9))
    assert is_published(root, "test", at("1h"))
    assert not is_published(root, "test", at("1h05min"))
    with pytest.raises(NotFoundError):
        open_forecast(root, "test", at("1h05min"))
    with pytest.raises(NotFoundError):
        open_forecast(root, "test", at("2h"), revision=4)


def test_what_a_race_published_into_a_compacted_day_is_read_and_kept(
    with_revisions, make, monkeypatch
):
    root = with_revisions
    hour = pd.Timedelta("1h").to_pytimedelta()
    with clock_set_to(LATER):
        compact(root, grace=hour)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "find_day", lambda *_: None)
        publish(root, "test", make(at("2h"), seed=8))
        publish(root, "test", make(at("4h"), seed=9))
    before = all_read(root)
    assert before["revisions"][at("2h")] == 4
    assert before["all"].sizes["init_time"] == 5
    report = compact(root)
    assert report.removed == 0
    assert "2 forecasts were published while it was compacted" in report.left["2024-06-01"]
    assert_same(all_read(root), before)


def test_a_damaged_day_costs_no_single_store(make, tmp_path):
    root = str(tmp_path)
    with clock_set_to(DATE):
        for time in ("1h", "2h", "25h"):
            publish(root, "test", make(at(time)))
    with clock_set_to(LATER):
        compact(root, grace=pd.Timedelta("1h").to_pytimedelta())
    array = open_group(day_of(root), mode="r+")["rain_rate"]
    array[1, 1, 4, 4] = 77 if array[1, 1, 4, 4] != 77 else 78
    with pytest.raises(UnequalDayError, match="no single forecast of the day was removed"):
        compact(root)
    assert len(singles_in(root)) == 3


def test_the_day_of_the_newest_forecast_is_neither_compacted_nor_pruned(root, make):
    for time in ("1h", "25h", "26h"):
        publish(root, "test", make(at(time)))
    far = at("100D")
    assert compact(root, far).days == ["2024-06-01"]
    assert prune_forecasts(root, "test", far).forecasts == 1
    assert list(published_init_times(root, "test")) == [at("25h"), at("26h")]
    latest = storage.read_json(storage.join(folder_url(root, "test"), "latest.json"))
    xr.open_zarr(storage.zarr_store(f"{folder_url(root, 'test')}/{latest['forecast']}"))
    assert latest_init_time(root, "test") == at("26h")


def test_only_whole_days_before_a_time_are_pruned_compacted_or_not(root, make):
    for hours in (1, 25, 49, 73):
        publish(root, "test", make(at(f"{hours}h")))
    compact(root, at("2D"))
    assert prune_forecasts(root, "test", None).forecasts == 0
    report = prune_forecasts(root, "test", at("1D23h"), grace=NO_GRACE)
    assert (report.days, report.forecasts) == (1, 1)
    assert not storage.exists(day_of(root))
    assert list(published_init_times(root, "test")) == [at(f"{hours}h") for hours in (25, 49, 73)]
    report = prune_forecasts(root, "test", at("3D"))
    assert (report.days, report.forecasts) == (2, 2)
    assert list(published_init_times(root, "test")) == [at("73h")]


def test_opening_days_opens_one_store_a_day(root, make, monkeypatch):
    for day in range(3):
        for hours in range(3):
            publish(root, "test", make(at(f"{day}D") + pd.Timedelta(hours=hours)))
    compact(root)
    opens = []
    own = xr.open_zarr
    monkeypatch.setattr(
        xr, "open_zarr", lambda *args, **more: (opens.append(args), own(*args, **more))[1]
    )
    forecasts = open_forecasts(root, "test", end=at("2D"))
    assert forecasts.sizes["init_time"] == 7
    assert len(opens) == 2 + 1
    assert forecasts["rain_rate"].chunks is not None, "lazy"


def test_debris_goes_and_what_is_being_written_stays(make, tmp_path):
    root = str(tmp_path)
    publish(root, "test", make(at("1h")))
    folder = tmp_path / "forecasts/test"
    (folder / "days").mkdir()
    old = folder / f"days/.20240601.zarr.{uuid.uuid4().hex}"
    young = folder / f".20240601T0100Z.zarr.{uuid.uuid4().hex}"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (1, 1))
    assert prune_forecasts(root, "test", None).debris == 1
    assert (old.exists(), young.exists()) == (False, True)


def test_claims_of_the_dead_go_and_those_of_the_living_stay(make):
    root = f"memory://{uuid.uuid4().hex}"
    publish(root, "test", make(at("1h")))
    claims = f"{folder_url(root, 'test')}/claims"
    for name in ("20240601T0100Z.zarr", "20240601T0200Z.zarr"):
        storage.write_bytes(f"{claims}/{name}.1", b"")
    assert prune_forecasts(root, "test", None).debris == 1
    assert storage.names(claims) == ["20240601T0200Z.zarr.1"]
    assert sweep(folder_url(root, "test"), older_than_s=0.0) == 1
    assert storage.names(claims) == []


@pytest.mark.parametrize("dies_in", ["write_day", "compare", "mark_superseded", "retire"])
def test_a_step_that_dies_loses_nothing_and_the_next_run_goes_on(
    with_revisions, monkeypatch, dies_in
):
    root = with_revisions
    before = all_read(root)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            compact(root)
    assert_same(all_read(root), before)
    monkeypatch.setattr(once, "LEASE_S", 0.2)
    compact(root)
    assert singles_in(root) == ["20240602T0100Z.zarr"]
    assert_same(all_read(root), before)


@pytest.mark.parametrize("dies_at", [1, 4, 6])
def test_a_removal_that_dies_half_way_loses_nothing(with_revisions, monkeypatch, dies_at):
    root = with_revisions
    before = all_read(root)
    own, left = storage.remove, [dies_at]

    def die(url):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        own(url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            compact(root)
    assert_same(all_read(root), before)
    monkeypatch.setattr(once, "LEASE_S", 0.2)
    compact(root)
    assert singles_in(root) == ["20240602T0100Z.zarr"]
    assert storage.names(f"{folder_url(root, 'test')}/retired") == []
    assert_same(all_read(root), before)


def test_who_opened_a_single_store_can_read_on_after_it_is_retired(with_revisions):
    root, hour = with_revisions, pd.Timedelta("1h").to_pytimedelta()
    opened = open_forecast(root, "test", at("1h"))
    expected = opened.load().copy(deep=True)
    opened = open_forecast(root, "test", at("1h"))
    with clock_set_to(LATER):
        compact(root, grace=hour)
    with clock_set_to(LATER + pd.Timedelta("2h")):
        assert compact(root, grace=hour).removed == 5
        assert not is_complete(forecast_url(root, "test", at("1h")))
        compact(root, grace=hour)
    xr.testing.assert_identical(opened.load(), expected)
    with clock_set_to(LATER + pd.Timedelta("3h01min")):
        compact(root, grace=hour)
    assert singles_in(root) == ["20240602T0100Z.zarr"]


def test_scores_are_kept_for_so_long_before_the_newest_of_whatever_year(tmp_path):
    root = str(tmp_path)
    for day in (0, 399, 400, 401):
        coords = {
            "init_time": [at(f"{day}D")],
            "forecaster": ["served"],
            "lead_time": [pd.Timedelta("5min")],
            "region": ["domain"],
        }
        pixels = xr.DataArray(np.ones((1, 1, 1, 1)), coords, tuple(coords))
        write_scores(root, "test", [xr.Dataset({"pixels": pixels})])
    report = retain(root, "test", RetentionSettings())
    assert report.scores == 1
    assert "scores of 1 days removed" in str(report)
    assert list(days(root, "test")) == [at("399D"), at("400D"), at("401D")]
    assert retain(root, "test", RetentionSettings(scores=None)).scores == 0
