"""Calibrations in their folder: which is used, and on which scores they are fitted."""

import pytest
import xarray as xr

from pipelines import storage
from pipelines.calibration import fit
from pipelines.calibration_store import (
    CURRENT,
    evidence,
    find_version,
    folder_url,
    make_current,
    read_calibration,
    save_calibration,
    use_none,
    versions,
)
from pipelines.errors import NotFoundError, SquallError
from pipelines.score_store import write_scores
from tests.pipelines.test_calibration import SETTINGS, over_confident, sums_of


def test_what_is_not_proven_is_not_used_unless_forced(tmp_path):
    root = str(tmp_path)
    poor = fit(sums_of(lambda p: p, cases=300), "steps", SETTINGS)
    save_calibration(root, "knmi", poor)
    with pytest.raises(SquallError, match="not proven to help"):
        make_current(root, "knmi", poor)
    assert read_calibration(root, "knmi") is None
    make_current(root, "knmi", poor, force=True)
    assert read_calibration(root, "knmi") == poor
    good = fit(sums_of(over_confident), "steps", SETTINGS)
    save_calibration(root, "knmi", good)
    make_current(root, "knmi", good)
    assert read_calibration(root, "knmi") == good
    assert versions(root, "knmi") == sorted((poor, good), key=lambda one: one.version, reverse=True)
    make_current(root, "knmi", find_version(root, "knmi", poor.version), force=True)
    assert read_calibration(root, "knmi") == poor
    with pytest.raises(NotFoundError, match=good.version):
        find_version(root, "knmi", "gone")
    use_none(root, "knmi")
    assert read_calibration(root, "knmi") is None


def test_each_threshold_is_proven_for_itself(tmp_path):
    """Beside one that is right already, an over-confident one is corrected, and it alone."""
    root = str(tmp_path)
    right = sums_of(lambda p: p, cases=300, thresholds=(1.0,))
    wrong = sums_of(over_confident, cases=300, thresholds=(5.0,))
    both = fit(xr.concat([right, wrong], "threshold"), "steps", SETTINGS)
    assert both.proven == (5.0,)
    save_calibration(root, "knmi", both)
    make_current(root, "knmi", both)
    used = read_calibration(root, "knmi")
    assert {curve.threshold_mm_h for curve in used.curves} == {5.0}
    assert used.curves == both.of([5.0]).curves
    make_current(root, "knmi", both, force=True)
    assert read_calibration(root, "knmi") == both


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": "gone"}', b'{"version": 3}'])
def test_a_damaged_one_is_none(tmp_path, content):
    storage.write_bytes(f"{folder_url(str(tmp_path), 'knmi')}/{CURRENT}", content)
    assert read_calibration(str(tmp_path), "knmi") is None


def test_evidence_is_of_the_one_asked_for_or_who_serves_or_has_most_cases(tmp_path):
    root = str(tmp_path)
    with pytest.raises(NotFoundError, match="no scores"):
        evidence(root, "knmi", SETTINGS)
    own = sums_of(over_confident)
    counts = own["probability_cases"].isel(threshold=0).sum("probability")
    both = xr.concat([own.assign(pixels=counts, ensemble_pixels=counts)] * 2, "forecaster")
    both = both.assign_coords(
        forecaster=["served", "persistence"], model=("init_time", ["steps"] * 30)
    )
    single = xr.where(both["forecaster"] == "persistence", 0.0, 1.0)
    both = both.assign(
        {name: both[name] * single for name in both if name != "pixels"}
    ).expand_dims(region=["domain"])
    write_scores(root, "knmi", [both])
    sums, name = evidence(root, "knmi", SETTINGS)
    assert name == "steps"
    for serving in ("steps", "persistence"):
        assert evidence(root, "knmi", SETTINGS, serving)[1] == "steps", "the only ensemble"
    assert fit(sums, name, SETTINGS).curves == fit(own, name, SETTINGS).curves
    with pytest.raises(NotFoundError, match="ensembles: steps"):
        evidence(root, "knmi", SETTINGS.model_copy(update={"forecaster": "persistence"}))


def test_who_serves_comes_before_who_has_more_cases(tmp_path):
    root = str(tmp_path)
    own = sums_of(over_confident)
    counts = own["probability_cases"].isel(threshold=0).sum("probability")
    own = own.assign(pixels=counts, ensemble_pixels=counts)
    both = xr.concat([own, own * 0.5], "forecaster").assign_coords(forecaster=["steps", "town/1"])
    both = both.assign_coords(model=("init_time", [""] * 30)).expand_dims(region=["domain"])
    write_scores(root, "knmi", [both])
    assert evidence(root, "knmi", SETTINGS)[1] == "steps", "the most cases"
    sums, name = evidence(root, "knmi", SETTINGS, serving="town/1")
    assert name == "town/1"
    assert float(sums["ensemble_pixels"].sum()) == float(counts.sum()) / 2
    asked = SETTINGS.model_copy(update={"forecaster": "steps"})
    assert evidence(root, "knmi", asked, serving="town/1")[1] == "steps"
