"""The synthetic radar: rain that moves, and a folder with a real archive's faults."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import FrameError
from pipelines.sources import get_source
from pipelines.sources.synthetic import TRANSMISSION, SyntheticRadar, write_archive


def test_everything_follows_from_the_seed(radar):
    again, other = replace(radar), replace(radar, seed=8)
    np.testing.assert_array_equal(radar.rain_rate(), again.rain_rate())
    assert not np.array_equal(radar.rain_rate(), other.rain_rate(), equal_nan=True)


def test_some_pixels_rain_some_are_dry_and_the_rest_is_out_of_range(radar):
    field = radar.rain_rate()
    inside = np.isfinite(field[0])
    x, y = np.meshgrid(radar.grid.x, radar.grid.y)
    np.testing.assert_array_equal(inside, np.hypot(x, y) <= 48_000)
    assert (field[:, inside] == 0).mean() > 0.1
    assert (field[:, inside] >= 1).mean() > 0.02
    assert not (field[:, inside] < 0).any()


def test_rain_drifts_with_the_wind():
    # 11 m/s east and 5 m/s north for an hour are 19.8 and 9 pixels of 2 km.
    radar = SyntheticRadar(frames=2, timestep=pd.Timedelta("20min"), size=96, seed=1)
    first, later = np.nan_to_num(radar.rain_rate())
    spectrum = np.fft.fft2(first).conj() * np.fft.fft2(later)
    row, column = np.unravel_index(np.fft.ifft2(spectrum).real.argmax(), first.shape)
    assert column == pytest.approx(6.6, abs=2)
    assert 96 - row == pytest.approx(3.0, abs=2)  # rows run southward


def test_the_folder_has_every_frame_but_the_missing_one_and_one_twice(synthetic, radar, faults):
    files = get_source("odim").find(str(synthetic))
    times = [file.valid_time for file in files]
    assert set(radar.times) - set(times) == {radar.times[faults.missing]}
    assert len(times) == radar.frames
    assert times.count(radar.times[faults.duplicate]) == 2


def test_one_file_is_truncated_and_one_late(synthetic, radar, faults):
    source = get_source("odim")
    for file in source.find(str(synthetic)):
        content = (synthetic / file.name).read_bytes()
        if file.valid_time == radar.times[faults.truncated]:
            with pytest.raises(FrameError):
                source.read(content)
        else:
            source.read(content)
        delay = file.received - file.valid_time
        if file.valid_time == radar.times[faults.late]:
            assert delay == TRANSMISSION + faults.late_by
        elif file.name.endswith("_again.h5"):
            assert delay == TRANSMISSION + pd.Timedelta("30s")
        else:
            assert delay == TRANSMISSION


def test_files_hold_the_radars_rain(synthetic, radar):
    time = radar.times[3]
    frame = get_source("odim").read((synthetic / f"squall_{time:%Y%m%d%H%M%S}.h5").read_bytes())
    np.testing.assert_allclose(frame.values, radar.rain_rate()[3], atol=0.00501)


def test_faults_lie_within_the_period(radar, faults):
    numbers = [faults.missing, faults.truncated, faults.late, faults.duplicate]
    assert len(set(numbers)) == 4
    assert all(0 <= number < radar.frames for number in numbers)


def test_writing_again_writes_the_same_bytes(tmp_path):
    radar = SyntheticRadar(frames=10, size=16)
    for folder in ("a", "b"):
        write_archive(tmp_path / folder, radar)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in names:
        one, other = (tmp_path / folder / name for folder in ("a", "b"))
        np.testing.assert_array_equal(
            np.frombuffer(one.read_bytes(), np.uint8), np.frombuffer(other.read_bytes(), np.uint8)
        )
        assert one.stat().st_mtime == other.stat().st_mtime
