"""Structural similarity on the scale of a radar picture."""

import numpy as np
import pytest

from pipelines.ssim import C1, C2, SIDE, picture, ssim_sums, whole_windows


def rain(seed, shape=(40, 44)):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.5, rng.gamma(0.7, 4.0, shape), 0).astype("f4")


def ssim(forecast, observed, valid=None):
    valid = np.ones(forecast.shape, bool) if valid is None else valid
    sums = ssim_sums(forecast, observed, whole_windows(valid))
    return float(sums["ssim_sum"] / sums["ssim_windows"]), float(sums["ssim_windows"])


def test_brightness_by_hand():
    # 200 R^1.6: 1 mm/h is 23 dBZ; 0 dBZ and less is black, 60 dBZ and more white.
    values = picture(np.array([0.0, 1.0, 200 ** (-1 / 1.6), 500.0], "f4"))
    assert values == pytest.approx([0, 10 * np.log10(200) / 60, 0, 1], abs=1e-6)


def test_windows_cut_by_an_edge_or_a_gap_are_left_out():
    valid = np.ones((30, 30), bool)
    assert whole_windows(valid).sum() == (30 - SIDE + 1) ** 2
    valid[15, 15] = False
    assert whole_windows(valid).sum() == (30 - SIDE + 1) ** 2 - SIDE**2


def test_two_flat_fields_by_hand():
    one, other = (np.full((20, 20), value, "f4") for value in (1.0, 4.0))
    f, o = picture(one[0, 0]), picture(other[0, 0])
    value, windows = ssim(one, other)
    assert windows == 100
    assert value == pytest.approx((2 * f * o + C1) / (f * f + o * o + C1), rel=1e-4)


def test_what_does_not_count_changes_nothing():
    forecast, observed = rain(1), rain(2)
    valid = np.ones(forecast.shape, bool)
    valid[5, 7] = False
    before = ssim(forecast, observed, valid)
    forecast[5, 7] = 300
    assert ssim(forecast, observed, valid) == before


def test_it_is_that_of_a_plain_loop():
    """Equations 13 to 16 of Wang et al. 2004, window by window, in double precision."""
    forecast, observed = rain(1, (17, 15)), rain(1, (17, 15)) * 0.5 + rain(2, (17, 15))
    offset = np.arange(SIDE) - SIDE // 2
    line = np.exp(-(offset**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    total = []
    for y in range(17 - SIDE + 1):
        for x in range(15 - SIDE + 1):
            f, o = (
                picture(one)[y : y + SIDE, x : x + SIDE].astype("f8")
                for one in (forecast, observed)
            )
            mean_f, mean_o = (weight * f).sum(), (weight * o).sum()
            variances = (weight * (f - mean_f) ** 2).sum() + (weight * (o - mean_o) ** 2).sum()
            covariance = (weight * (f - mean_f) * (o - mean_o)).sum()
            light = (2 * mean_f * mean_o + C1) / (mean_f**2 + mean_o**2 + C1)
            total.append(light * (2 * covariance + C2) / (variances + C2))
    value, windows = ssim(forecast, observed.astype("f4"))
    assert windows == len(total) == 35
    assert value == pytest.approx(np.mean(total), rel=1e-4)


def test_it_is_symmetric_and_falls_with_noise():
    observed = rain(1)
    noisy = [observed + rain(2) * part for part in (0.0, 0.05, 0.5)]
    values = [ssim(field.astype("f4"), observed)[0] for field in noisy]
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert ssim(rain(1), rain(2))[0] == pytest.approx(ssim(rain(2), rain(1))[0], rel=1e-5)


def test_no_window_is_no_score():
    sums = ssim_sums(rain(1), rain(2), np.zeros((40, 44), bool))
    assert (float(sums["ssim_sum"]), float(sums["ssim_windows"])) == (0, 0)
