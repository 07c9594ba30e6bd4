"""Losses against `scores`, and against float64 loops written from the papers' formulas."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scores.probability import crps_for_ensemble

from models.losses import get_loss
from models.losses.structure import gradient_difference, ssim


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def as_frames(*fields):
    """(y, x) or (member, y, x) as one frame of one sequence, float64."""
    return [
        torch.from_numpy(np.asarray(field)).view(1, 1, -1, *field.shape[-2:]) for field in fields
    ]


def ssim_by_loop(x, y, observed):
    """Wang et al. 2004, equations 13 to 16, window by window; None where there is no whole one."""
    gaussian = np.array([math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)])
    weights = np.outer(gaussian, gaussian) / np.outer(gaussian, gaussian).sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for i in range(5, x.shape[0] - 5):
        for j in range(5, x.shape[1] - 5):
            window = (slice(i - 5, i + 6), slice(j - 5, j + 6))
            if not observed[window].all():
                continue
            mu_x, mu_y = (weights * x[window]).sum(), (weights * y[window]).sum()
            var_x = (weights * (x[window] - mu_x) ** 2).sum()
            var_y = (weights * (y[window] - mu_y) ** 2).sum()
            covariance = (weights * (x[window] - mu_x) * (y[window] - mu_y)).sum()
            values.append(
                (2 * mu_x * mu_y + c1)
                * (2 * covariance + c2)
                / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
            )
    return np.mean(values)


def test_ssim_is_its_formula_window_by_window(rng):
    x = rng.random((17, 19))
    y = np.clip(x + rng.normal(0, 0.2, x.shape), 0, 1)
    observed = np.ones(x.shape, bool)
    observed[2, 3] = observed[:, 18] = False
    expected = ssim_by_loop(x, y, observed)
    assert 0.1 < expected < 0.95
    given = as_frames(x, y, observed)
    assert float(ssim(*given)) == pytest.approx(expected, rel=1e-12)
    assert float(get_loss("ssim")(*given)) == pytest.approx(1 - expected, rel=1e-12)
    x32, y32 = (field.float() for field in given[:2])
    assert float(ssim(x32, y32, given[2])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_gradient_difference_is_its_formula_pair_by_pair(rng, alpha):
    y, prediction = rng.random((6, 7)), rng.random((6, 7))
    observed = rng.random((6, 7)) < 0.8

    def of(field, here, there):
        return abs(field[here] - field[there])

    def mean(pairs):
        terms = [
            abs(of(y, *pair) - of(prediction, *pair)) ** alpha
            for pair in pairs
            if observed[pair[0]] and observed[pair[1]]
        ]
        return sum(terms) / len(terms)

    vertical = [((i, j), (i - 1, j)) for i in range(1, 6) for j in range(7)]
    horizontal = [((i, j), (i, j - 1)) for i in range(6) for j in range(1, 7)]
    given = as_frames(prediction, y, observed)
    loss = gradient_difference(*given, alpha=alpha)
    assert float(loss) == pytest.approx(mean(vertical) + mean(horizontal), rel=1e-12)


def test_cross_entropy_is_its_formula_pixel_by_pixel(rng):
    logits, target = rng.normal(0, 3, (6, 7)), rng.random((6, 7))
    observed = rng.random((6, 7)) < 0.8
    p = 1 / (1 + np.exp(-logits))
    terms = -target * np.log(p) - (1 - target) * np.log(1 - p)
    loss = get_loss("cross-entropy")(*as_frames(logits, target, observed))
    assert float(loss) == pytest.approx(terms[observed].mean(), rel=1e-12)


@pytest.mark.parametrize(("name", "method"), [("crps", "fair"), ("crps-standard", "ecdf")])
@pytest.mark.parametrize("members", [2, 3, 10])
def test_crps_is_that_of_scores(rng, name, method, members):
    ensemble = rng.gamma(0.6, 1.0, (members, 8, 9)).round(1)  # ties among members
    target = rng.gamma(0.6, 1.0, (8, 9)).round(1)
    target[rng.random(target.shape) < 0.2] = np.nan
    expected = crps_for_ensemble(
        xr.DataArray(ensemble, dims=("member", "y", "x")),
        xr.DataArray(target, dims=("y", "x")),
        "member",
        method=method,
    )
    given = as_frames(ensemble, target, np.isfinite(target))
    assert float(get_loss(name)(*given)) == pytest.approx(float(expected), rel=1e-12)
