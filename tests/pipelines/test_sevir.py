"""SEVIR: one file, many events, each with its own place; VIL as an estimate of rain rate."""

import json

import h5py
import numpy as np
import pandas as pd
import pyproj
import pytest

from pipelines.archive import Archive
from pipelines.errors import FrameError, NoFramesError
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, ingest
from pipelines.sources import get_source
from pipelines.sources.base import content_of
from pipelines.sources.sevir import rain_rate_from_vil, vil_kg_m2
from pipelines.units import MARSHALL_PALMER

PROJ = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere "
NAME = "SEVIR_VIL_STORMEVENTS_2019_0701_1231.h5"
SIZE, FRAMES = 4, 3
PLACES = {"S1": (-93.0, 44.0), "S2": (-100.0, 35.0)}


@pytest.fixture
def folder(tmp_path):
    """Two events of 3 frames, 4×4 pixels; frame n of event e is 50·e + 60·n, south row 255."""
    (tmp_path / "vil/2019").mkdir(parents=True)
    vil = np.zeros((2, SIZE, SIZE, FRAMES), np.uint8)
    vil += np.arange(2, dtype=np.uint8)[:, None, None, None] * 50
    vil += np.arange(FRAMES, dtype=np.uint8) * 60
    vil[:, 0] = 255
    with h5py.File(tmp_path / "vil/2019" / NAME, "w") as file:
        file["id"] = np.array(list(PLACES), "S10")
        file["vil"] = vil
    rows = [
        {
            "id": event,
            "file_name": f"{image}/2019/{NAME}",
            "file_index": index,
            "img_type": image,
            "time_utc": "2019-09-17 19:54:00",
            "minute_offsets": "-5:0:5",
            "llcrnrlon": lon,
            "llcrnrlat": lat,
            "proj": PROJ,
            "size_x": SIZE,
            "size_y": SIZE,
            "height_m": SIZE * 1000.0,
            "width_m": SIZE * 1000.0,
        }
        for index, (event, (lon, lat)) in enumerate(PLACES.items())
        for image in ("vil", "vis")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "CATALOG.csv", index=False)
    return tmp_path


@pytest.fixture
def location(folder):
    return str(folder / "vil/2019" / NAME)


def frames(location):
    source = get_source("sevir")
    return [source.read(content_of(source, file)) for file in source.find(location)]


def test_a_byte_is_vil_by_the_published_encoding():
    vil = vil_kg_m2(np.array([0, 5, 6, 18, 19, 133, 254, 255]))
    # (6−2)/90.66, (18−2)/90.66, e^((19−83.9)/38.9), e^(49.1/38.9), e^(170.1/38.9)
    expected = [0, 0, 0.044121, 0.176484, 0.188552, 3.533224, 79.26135, np.nan]
    np.testing.assert_allclose(vil, expected, rtol=1e-4)


def test_vil_becomes_rain_by_the_named_relation():
    # 0.0172 kg/m² in 5 km is 1 mm⁶/m³; 200^(4/7) times that is 200 mm⁶/m³: 1 mm/h.
    vil = np.array([0, 0.0172 * 200 ** (4 / 7), 0.0172 * 20000 ** (4 / 7)])
    rain_rate = rain_rate_from_vil(vil, MARSHALL_PALMER)
    np.testing.assert_allclose(rain_rate, [0, 1, 100 ** (1 / 1.6)], rtol=1e-9)


def test_the_columns_depth_brings_vil_levels_to_vip_levels():
    """The bytes by which SEVIR is scored are VIP levels: 18, 30, 41, 46, 50 and 57 dBZ."""
    rain_rate = rain_rate_from_vil(
        vil_kg_m2(np.array([16, 74, 133, 160, 181, 219])), MARSHALL_PALMER
    )
    reflectivity_dbz = 10 * np.log10(200 * rain_rate**1.6)
    assert np.abs(reflectivity_dbz - [18, 30, 41, 46, 50, 57]).max() < 1.4


def test_an_events_frames_have_their_times_and_bytes(location):
    files = get_source("sevir").find(f"{location}#S2")
    assert [file.valid_time for file in files] == list(
        pd.date_range("2019-09-17T19:49", periods=3, freq="5min")
    )
    assert len({file.url for file in files}) == 3
    for number, frame in enumerate(frames(f"{location}#S2")):
        expected = rain_rate_from_vil(vil_kg_m2(np.array([50 + 60 * number])), MARSHALL_PALMER)
        np.testing.assert_allclose(frame.values[:3], expected[0], rtol=1e-6)
        assert frame.attrs["sevir_event"] == "S2"
        assert "not a measured rain rate" in frame.attrs["comment"]
        assert frame.attrs["vil_relation"] == "Greene and Clark 1972, uniform column of 5000 m"


def test_zero_is_dry_and_255_is_missing_and_the_first_row_is_the_south(location):
    first = frames(f"{location}#S1")[0]
    assert (first.values[:3] == 0).all()
    assert np.isnan(first.values[3]).all()


@pytest.mark.parametrize("event", PLACES)
def test_each_event_lies_at_its_own_place(location, event):
    grid = Grid.of(frames(f"{location}#{event}")[0])
    lon, lat = grid.corners_lonlat()["LL"]
    assert pyproj.Geod(ellps="sphere").inv(lon, lat, *PLACES[event])[2] < 1
    assert grid.pixel == (1000.0, 1000.0)


def test_an_event_is_an_archive(location, tmp_path):
    url = str(tmp_path / "event.zarr")
    settings = IngestSettings(source="sevir", location=f"{location}#S2", workers=1)
    assert dict(ingest(url, settings).outcomes) == {"ok": 3}
    assert len(Archive(url).usable_times()) == 3
    assert ingest(url, settings).settled == 3


def test_a_period_takes_part_of_an_event(location):
    start = pd.Timestamp("2019-09-17T19:54")
    assert len(get_source("sevir").find(f"{location}#S1", start)) == 2
    assert len(get_source("sevir").find(f"{location}#S1", end=start)) == 2


@pytest.mark.parametrize("tail", ["", "#", "#S3", ".no#S1"])
def test_a_location_without_an_event_is_an_error_that_says_how_to_name_one(location, tail):
    with pytest.raises(NoFramesError, match=r"S1|S858968"):
        get_source("sevir").find(location + tail)


def test_without_the_catalog_there_are_no_frames(folder, location):
    (folder / "CATALOG.csv").unlink()
    with pytest.raises(NoFramesError, match=r"s3://sevir/CATALOG\.csv"):
        get_source("sevir").find(f"{location}#S1")


def test_a_truncated_file_and_another_files_catalog_are_frame_errors(folder, location):
    (file, *_) = get_source("sevir").find(f"{location}#S1")
    with h5py.File(location, "r+") as hdf5:
        hdf5["id"][0] = b"S9"
    with pytest.raises(FrameError, match="catalog and file disagree"):
        get_source("sevir").fetch(file)
    path = folder / "vil/2019" / NAME
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FrameError, match="fetch the file again"):
        get_source("sevir").fetch(file)


def test_a_frame_that_is_cut_short_is_a_frame_error(location):
    source = get_source("sevir")
    content = source.fetch(source.find(f"{location}#S1")[0])
    head, _, pixels = content.partition(b"\n")
    assert json.loads(head)["id"] == "S1"
    for broken in (content[:-1], head, head[:20], b"{}\n" + pixels):
        with pytest.raises(FrameError, match="fetch the file again"):
            source.read(broken)
