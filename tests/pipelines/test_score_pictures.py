"""Pictures of scores: what is drawn is what the sums say."""

import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from pipelines.score_pictures import served_first, skill_picture
from pipelines.score_store import SERVED
from pipelines.scores import scores

LEADS = pd.timedelta_range("5min", periods=3, freq="5min")


def sums_of(names=("advection", "net/2", "served"), thresholds=(0.5, 2.0, 5.0), of=1.0):
    sizes = {"forecaster": len(names), "lead_time": 3, "region": 2, "threshold": len(thresholds)}
    rng = np.random.default_rng(0)
    by_threshold = ["hits", "misses", "false_alarms"]
    by_pixel = ["squared_error", "absolute_error", "pixels"]
    by_scale = ["fraction_error", "fraction_reference"]
    dims = tuple(sizes)
    shapes = dict.fromkeys(by_threshold, dims) | dict.fromkeys(by_pixel, dims[:3])
    shapes |= dict.fromkeys(by_scale, (*dims, "scale"))
    sizes["scale"] = 2
    return xr.Dataset(
        {
            name: (dims, of * rng.integers(1, 99, [sizes[dim] for dim in dims]))
            for name, dims in shapes.items()
        },
        coords={
            "forecaster": list(names),
            "lead_time": LEADS,
            "region": ["domain", "coast"],
            "threshold": list(thresholds),
            "scale": [1.0, 20.0],
        },
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures, as they are saved."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))
    )
    return figures


def test_a_panel_a_score_and_a_line_a_forecaster_with_its_values(drawn):
    sums = sums_of()
    image = Image.open(io.BytesIO(skill_picture(sums)))
    assert image.format == "PNG"
    panels = {axis.get_title(): axis for axis in drawn[0].axes if axis.get_title()}
    assert list(panels) == [
        "CSI ≥ 0.5 mm/h",
        "CSI ≥ 2 mm/h",
        "CSI ≥ 5 mm/h",
        "FSS ≥ 0.5 mm/h, 1 km",
        "FSS ≥ 0.5 mm/h, 20 km",
        "MAE (mm/h)",
    ]
    values = scores(sums.sel(region="domain"))
    lines = panels["CSI ≥ 2 mm/h"].get_lines()
    assert [line.get_label() for line in lines] == ["served", "advection", "net/2"]
    for line in lines:
        csi = values["csi"].sel(forecaster=line.get_label(), threshold=2.0)
        np.testing.assert_allclose(line.get_ydata(), csi)
        np.testing.assert_allclose(line.get_xdata(), [5, 10, 15])
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["served", "advection", "net/2"]


def test_what_has_no_cases_says_so(drawn):
    skill_picture(sums_of(of=0.0))
    texts = [[text.get_text() for text in axis.texts] for axis in drawn[0].axes]
    assert texts == [["no cases"]] * 6


def test_a_card_without_regions_or_scales_can_be_drawn(drawn):
    sums = sums_of(names=("net",)).sel(region="domain", drop=True).drop_dims("scale")
    skill_picture(sums.isel(lead_time=[0], threshold=[0]))
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_title()]
    assert titles == ["CSI ≥ 0.5 mm/h", "MAE (mm/h)"]


def test_served_comes_first_and_the_others_keep_their_order():
    ordered = served_first(sums_of(names=("b", "a", "served", "c")))
    assert ordered["forecaster"].values.tolist() == [SERVED, "b", "a", "c"]
    assert "region" not in ordered.dims
