"""Power by wavelength."""

import numpy as np
import pytest
from scipy import ndimage

from pipelines.spectra import WAVELENGTHS_KM, power, waves


def noise(shape, seed=0):
    return np.random.default_rng(seed).gamma(1.0, 2.0, shape).astype("f4")


@pytest.mark.parametrize("shape", [(16, 16), (15, 20), (20, 15), (7, 9)])
def test_power_of_all_waves_is_the_variance(shape):
    """Parseval: Σ |FFT|² / N without the mean is Σ (field − mean)²."""
    field = noise(shape)
    spread = np.square(field - field.mean(dtype="f8")).sum()
    assert power(field, (1.0, 1.0)).sum() == pytest.approx(spread, rel=1e-4)
    assert waves(shape, (1.0, 1.0)).sum() == field.size - 1


def test_a_wave_is_at_its_length_whichever_way_it_runs():
    y, x = np.mgrid[:64, :64]
    for wave in (np.cos(2 * np.pi * x / 16), np.cos(2 * np.pi * y / 16)):
        at = power(wave.astype("f4"), (2.0, 2.0))
        assert WAVELENGTHS_KM[at.argmax()] == 32  # 16 pixels of 2 km
        assert at.max() / at.sum() == pytest.approx(1)


def test_pixels_may_be_wider_than_high():
    y, x = np.mgrid[:64, :64]
    along_x, along_y = (np.cos(2 * np.pi * axis / 16).astype("f4") for axis in (x, y))
    assert WAVELENGTHS_KM[power(along_x, (4.0, 1.0)).argmax()] == 64
    assert WAVELENGTHS_KM[power(along_y, (4.0, 1.0)).argmax()] == 16


def test_white_noise_has_the_same_power_at_all_wavelengths():
    field = noise((256, 256))
    each = power(field, (1.0, 1.0)) / waves(field.shape, (1.0, 1.0)).clip(1)
    many = waves(field.shape, (1.0, 1.0)) > 500
    np.testing.assert_allclose(each[many], field.var(), rtol=0.1)


def test_a_blurred_field_has_lost_its_short_waves():
    field = noise((128, 128))
    blurred = ndimage.gaussian_filter(field, 2.0)
    ratio = power(blurred, (1.0, 1.0)) / power(field, (1.0, 1.0)).clip(1e-9)
    short, long = ratio[WAVELENGTHS_KM == 4], ratio[WAVELENGTHS_KM == 64]
    assert short < 0.01
    assert long > 0.9


def test_bins_are_half_octaves_with_short_names():
    assert WAVELENGTHS_KM[:4].tolist() == [0.5, 0.7071, 1, 1.414]
    np.testing.assert_allclose(np.diff(np.log2(WAVELENGTHS_KM)), 0.5, atol=1e-3)
    assert [float(f"{one:.10g}") for one in WAVELENGTHS_KM] == WAVELENGTHS_KM.tolist()
