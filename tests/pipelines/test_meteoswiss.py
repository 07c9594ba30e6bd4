"""MeteoSwiss' GIFs: a palette index is an accumulation over five minutes."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipelines.archive import Archive
from pipelines.errors import FrameError
from pipelines.grid import Grid
from pipelines.ingest import IngestSettings, ingest
from pipelines.sources import get_source
from pipelines.times import utc


def composite(indices=(), shape=(640, 710), palette=None):
    """A GIF whose first row begins with `indices`; all else is 0."""
    stored = np.zeros(shape, np.uint8)
    stored[0, : len(indices)] = indices
    picture = Image.fromarray(stored, mode=None).convert("P")
    picture.putdata(stored.ravel().tolist())
    picture.putpalette(palette or [v for i in range(256) for v in (255 - i, i, 7)])
    buffer = io.BytesIO()
    picture.save(buffer, "GIF", optimize=False)
    return buffer.getvalue()


def read(content):
    return get_source("meteoswiss").read(content)


def test_an_index_is_millimetres_in_five_minutes():
    values = read(composite([51, 71, 91, 111, 131])).values[0, 1:5]
    # 10^(59.5/20) = 944.06; /316 = 2.98754; ^(2/3) = 2.07432 mm in 5 min, 24.8918 mm/h.
    # 40 less is a hundredth of that and 1/100^(2/3) = 1/21.5443 of the rain, 20 less 1/4.64159.
    np.testing.assert_allclose(values, [0.248918, 1.155376, 5.362778, 24.8918], rtol=1e-5)


def test_codes_of_no_measurement_never_become_rain():
    frame = read(composite([0, 1, 2, 250, 251, 254, 255]))
    assert frame.values[0, :2].tolist() == [0, 0]
    assert frame.values[0, 2] > 0
    assert np.isfinite(frame.values[0, 3])
    assert np.isnan(frame.values[0, 4:7]).all()
    assert frame["observed"].values.sum() == 640 * 710 - 3


def test_the_interval_and_the_relation_are_told():
    frame = read(composite())
    assert frame.attrs["cell_methods"] == "time: mean (interval: 5 min, ends at time)"
    assert frame.attrs["z_r_relation"] == "Swiss radars (MeteoSwiss): a=316, b=1.5"


def test_the_grid_is_the_swiss_radar_domain():
    grid = Grid.of(read(composite()))
    assert (grid.x[0], grid.x[-1]) == (255500.0, 964500.0)
    assert (grid.y[0], grid.y[-1]) == (479500.0, -159500.0)
    # The origin of the Swiss projection is the old observatory of Bern: 600 km, 200 km.
    lon, lat = grid.lonlat(np.array([600000.0]), np.array([200000.0]))
    assert (lon[0], lat[0]) == pytest.approx((7.4395833, 46.9524056), abs=1e-6)


def test_colours_have_no_say():
    grey = [v for i in range(256) for v in (i, i, i)]
    assert read(composite([71, 255], palette=grey)).identical(read(composite([71, 255])))


@pytest.mark.parametrize(
    "content",
    [b"", composite()[:-100], composite()[:30], b"\x89PNG\r\n" + bytes(50)],
    ids=["empty", "pixels", "header", "png"],
)
def test_a_truncated_or_foreign_file_is_a_frame_error(content):
    with pytest.raises(FrameError, match="fetch the file again"):
        read(content)


def test_another_size_is_a_frame_error():
    with pytest.raises(FrameError, match=r"\(640, 710\)"):
        read(composite(shape=(640, 700)))


@pytest.mark.parametrize("name", ["AQC161361205_00005.801.gif", "CPC1613612057_00005.801.gif"])
def test_the_time_in_the_name_counts_days_of_the_year(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (file,) = get_source("meteoswiss").find(str(tmp_path))
    assert file.valid_time == pd.Timestamp("2016-05-15T12:05")  # 31 + 29 + 31 + 30 + 15


def test_an_archive_takes_the_time_from_the_name(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for minute, index in ((0, 71), (5, 131)):
        (folder / f"AQC16136120{minute}_00005.801.gif").write_bytes(composite([index]))
    url = str(tmp_path / "swiss.zarr")
    report = ingest(url, IngestSettings(source="meteoswiss", location=str(folder), workers=1))
    assert dict(report.outcomes) == {"ok": 2}
    archive = Archive(url)
    assert utc("2016-05-15T12:05Z") in archive.usable_times()
