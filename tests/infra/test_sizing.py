"""The sizing page says what its script computes."""

from pathlib import Path

import pytest

from infra.sizing import PRODUCTS, Product, page, requests

PAGE = Path(__file__).parents[2] / "infra" / "sizing.md"


def test_the_page_is_what_the_script_prints():
    assert PAGE.read_text() == page(), "python -m infra.sizing > infra/sizing.md"


def test_a_year_by_hand():
    town = Product("town", 5, 100, 100, 10, 5, 5, 10)
    assert town.frames == 105_120
    assert town.forecast_mb == pytest.approx(0.12)
    writes, reads = requests(town)  # a look every five seconds
    assert writes == pytest.approx(105_120 * (109 + 92 + 59 * 16) / 1e6)
    assert reads == pytest.approx(105_120 * (159 + 451 + 59 * 87) / 1e6)
    assert {product.name for product in PRODUCTS} == {"KNMI", "OPERA CIRRUS", "MRMS"}
