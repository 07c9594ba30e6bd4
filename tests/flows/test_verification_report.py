"""The report page: the figures that the sums give, everything inside, whatever the weather was."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from flows import verification_report
from flows.settings import load_settings
from flows.verification_report import verification_page
from flows.verify import verify_forecasts
from models.nowcasting import Nowcaster, NowcastSettings
from models.verification import VerifySettings
from pipelines.errors import NotFoundError
from pipelines.publishing import publish
from pipelines.score_store import open_scores
from pipelines.scores import scores
from pipelines.shadows import shadow_root

PRODUCT = "test"
VOID = {"meta", "img", "br", "use", "path", "link", "input"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps text, links and images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.links, self.headings = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture
def store(tmp_path, build_archive, grid):
    """`make(rain, slots)`: an archive of such rain, forecasts of some slots and their shadows."""

    def make(rain, slots=(4, 6, 8), model="persistence", **serving):
        fields = {slot: rain(slot, grid.shape) for slot in range(14)}
        archive = build_archive(tmp_path / "archive" / f"{PRODUCT}.zarr", fields)
        root = str(tmp_path)
        settings = NowcastSettings(lead_time="15min", serving=serving)
        with Nowcaster(root, model, settings) as nowcaster:
            for slot in slots:
                served = nowcaster.nowcast(archive, archive.times[slot])
                publish(root, PRODUCT, served)
                other = served.assign(rain_rate=served["rain_rate"] * 1.2)
                publish(shadow_root(root, "net/1"), PRODUCT, other.assign_attrs(model="net/1"))
        return root

    return make


def moving(slot, shape):
    """Rain that moves and grows."""
    texture = np.random.default_rng(0).gamma(2.0, 1.0, shape)
    return np.roll(texture, slot // 3, axis=1) + slot / 20


def page_of(root, **options):
    verify = VerifySettings(**{"workers": 1, "baselines": ()} | options)
    report = verify_forecasts(root, PRODUCT, verify)
    return verification_page(load_settings(root=root, product=PRODUCT, verify=verify), report)


def test_it_has_the_figures_that_the_sums_give(store):
    root = store(moving)
    text = page_of(root)
    page = Page(text)
    assert page.open == ["html"] or page.open == []
    assert "Verification of test" in page.headings
    assert {"In short", "Skill by lead time", "Blurring", "Examples", "Operation"} <= set(
        page.headings
    )
    values = scores(open_scores(root, PRODUCT).sum("init_time"))
    one = values["mae"].sel(forecaster="served", region="domain").isel(lead_time=0)
    assert f"{float(one):.3f}" in page.text
    gap = values["csi"].sel(region="domain", threshold=0.5).isel(lead_time=2)
    gap = float(gap.sel(forecaster="served") - gap.sel(forecaster="net/1"))
    assert f"{gap:+.3f}" in text
    assert "3 forecasts verified" in text
    assert "these intervals mean little" in text, "it is one event"


def test_everything_is_inside(store):
    page = Page(page_of(store(moving)))
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "<script" not in "".join(page.text)


def test_the_same_scores_are_the_same_page(store, monkeypatch):
    root = store(moving)
    fixed = pd.Timestamp("2026-11-25")
    monkeypatch.setattr(verification_report, "now", lambda: fixed)
    first = page_of(root)
    counts = "3 scored now, 0 unchanged", "0 scored now, 3 unchanged"
    assert page_of(root) == first.replace(*counts)


def test_a_dry_period_has_a_page_that_says_so(store):
    text = page_of(store(lambda slot, shape: np.zeros(shape)))
    assert "There was too little rain" in text
    assert "no cases" in text
    assert "Examples" not in Page(text).headings


def test_a_single_forecast_has_a_page(store):
    text = page_of(store(moving, slots=(5,)))
    assert "1 forecasts verified" in text


def test_regions_have_a_table(store, grid):
    lat, lon = (np.asarray(grid.coords()[name][1]) for name in ("lat", "lon"))
    west = (lon.min(), lat.min(), float(np.median(lon)), lat.max())
    page = Page(page_of(store(moving), regions={"west": west}))
    assert "Regions" in page.headings
    assert "west" in page.text


@pytest.mark.slow
def test_an_ensemble_has_its_own_part(store):
    text = page_of(store(moving, model="steps", members=4))
    page = Page(text)
    assert "Ensemble: served" in page.headings
    assert "Brier score" in page.text


def test_without_scores_it_is_an_error(tmp_path, build_archive, grid):
    build_archive(tmp_path / "archive" / f"{PRODUCT}.zarr", {0: np.zeros(grid.shape)})
    with pytest.raises(NotFoundError, match="nothing to verify"):
        page_of(str(tmp_path))
