"""Normalisation: rain rate to [0, 1] and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.normalisation import RainNormalisation

KINDS = ["log", "dbz"]
RAIN = st.floats(0, 128, width=32)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def test_the_logarithmic_scale_by_hand():
    log = RainNormalisation("log")
    # ln(1 + 0.1/0.1) / ln(1 + 128/0.1)
    assert float(log.encode(scalar(0.1))) == pytest.approx(math.log(2) / math.log(1281))
    assert float(log.encode(scalar(0.0))) == 0.0
    assert float(log.encode(scalar(128.0))) == pytest.approx(1.0)


def test_the_reflectivity_scale_by_hand():
    dbz = RainNormalisation("dbz")
    # 1 mm/h is 23.0103 dBZ: (23.0103 − 5) / 55.
    assert float(dbz.encode(scalar(1.0))) == pytest.approx(18.0103 / 55, rel=1e-5)
    assert float(dbz.decode(scalar(1.0))) == pytest.approx((1e6 / 200) ** (1 / 1.6))


@pytest.mark.parametrize("kind", KINDS)
def test_dry_is_zero_both_ways(kind):
    normalisation = RainNormalisation(kind)
    assert float(normalisation.encode(scalar(0.0))) == 0.0
    assert float(normalisation.decode(scalar(0.0))) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@given(rain_rate=RAIN.filter(lambda rain_rate: rain_rate == 0 or rain_rate > 0.08))
def test_rain_comes_back(kind, rain_rate):
    normalisation = RainNormalisation(kind)
    again = float(normalisation.decode(normalisation.encode(scalar(rain_rate))))
    assert again == pytest.approx(rain_rate, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(one=RAIN, other=RAIN)
def test_more_rain_is_never_less_on_the_scale(kind, one, other):
    low, high = sorted((one, other))
    encoded = RainNormalisation(kind).encode(torch.tensor([low, high]))
    assert 0 <= encoded[0] <= encoded[1] <= 1 + 1e-6


def test_below_5_dbz_is_dry_on_the_reflectivity_scale():
    dbz = RainNormalisation("dbz")
    assert float(dbz.decode(dbz.encode(scalar(0.05)))) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_network_says_outside_the_scale_is_the_nearest_end(kind):
    normalisation = RainNormalisation(kind)
    below, above = normalisation.decode(torch.tensor([-0.3, 1.2]))
    assert below == 0.0
    assert above == normalisation.decode(torch.tensor(1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape_keeps_its_shape(kind):
    normalisation = RainNormalisation(kind)
    for shape in ((), (3,), (2, 1, 4)):
        rain_rate = torch.rand(shape)
        assert normalisation.encode(rain_rate).shape == shape
        assert normalisation.decode(rain_rate).shape == shape
