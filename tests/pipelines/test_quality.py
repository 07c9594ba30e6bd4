"""Quality control: each rule by hand, what it counts, and that order of arrival has no say."""

import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines import quality, storage
from pipelines.errors import GridMismatchError, SquallError
from pipelines.grid import Grid
from pipelines.quality import QualitySettings, clutter_from_frames, sudden_jumps
from pipelines.sources.base import frame
from pipelines.sources.synthetic import PROJECTION

TIME = pd.Timestamp("2024-06-01T00:00")
NAN = math.nan
OFF = dict.fromkeys(quality.RULES, 0)
FOUR = Grid.from_corner(PROJECTION, 0.0, 4000.0, (1000.0, 1000.0), (4, 4))
SIX = Grid.from_corner(PROJECTION, 0.0, 6000.0, (1000.0, 1000.0), (6, 6))

RAIN = arrays(
    np.float32,
    (6, 6),
    elements=st.sampled_from([NAN, 0.0, 0.0, 0.0, 0.05, 0.2, 3.0, 60.0, 400.0]),
)


def of(field: object, grid: Grid = SIX) -> xr.DataArray:
    return frame(np.asarray(field, np.float32), grid, TIME, source="test")


@pytest.fixture(scope="module")
def mask_url(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clutter") / "mask.npy"
    np.save(path, np.eye(6, dtype=bool))
    return str(path)


def test_off_is_the_frame_itself():
    one = of([[1e4, 0.01] * 3] * 6)
    result, counts = quality.apply(one, QualitySettings())
    assert result is one
    assert counts == OFF


def test_too_much_is_not_observed_and_too_little_is_dry():
    one = of([[300, 301, 0.04, 0.05], [NAN, 0, 1, 2], [0] * 4, [0.01] * 4], FOUR)
    result, counts = quality.apply(one, QualitySettings(largest_mm_h=300, least_mm_h=0.05))
    np.testing.assert_array_equal(
        result, np.float32([[300, NAN, 0, 0.05], [NAN, 0, 1, 2], [0] * 4, [0] * 4])
    )
    np.testing.assert_array_equal(result["observed"], np.isfinite(result))
    assert counts == OFF | {"largest": 1, "least": 5}
    assert result.attrs == one.attrs
    assert one.values[0, 1] == 301  # the frame that was given is left alone


def test_clutter_is_not_observed(mask_url):
    field = np.arange(36.0).reshape(6, 6)
    field[2, 2] = NAN
    result, counts = quality.apply(of(field), QualitySettings(clutter=mask_url))
    assert np.isnan(np.diag(result)).all()
    assert counts == OFF | {"clutter": 5}
    assert np.isfinite(result).sum() == 30


SPECKLED = [
    [9, 0, 0, 0, 0, 0],
    [0, 0, 0, 3, 0, 0],
    [0, 2, 0, 0, 4, 0],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 5, 0, 0.09, 0],
    [0, 0, 0, NAN, 0, 0],
]


def test_speckle_becomes_dry_and_corners_connect():
    result, counts = quality.apply(of(SPECKLED), QualitySettings(speckle_pixels=2))
    expected = np.float32(SPECKLED)
    expected[2, 1] = 0  # alone; 3 and 4 touch at a corner; 0.09 is dry already
    np.testing.assert_array_equal(result, expected)
    assert counts == OFF | {"speckle": 1}
    result, counts = quality.apply(of(SPECKLED), QualitySettings(speckle_pixels=3))
    expected[1, 3] = expected[2, 4] = 0
    np.testing.assert_array_equal(result, expected)
    assert counts == OFF | {"speckle": 3}


def test_an_area_whose_size_is_not_known_is_no_speckle():
    result, _ = quality.apply(of(SPECKLED), QualitySettings(speckle_pixels=10))
    assert result.values[0, 0] == 9  # at the grid's border
    assert result.values[4, 2] == 5  # beside what was not observed


def test_what_another_rule_took_away_does_not_hide_speckle():
    field = np.zeros((6, 6))
    field[2, 2], field[2, 3] = 500, 5
    settings = QualitySettings(largest_mm_h=100, speckle_pixels=2)
    result, counts = quality.apply(of(field), settings)
    assert counts == OFF | {"largest": 1, "speckle": 1}
    assert np.isnan(result.values[2, 2])
    assert result.values[2, 3] == 0


@given(
    RAIN,
    st.sampled_from([None, 50.0, 300.0]),
    st.sampled_from([None, 0.1, 1.0]),
    st.sampled_from([None, 2, 4, 9]),
    st.booleans(),
)
def test_counts_are_the_changed_pixels_and_a_second_time_changes_nothing(
    mask_url, rain_rate, largest, least, speckle, with_mask
):
    settings = QualitySettings(
        largest_mm_h=largest,
        least_mm_h=least,
        speckle_pixels=speckle,
        clutter=mask_url if with_mask else None,
    )
    one = of(rain_rate)
    result, counts = quality.apply(one, settings)
    unchanged = (result.values == one.values) | (np.isnan(result.values) & np.isnan(one.values))
    assert sum(counts.values()) == (~unchanged).sum()
    assert np.isnan(result.values).sum() - np.isnan(one.values).sum() == (
        counts["largest"] + counts["clutter"]
    )
    assert (result.values[~unchanged] == 0).sum() == counts["least"] + counts["speckle"]
    np.testing.assert_array_equal(result["observed"], np.isfinite(result))
    again, counts = quality.apply(result, settings)
    assert counts == OFF
    assert again is result


# Clutter -----------------------------------------------------------------------------------------


def archive_of(days: int = 3) -> xr.DataArray:
    """Rain that passes over all pixels alike, one in ten frames; (2, 3) and (5, 5) are clutter.

    (0, 0) is observed in a tenth of the frames only.
    """
    times = pd.date_range(TIME, periods=288 * days, freq="5min")
    rng = np.random.default_rng(3)
    field = np.where(rng.random((len(times), 1, 1)) < 0.1, 2.0, 0.0) * np.ones((1, 12, 12))
    field[rng.random(len(times)) < 0.8, 2, 3] = 1.0
    field[rng.random(len(times)) < 0.3, 5, 5] = 1.0
    field[10::10, 0, 0] = NAN
    field[:, 0, 0] = np.where(np.arange(len(times)) % 10, NAN, 1.0)
    grid = Grid.from_corner(PROJECTION, 0.0, 12000.0, (1000.0, 1000.0), (12, 12))
    coords = grid.coords(lonlat=False) | {"time": times}
    return xr.DataArray(field, dims=("time", "y", "x"), coords=coords, name="rain_rate")


def test_clutter_is_what_is_wet_too_often_or_far_more_than_its_surroundings():
    frames = archive_of()
    mask = clutter_from_frames(frames, ratio=2.0, window=5)
    assert mask.dtype == bool
    assert np.argwhere(mask.values).tolist() == [[2, 3], [5, 5]]
    assert np.argwhere(clutter_from_frames(frames, ratio=1e9).values).tolist() == [[2, 3]]
    # seen in 87 of 864 frames, always wet
    judged = clutter_from_frames(frames, least_frames=80, window=5)
    assert judged.values[0, 0]
    assert np.isnan(mask["wet_share"].values[0, 0])
    assert mask["wet_share"].values[9, 9] == (frames.values[:, 9, 9] > 0).mean()


def test_a_rainy_period_alone_is_no_clutter():
    frames = archive_of().isel(x=slice(6, 12), y=slice(6, 12))
    assert not clutter_from_frames(frames, window=5).any()


def test_a_lazy_archive_gives_the_same_mask():
    frames = archive_of()
    lazy = clutter_from_frames(frames.chunk(time=100, y=5, x=7))
    xr.testing.assert_identical(lazy, clutter_from_frames(frames))


def test_a_mask_comes_back_from_zarr_and_netcdf_with_its_grid(tmp_path):
    mask = clutter_from_frames(archive_of())
    grid = Grid.of(mask)
    with storage.consolidating():
        mask.to_dataset().to_zarr(tmp_path / "mask.zarr")
    mask.to_dataset().to_netcdf(tmp_path / "mask.nc", engine="scipy")
    for name in ("mask.zarr", "mask.nc"):
        url = str(tmp_path / name)
        np.testing.assert_array_equal(quality.clutter_mask(url, grid), mask)
        moved = Grid(grid.crs_wkt, grid.x + 5000.0, grid.y)
        with pytest.raises(GridMismatchError, match="clutter mask of another grid"):
            quality.clutter_mask(url, moved)


def test_a_changed_mask_is_read_again(tmp_path):
    url = str(tmp_path / "mask.npy")
    np.save(url, np.zeros((4, 4), bool))
    assert not quality.clutter_mask(url, FOUR).any()
    (tmp_path / "mask.npy").unlink()
    np.save(url, np.ones((4, 4), np.int16))
    assert quality.clutter_mask(url, FOUR).all()


def test_a_mask_that_is_none_is_an_error(tmp_path, mask_url):
    with pytest.raises(GridMismatchError, match=r"found \(6, 6\) pixels"):
        quality.clutter_mask(mask_url, FOUR)
    with pytest.raises(SquallError, match="not a clutter mask"):
        quality.clutter_mask(str(tmp_path / "none.npy"), FOUR)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    with pytest.raises(SquallError, match="not a clutter mask"):
        quality.clutter_mask(str(tmp_path / "broken.npy"), FOUR)


# Jumps -------------------------------------------------------------------------------------------

JUMPS = QualitySettings(jump_factor=3.0, least_coverage=0.75)


def stats(
    rain: list[float], wet: list[float] | None = None, coverage: list[float] | None = None
) -> pd.DataFrame:
    times = pd.date_range(TIME, periods=len(rain), freq="5min", name="time")
    return pd.DataFrame(
        {
            "observed_fraction": coverage or [0.9] * len(rain),
            "rain_rate_mm_h": rain,
            "wet_fraction": wet or [0.2] * len(rain),
        },
        index=times,
    )


def minutes(flags: pd.DataFrame) -> list[int]:
    return [int((time - TIME).total_seconds() // 60) for time in flags.index]


def test_a_jump_falls_back_and_a_change_of_weather_stays():
    assert minutes(sudden_jumps(stats([1, 1, 5, 1, 1]), JUMPS)) == [10]
    assert minutes(sudden_jumps(stats([1, 1, 0.2, 1, 1]), JUMPS)) == [10]
    assert minutes(sudden_jumps(stats([1, 1, 5, 5, 5]), JUMPS)) == []
    assert minutes(sudden_jumps(stats([1, 1, 2.9, 1, 1]), JUMPS)) == []
    assert minutes(sudden_jumps(stats([0, 0, 0.04, 0, 0]), JUMPS)) == []  # nearly dry


def test_flags_name_the_statistic():
    flags = sudden_jumps(stats([1, 1, 1], wet=[0.1, 0.9, 0.1]), JUMPS)
    assert flags.loc[TIME + pd.Timedelta("5min")].to_dict() == {
        "observed_fraction": False,
        "rain_rate_mm_h": False,
        "wet_fraction": True,
    }


def test_the_newest_frame_and_one_beside_a_gap_are_not_judged():
    assert minutes(sudden_jumps(stats([1, 1, 5]), JUMPS)) == []
    gap = stats([1, 1, 1, 1, 1, 5, 1]).drop(
        [TIME + pd.Timedelta(f"{minute}min") for minute in (10, 15, 20)]
    )
    assert minutes(sudden_jumps(gap, JUMPS)) == []
    before = stats([1, 5, 1, 1, 1, 1, 1]).iloc[[0, 1, 5, 6]]
    assert minutes(sudden_jumps(before, JUMPS)) == []
    patient = JUMPS.model_copy(update={"neighbours_within": pd.Timedelta("20min").to_pytimedelta()})
    assert minutes(sudden_jumps(gap, patient)) == [25]


def test_half_of_the_radars_gone_is_flagged_as_long_as_it_lasts():
    coverage = [0.9] * 6 + [0.45] * 4 + [0.9] * 3
    flags = sudden_jumps(stats([1.0] * 13, coverage=coverage), JUMPS)
    assert minutes(flags) == [30, 35, 40, 45]
    assert flags["observed_fraction"].all()
    assert sudden_jumps(stats([1.0] * 13, coverage=[0.45] * 13), JUMPS).empty


def test_off_flags_nothing():
    assert sudden_jumps(stats([1, 9, 1], coverage=[1, 0, 1]), QualitySettings()).empty


@given(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0, NAN]), min_size=3, max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_arrival_has_no_say(rain, random):
    ordered = stats(rain, coverage=[0.9 if value < 5 else 0.2 for value in rain])
    rows = list(ordered.to_dict("index").items())
    random.shuffle(rows)
    expected = sudden_jumps(ordered, JUMPS)
    shuffled = ordered.loc[[time for time, _ in rows]]
    pd.testing.assert_frame_equal(sudden_jumps(shuffled, JUMPS), expected, check_freq=False)


def test_two_rows_of_one_time_are_an_error():
    twice = pd.concat([stats([1, 1]), stats([2, 2])])
    with pytest.raises(SquallError, match="two frames of one time"):
        sudden_jumps(twice, JUMPS)
