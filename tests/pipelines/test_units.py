"""Units and packing: hand-worked numbers, and laws for any rain rate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.units import (
    BLOCK,
    LARGEST_MM_H,
    MARSHALL_PALMER,
    MISSING,
    SCALE_MM_H,
    ZRRelation,
    count,
    pack,
    rain_rate_from_accumulation,
    rain_rate_from_reflectivity,
    reflectivity_from_rain_rate,
    unpack,
)

STORABLE = st.floats(0, LARGEST_MM_H, width=64)
ANY_FLOAT = st.floats(width=64, allow_nan=True, allow_infinity=True)
FIELDS = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=5), elements=ANY_FLOAT)


def test_marshall_palmer_by_hand():
    # Z = 200·R^1.6: 1 mm/h is 10·log10(200) = 23.0103 dBZ; 40 dBZ is (10⁴/200)^(1/1.6) mm/h.
    assert reflectivity_from_rain_rate(np.array(1.0), MARSHALL_PALMER) == pytest.approx(23.0103)
    assert rain_rate_from_reflectivity(np.array(40.0), MARSHALL_PALMER) == pytest.approx(11.53072)


def test_a_named_zr_relation_is_used():
    # WSR-88D convective, Z = 300·R^1.4: 10 mm/h is 10·log10(300·10^1.4) = 38.7712 dBZ.
    wsr_88d = ZRRelation("WSR-88D convective", a=300.0, b=1.4)
    assert reflectivity_from_rain_rate(np.array(10.0), wsr_88d) == pytest.approx(38.7712)


def test_no_rain_is_minus_infinity_dbz_and_back():
    reflectivity = reflectivity_from_rain_rate(np.array([0.0]), MARSHALL_PALMER)
    assert reflectivity == -np.inf
    assert rain_rate_from_reflectivity(reflectivity, MARSHALL_PALMER) == 0.0


@given(STORABLE.filter(lambda rain_rate: rain_rate > 1e-3), st.floats(50, 500), st.floats(1.1, 2.5))
def test_the_zr_relation_inverts(rain_rate, a, b):
    zr = ZRRelation("any", a, b)
    reflectivity = reflectivity_from_rain_rate(np.array(rain_rate), zr)
    assert rain_rate_from_reflectivity(reflectivity, zr) == pytest.approx(rain_rate, rel=1e-9)


def test_accumulation_by_hand():
    # Half a millimetre in five minutes is 6 mm/h.
    assert rain_rate_from_accumulation(np.array(0.5), 5 / 60) == pytest.approx(6.0)


def test_packing_by_hand():
    rain_rate = np.array([0.0, 0.004, 0.006, 0.1, 12.34, np.nan, -0.1, 655.34, 655.344, 700.0])
    stored, clipped = pack(rain_rate)
    assert stored.tolist() == [0, 0, 1, 10, 1234, MISSING, MISSING, 65534, 65534, 65534]
    assert stored.dtype == np.uint16
    assert clipped == 1


def test_an_infinite_rain_rate_is_clipped_and_counted():
    stored, clipped = pack(np.array([np.inf, -np.inf]))
    assert stored.tolist() == [65534, MISSING]
    assert clipped == 1


@given(STORABLE)
def test_packing_keeps_a_rain_rate_within_half_a_hundredth(rain_rate):
    stored, clipped = pack(np.array([rain_rate]))
    assert clipped == 0
    assert abs(stored[0] / 100 - rain_rate) <= SCALE_MM_H / 2 + 1e-12
    # Single precision carries 7 digits: 655.34 to 6e-5.
    assert abs(float(unpack(stored)[0]) - rain_rate) <= SCALE_MM_H / 2 + 6e-5


@given(FIELDS)
def test_what_is_no_rain_rate_becomes_missing_and_nothing_else_does(field):
    unpacked = unpack(pack(field)[0])
    assert unpacked.dtype == np.float32
    assert unpacked.shape == field.shape
    np.testing.assert_array_equal(np.isnan(unpacked), ~(field >= 0))


@given(FIELDS)
def test_an_unpacked_rain_rate_is_never_negative(field):
    unpacked = unpack(pack(field)[0])
    assert not (unpacked < 0).any()
    assert not (unpacked > np.float32(LARGEST_MM_H)).any()


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_packing_is_monotone(one, other):
    low, high = sorted((one, other))
    stored, _ = pack(np.array([low, high]))
    assert stored[0] <= stored[1]


def test_every_stored_integer_comes_back_as_itself():
    stored = np.arange(MISSING + 1, dtype=np.uint16)
    np.testing.assert_array_equal(pack(unpack(stored))[0], stored)


def test_an_unpacked_rain_rate_is_the_nearest_float_to_its_hundredths():
    stored = np.arange(MISSING, dtype=np.uint16)
    np.testing.assert_array_equal(unpack(stored), (np.arange(MISSING) / 100).astype(np.float32))


def test_a_tenth_of_a_millimetre_is_not_dry_once_stored():
    assert unpack(pack(np.array([0.1]))[0])[0] >= 0.1


def test_counts_by_hand():
    stored = np.array([[0, 9, 10], [MISSING, 500, MISSING - 1]], np.uint16)
    assert count(stored) == (5, 3, 0 + 9 + 10 + 500 + 65534)


@given(hnp.arrays(np.uint16, hnp.array_shapes(max_dims=3, max_side=5)))
def test_counts_are_those_of_the_observed_pixels(stored):
    observed = stored[stored != MISSING]
    assert count(stored) == (observed.size, (observed >= 10).sum(), observed.sum(dtype=np.int64))


def test_fields_of_more_than_a_block_are_packed_whole():
    field = np.random.default_rng(0).uniform(-10, 700, 3 * BLOCK + 7)
    field[::11] = np.nan
    stored, clipped = pack(field)
    expected = np.where(field >= 0, np.rint(np.minimum(field, LARGEST_MM_H) * 100), MISSING)
    np.testing.assert_array_equal(stored, expected)
    assert clipped == (np.rint(field * 100) > MISSING - 1).sum()
    assert count(stored).observed == (field >= 0).sum()
