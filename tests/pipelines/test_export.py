"""Exports: MLCast's own validator is the judge, and every pixel is the archive's."""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import export, mlcast, storage
from pipelines.archive import LIVE, TRAINING, Archive, Status, create
from pipelines.errors import ExistsError, NotFoundError, SquallError
from pipelines.export import export_mlcast, export_netcdf
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, ingest
from pipelines.sources import get_source
from pipelines.sources.synthetic import PROJECTION
from pipelines.units import MISSING

START = pd.Timestamp("2024-06-01T00:00")
TIMESTEP = pd.Timedelta("5min")
PUBLISHER = {
    "creator": "Jo Day <jo@day.org>",
    "identifier": "NL-KNMI-rainfall_flux",
    "license": "CC-BY-4.0",
}
LENGTH = "3.3", "Minimum 3-year coverage"
ADDRESS = "5.4", "Global attribute 'mlcast_created_with'"
KILOMETRE = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (256, 270))


def failures(url):
    """Section and requirement of everything that MLCast's validator fails at `url`."""
    pytest.importorskip("mlcast_dataset_validator")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlcast_dataset_validator.specs.source_data.radar_precipitation import validate_dataset

        report, _ = validate_dataset(xr.open_zarr(storage.local_path(url)))
    assert len(report.results) > 20
    return [
        (result.section, result.requirement) for result in report.results if result.status == "FAIL"
    ]


def archive_of(folder, slots, *, grid=KILOMETRE, timestep=TIMESTEP, layout=LIVE, length=None):
    """An archive with arbitrary stored integers in some slots, and a bad frame in slot 1."""
    rng = np.random.default_rng(7)
    length = length or max(slots) + 3
    url = str(Path(folder) / "archive.zarr")
    attrs = {"source": "a radar", "license": "CC-BY-4.0 (its provider)"}
    archive = create(
        url, grid, START, START + timestep * (length - 1), timestep, attrs, layout=layout
    )
    for slot in {*slots, 1}:
        stored = rng.integers(0, MISSING + 1, grid.shape, np.uint16)
        archive.write_frame(archive.times[slot], stored)
    statuses = {archive.times[1]: Status.BAD}
    statuses |= {
        archive.times[slot]: Status.LATE if slot % 2 else Status.OK for slot in sorted(slots)
    }
    archive.commit([], statuses)
    return archive


def stored(url):
    """The integers of an export, and their times."""
    array = zarr.open_group(storage.zarr_store(storage.normalise(url)), mode="r")["rain_rate"][:]
    return array, pd.DatetimeIndex(xr.open_zarr(url)["time"].values)


def test_an_export_fails_nothing_but_length_and_address(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_FRAMES", 3)
    archive = archive_of(tmp_path, [0, 2, 3, 4, 8])
    exported = export_mlcast(archive.url, str(tmp_path / "e.zarr"), **PUBLISHER)
    assert failures(exported.url) == [LENGTH, ADDRESS]
    assert list(exported.unmet) == ["3.3", "5.4"]
    assert list(exported.missing) == [START + TIMESTEP * k for k in (1, 5, 6, 7)]


def test_an_export_of_real_knmi_files_fails_nothing_but_length_and_address(tmp_path, radar_data):
    url = str(tmp_path / "knmi.zarr")
    source = IngestSettings(source="knmi", location=str(radar_data / "knmi"), workers=1)
    files = files_of(source)
    ingest(url, source, files[:4] + files[6:10])
    publisher = {name: PUBLISHER[name] for name in ("creator", "identifier")}  # licence: KNMI's
    exported = export_mlcast(url, str(tmp_path / "e.zarr"), **publisher)
    assert failures(exported.url) == [LENGTH, ADDRESS]
    assert list(exported.missing) == [file.valid_time for file in files[4:6]]
    archive = Archive(url)
    rain_rate = xr.open_zarr(exported.url)["rain_rate"]
    np.testing.assert_allclose(rain_rate, archive.read_frames(exported.times), rtol=1e-6)
    assert float(rain_rate.max()) > 1


def files_of(source):
    """The files of a source, by time."""
    files = get_source(source.source).find(source.location, None, None)
    return sorted(files, key=lambda file: file.valid_time)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"grid": Grid.from_corner(PROJECTION, 0, 0, (2e3, 2e3), (256, 256))}, {"3.2", "3.3"}),
        ({"grid": Grid.from_corner(PROJECTION, 0, 0, (1e3, 1e3), (256, 255))}, {"3.2", "3.3"}),
        ({"grid": Grid.from_corner("EPSG:4326", 5, 52, (0.01, 0.01), (256, 256))}, {"3.1", "3.3"}),
        ({"grid": Grid.from_corner("EPSG:32635", 0, 7e6, (1e3, 1e3), (256, 256))}, {"3.3"}),
        # 1096 days are the first that the validator takes for three years
        ({"timestep": pd.Timedelta("1D"), "slots": [0, 1095]}, {"3.3"}),
        ({"timestep": pd.Timedelta("1D"), "slots": [0, 1096]}, set()),
    ],
)
def test_unmet_rules_are_those_the_validator_fails(tmp_path, changes, found):
    archive = archive_of(tmp_path, **({"slots": [0, 2]} | changes))
    exported = export_mlcast(archive.url, str(tmp_path / "e.zarr"), **PUBLISHER)
    assert set(exported.unmet) == found | {"5.4"}
    assert {section for section, _ in failures(exported.url)} == found | {"5.4"}


@pytest.mark.parametrize(
    ("address", "fails"),
    [
        ("https://github.com/mlcast-community/mlcast-dataset-KNMI-radar@v1", False),
        ("https://github.com/mlcast-community/radar@v1", True),
        ("https://github.com/us/mlcast-dataset-KNMI-radar@v1", True),
        ("https://github.com/mlcast-community/mlcast-dataset-KNMI-radar", True),
    ],
)
def test_the_address_is_as_the_validator_reads_it(tmp_path, monkeypatch, address, fails):
    mlcast_metadata = pytest.importorskip(
        "mlcast_dataset_validator.checks.global_attributes.mlcast_metadata"
    )
    monkeypatch.setattr(mlcast_metadata, "github_repo_exists", lambda org, repo: False)
    archive = archive_of(tmp_path, [0, 2])
    exported = export_mlcast(
        archive.url, str(tmp_path / "e.zarr"), created_with=address, **PUBLISHER
    )
    assert ("5.4" in exported.unmet) == fails == (ADDRESS in failures(exported.url))


@settings(max_examples=6)
@given(
    slots=st.sets(st.integers(2, 60), min_size=1, max_size=30),
    layout=st.sampled_from([LIVE, TRAINING]),
)
def test_an_export_is_the_usable_frames_bit_for_bit_and_the_rest_is_missing(slots, layout):
    grid = Grid.from_corner(PROJECTION, 0.0, 0.0, (1000.0, 1000.0), (5, 7))
    with tempfile.TemporaryDirectory() as folder:
        archive = archive_of(folder, slots, grid=grid, layout=layout)
        exported = export_mlcast(archive.url, folder + "/e.zarr", **PUBLISHER)
        values, times = stored(folder + "/e.zarr")
        listed = pd.DatetimeIndex(xr.open_zarr(folder + "/e.zarr")["missing_times"].values)
        expected = archive.read_stored(slice(None))[sorted(slots)]
    np.testing.assert_array_equal(values, expected)
    assert list(times) == list(exported.times) == [START + TIMESTEP * k for k in sorted(slots)]
    gaps = sorted(set(range(min(slots), max(slots))) - slots)
    assert list(listed) == list(exported.missing) == [START + TIMESTEP * k for k in gaps]


def test_a_period_is_taken_with_both_its_ends(tmp_path):
    archive = archive_of(tmp_path, range(2, 12))
    first, last = archive.times[4], archive.times[9]
    exported = export_mlcast(
        archive.url, str(tmp_path / "e.zarr"), start=first, end=last, **PUBLISHER
    )
    assert (exported.times[0], exported.times[-1], len(exported.times)) == (first, last, 6)
    with pytest.raises(NotFoundError, match="no frame from 2030"):
        export_mlcast(
            archive.url, str(tmp_path / "f.zarr"), start=pd.Timestamp("2030"), **PUBLISHER
        )
    assert not (tmp_path / "f.zarr").exists()


def test_an_export_that_dies_is_no_store_and_leaves_nothing_in_the_next(tmp_path, monkeypatch):
    archive = archive_of(tmp_path, range(2, 12))
    blank = np.full(archive.grid.shape, MISSING, np.uint16)  # Zarr writes no object for these
    for slot in range(4, 8):
        archive.write_frame(archive.times[slot], blank)
    target = str(tmp_path / "e.zarr")
    monkeypatch.setattr(export, "SHARD_FRAMES", 2)
    copy = export._copy_shard

    def die(archive_url, url, first, slots):
        if first >= 6:
            raise KeyboardInterrupt
        return copy(archive_url, url, first, slots)

    monkeypatch.setattr(export, "_copy_shard", die)
    with pytest.raises(KeyboardInterrupt):
        export_mlcast(archive.url, target, **PUBLISHER)
    assert (tmp_path / "e.zarr/rain_rate/c/0").exists()
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(target)

    (tmp_path / "e.zarr/.zarr.json.0123").touch()  # killed while writing the root metadata
    monkeypatch.setattr(export, "_copy_shard", copy)
    export_mlcast(archive.url, target, start=archive.times[4], **PUBLISHER)
    values, _ = stored(target)
    np.testing.assert_array_equal(values, archive.read_stored(slice(4, 12)))
    assert not (tmp_path / "e.zarr/rain_rate/c/0").exists()


def test_a_reader_during_an_export_finds_no_store(tmp_path, monkeypatch):
    archive = archive_of(tmp_path, [2, 3])
    target = str(tmp_path / "e.zarr")
    copy = export._copy_shard
    seen = []

    def look(*task):
        result = copy(*task)
        seen.append(storage.exists(storage.join(target, storage.ROOT_METADATA)))
        return result

    monkeypatch.setattr(export, "_copy_shard", look)
    export_mlcast(archive.url, target, **PUBLISHER)
    assert seen == [False]
    assert xr.open_zarr(target).sizes["time"] == 2


def test_nothing_that_is_at_the_target_is_touched(tmp_path):
    archive = archive_of(tmp_path, [2])
    target = tmp_path / "mine"
    target.mkdir()
    (target / "letter.txt").write_text("dear")
    with pytest.raises(ExistsError, match="mine"):
        export_mlcast(archive.url, str(target), **PUBLISHER)
    assert (target / "letter.txt").read_text() == "dear"
    with pytest.raises(ExistsError):
        export_mlcast(archive.url, archive.url, **PUBLISHER)
    assert len(Archive(archive.url).usable_times()) == 1


@pytest.mark.parametrize(
    ("given", "of_archive", "expected"),
    [
        (None, "CC-BY-4.0", "CC-BY-4.0"),
        (None, "CC-BY-4.0 (KNMI Data Platform)", "CC-BY-4.0"),
        ("cc-by-sa-4.0", "by provider", "CC-BY-SA-4.0"),
        (None, "by provider; OPERA: CC-BY-4.0", None),
        (None, None, None),
        ("public domain", "CC-BY-4.0", None),
        ("LicenseRef-ours", "CC-BY-4.0", None),
    ],
)
def test_a_licence_is_an_spdx_expression_or_has_to_be_given(given, of_archive, expected):
    if expected is None:
        with pytest.raises(SquallError, match=r"SPDX.*give `license`"):
            mlcast.spdx(given, of_archive)
    else:
        assert mlcast.spdx(given, of_archive) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"creator": "Jo Day"},
        {"creator": "<jo@day.org>"},
        {"creator": "Jo Day <jo at day.org>"},
        {"identifier": "knmi"},
        {"identifier": "nl-KNMI-rain"},
        {"identifier": "NL-KNMI-rain-5min"},
        {"identifier": "NL-_KNMI-rain"},
    ],
)
def test_a_wrong_publisher_is_told_before_anything_is_written(tmp_path, wrong):
    archive = archive_of(tmp_path, [2])
    with pytest.raises(SquallError, match=f"not a valid {next(iter(wrong))}"):
        export_mlcast(archive.url, str(tmp_path / "e.zarr"), **(PUBLISHER | wrong))
    assert not (tmp_path / "e.zarr").exists()


def test_a_netcdf_file_has_the_usable_frames_bit_for_bit(tmp_path):
    pytest.importorskip("h5netcdf")
    archive = archive_of(tmp_path, [0, 2, 3, 30, 31])
    path = tmp_path / "to" / "e.nc"
    times = export_netcdf(archive.url, str(path), end=archive.times[30])
    assert list(times) == [archive.times[k] for k in (0, 2, 3, 30)]
    with xr.open_dataset(path, engine="h5netcdf", mask_and_scale=False) as raw:
        assert raw["rain_rate"].dtype == np.uint16
        np.testing.assert_array_equal(
            raw["rain_rate"], archive.read_stored(slice(None))[[0, 2, 3, 30]]
        )
    with xr.open_dataset(path, engine="h5netcdf", decode_coords="all") as dataset:
        np.testing.assert_allclose(dataset["rain_rate"], archive.read_frames(times), rtol=1e-6)
        assert dataset["rain_rate"].attrs["units"] == "mm h-1"
        assert Grid.of(dataset).matches(archive.grid)
        assert {"lat", "lon", "crs"} < set(dataset.coords)
    with pytest.raises(ExistsError):
        export_netcdf(archive.url, str(path))


def test_a_netcdf_file_that_is_cut_short_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip("h5netcdf")
    archive = archive_of(tmp_path, [0, 2])

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_stored", die)
    with pytest.raises(KeyboardInterrupt):
        export_netcdf(archive.url, str(tmp_path / "e.nc"))
    assert not list(tmp_path.glob("*.nc*"))
    assert not list(tmp_path.glob(".*.part"))


def test_no_netcdf_without_its_package_and_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    with pytest.raises(SquallError, match="squall\\[formats\\]"):
        export_netcdf(str(tmp_path), str(tmp_path / "e.nc"))
