"""Scores and units against the `scores` library and pysteps, on random fields with gaps."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import ndimage

from pipelines.compare import DIMS
from pipelines.ensembles import BINS, ensemble_scores, ensemble_sums
from pipelines.scores import merge, scores
from pipelines.spectra import WAVELENGTHS_KM, power
from pipelines.units import ZRRelation, rain_rate_from_reflectivity
from tests.measured import measured

THRESHOLDS_MM_H = [0.55, 2.05, 5.05]  # between the values: pysteps' event is above its threshold


def quietly_import_pysteps():
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.utils import conversion
        from pysteps.verification.detcatscores import det_cat_fct
        from pysteps.verification.detcontscores import det_cont_fct
    return conversion, det_cat_fct, det_cont_fct


@pytest.fixture(scope="module")
def fields():
    """Forecast and observed (lead_time, y, x), a tenth of either missing."""
    rng = np.random.default_rng(0)
    forecast = rng.gamma(0.6, 4.0, (3, 20, 30)).round(1)
    observed = (forecast * rng.uniform(0.2, 1.8, forecast.shape)).round(1)
    forecast[rng.random(forecast.shape) < 0.1] = np.nan
    observed[rng.random(forecast.shape) < 0.1] = np.nan
    coords = {"lead_time": pd.to_timedelta([5, 10, 15], unit="min")}
    dims = ("lead_time", "y", "x")
    return xr.DataArray(forecast, coords, dims), xr.DataArray(observed, coords, dims)


def known_pixels(fields):
    """Per lead time only the pixels known in both: to pysteps a missing one is no event."""
    forecast, observed = (field.values for field in fields)
    known = np.isfinite(forecast) & np.isfinite(observed)
    return [[field[k][known[k]] for k in range(len(known))] for field in (forecast, observed)]


@pytest.fixture(scope="module")
def ours(fields):
    return scores(measured(*fields, THRESHOLDS_MM_H))


@pytest.mark.parametrize("threshold", THRESHOLDS_MM_H)
def test_csi_pod_and_far_are_those_of_the_scores_library(fields, ours, threshold):
    categorical = pytest.importorskip("scores.categorical")
    events = categorical.ThresholdEventOperator()
    manager = events.make_contingency_manager(*fields, event_threshold=threshold)
    table = manager.transform(preserve_dims=["lead_time"])
    for name, expected in {
        "csi": table.critical_success_index(),
        "pod": table.probability_of_detection(),
        "far": table.false_alarm_ratio(),
    }.items():
        np.testing.assert_allclose(ours[name].sel(threshold=threshold), expected, rtol=1e-12)


def test_mse_and_mae_are_those_of_the_scores_library(fields, ours):
    continuous = pytest.importorskip("scores.continuous")
    for name in ("mse", "mae"):
        expected = getattr(continuous, name)(*fields, preserve_dims=["lead_time"])
        np.testing.assert_allclose(ours[name], expected, rtol=1e-12)


@pytest.mark.parametrize("threshold", THRESHOLDS_MM_H)
def test_csi_pod_and_far_are_those_of_pysteps(fields, ours, threshold):
    _, det_cat_fct, _ = quietly_import_pysteps()
    for number, (forecast, observed) in enumerate(zip(*known_pixels(fields), strict=True)):
        expected = det_cat_fct(forecast, observed, threshold, ["CSI", "POD", "FAR"])
        for name in ("csi", "pod", "far"):
            got = float(ours[name].sel(threshold=threshold)[number])
            assert got == pytest.approx(float(expected[name.upper()]), rel=1e-12)


def test_mse_and_mae_are_those_of_pysteps(fields, ours):
    *_, det_cont_fct = quietly_import_pysteps()
    for number, (forecast, observed) in enumerate(zip(*known_pixels(fields), strict=True)):
        expected = det_cont_fct(forecast, observed, ["MSE", "MAE"])
        for name in ("mse", "mae"):
            assert float(ours[name][number]) == pytest.approx(expected[name.upper()], rel=1e-12)


def test_merged_scores_are_those_of_the_scores_library_on_everything_at_once(fields):
    categorical = pytest.importorskip("scores.categorical")
    forecast, observed = fields
    parts = [
        measured(f, o, THRESHOLDS_MM_H).expand_dims(init_time=[0]).sum("init_time")
        for f, o in (
            (forecast.isel(x=part), observed.isel(x=part))
            for part in (slice(0, 7), slice(7, 8), slice(8, 30))
        )
    ]
    got = scores(merge(parts))["csi"]
    for threshold in THRESHOLDS_MM_H:
        events = categorical.ThresholdEventOperator()
        manager = events.make_contingency_manager(*fields, event_threshold=threshold)
        expected = manager.transform(preserve_dims=["lead_time"]).critical_success_index()
        np.testing.assert_allclose(got.sel(threshold=threshold), expected, rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(200.0, 1.6), (300.0, 1.4), (316.0, 1.5)])
def test_the_zr_relation_is_that_of_pysteps(a, b):
    conversion, *_ = quietly_import_pysteps()
    reflectivity = np.linspace(5.0, 60.0, 56).reshape(7, 8)
    metadata = {
        "transform": "dB",
        "unit": "dBZ",
        "accutime": 5,
        "threshold": -10.0,
        "zerovalue": -15.0,
        "zr_a": a,
        "zr_b": b,
    }
    expected, _ = conversion.to_rainrate(reflectivity, metadata)
    got = rain_rate_from_reflectivity(reflectivity, ZRRelation("any", a, b))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.fixture(scope="module")
def inland():
    """Forecast and observed (y, x) with nothing missing and no rain within 8 pixels of an edge."""
    rng = np.random.default_rng(1)
    fields = rng.gamma(0.6, 4.0, (2, 48, 56)).round(1)
    margin = np.zeros((48, 56), bool)
    margin[8:-8, 8:-8] = True
    return [xr.DataArray(np.where(margin, field, 0.0), dims=("y", "x")) for field in fields]


def fss_of(forecast, observed, size):
    """Ours, by threshold."""
    sums = measured(forecast, observed, THRESHOLDS_MM_H, {1.0: (size, size)}).squeeze("scale")
    return 1 - sums["fraction_error"] / sums["fraction_reference"]


@pytest.mark.parametrize("size", [1, 3, 9])
def test_fss_is_that_of_pysteps_where_rain_keeps_off_the_edges(inland, size):
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.verification.spatialscores import fss
    got = fss_of(*inland, size)
    for threshold in THRESHOLDS_MM_H:
        expected = fss(*(field.values for field in inland), threshold, size)
        assert float(got.sel(threshold=threshold)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_fss_is_that_of_the_scores_library_where_rain_keeps_off_the_edges(inland, size):
    spatial = pytest.importorskip("scores.spatial")
    got = fss_of(*inland, size)
    for threshold in THRESHOLDS_MM_H:
        expected = spatial.fss_2d_single_field(
            *(field.values for field in inland),
            event_threshold=threshold,
            window_size=(size, size),
        )
        assert float(got.sel(threshold=threshold)) == pytest.approx(float(expected), rel=1e-9)


def test_fss_counts_the_pixels_of_windows_cut_by_edges_and_gaps_like_a_plain_loop(fields):
    forecast, observed = (field.values[0] for field in fields)
    known = np.isfinite(forecast) & np.isfinite(observed)
    error = reference = 0.0
    for y, x in np.argwhere(known):
        window = np.s_[max(y - 2, 0) : y + 3, max(x - 3, 0) : x + 4]
        p_f, p_o = ((one[window][known[window]] >= 2.05).mean() for one in (forecast, observed))
        error, reference = error + (p_f - p_o) ** 2, reference + p_f**2 + p_o**2
    sums = measured(*(field[0] for field in fields), [2.05], {1.0: (5, 7)}).squeeze()
    assert float(sums["fraction_error"]) == pytest.approx(error, rel=1e-12)
    assert float(sums["fraction_reference"]) == pytest.approx(reference, rel=1e-12)


def test_the_other_scores_of_events_are_those_of_both_libraries(fields, ours):
    categorical = pytest.importorskip("scores.categorical")
    _, det_cat_fct, _ = quietly_import_pysteps()
    for threshold in THRESHOLDS_MM_H:
        events = categorical.ThresholdEventOperator()
        manager = events.make_contingency_manager(*fields, event_threshold=threshold)
        table = manager.transform(preserve_dims=["lead_time"])
        mine = ours.sel(threshold=threshold)
        for name, expected in {
            "bias": table.frequency_bias(),
            "hss": table.heidke_skill_score(),
            "ets": table.equitable_threat_score(),
        }.items():
            np.testing.assert_allclose(mine[name], expected, rtol=1e-12)
        for number, pair in enumerate(zip(*known_pixels(fields), strict=True)):
            expected = det_cat_fct(*pair, threshold, ["BIAS", "HSS", "ETS"])
            for name in ("bias", "hss", "ets"):
                got = float(mine[name][number])
                assert got == pytest.approx(float(expected[name.upper()]), rel=1e-12)


def test_mean_error_and_correlation_are_those_of_both_libraries(fields, ours):
    continuous = pytest.importorskip("scores.continuous")
    *_, det_cont_fct = quietly_import_pysteps()
    per_lead = {"preserve_dims": ["lead_time"]}
    np.testing.assert_allclose(
        ours["correlation"],
        continuous.correlation.pearsonr(*fields, **per_lead),
        rtol=1e-9,
    )
    expected = continuous.mean_error(*fields, **per_lead)
    np.testing.assert_allclose(ours["mean_error"], expected, rtol=1e-9)
    for number, pair in enumerate(zip(*known_pixels(fields), strict=True)):
        told = det_cont_fct(*pair, ["ME", "corr_p"])
        assert float(ours["mean_error"][number]) == pytest.approx(told["ME"], rel=1e-9)
        assert float(ours["correlation"][number]) == pytest.approx(told["corr_p"], rel=1e-9)


@pytest.fixture(scope="module")
def ensemble(fields):
    """Members (member, pixel) and observed (pixel), where observed is known, single precision."""
    observed = fields[1].values[0]
    rng = np.random.default_rng(3)
    noise = rng.uniform(0.3, 2.0, (9, *observed.shape))
    members = np.where(rng.random(noise.shape) < 0.2, 0, observed * noise)
    known = np.isfinite(observed)
    return members[:, known].astype("f4"), observed[known].astype("f4")


@pytest.fixture(scope="module")
def of_ensemble(ensemble):
    sums = ensemble_sums(*ensemble, THRESHOLDS_MM_H)
    coords = {"probability": BINS, "threshold": THRESHOLDS_MM_H}
    arrays = {name: (DIMS[name], values) for name, values in sums.items()}
    return xr.Dataset(ensemble_scores(xr.Dataset(arrays, coords)))


def test_crps_is_that_of_both_libraries(ensemble, of_ensemble):
    probability = pytest.importorskip("scores.probability")
    from pysteps.verification.probscores import CRPS

    members = xr.DataArray(ensemble[0].astype("f8"), dims=("member", "pixel"))
    observed = xr.DataArray(ensemble[1].astype("f8"), dims="pixel")
    for name, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        expected = probability.crps_for_ensemble(members, observed, "member", method=method)
        assert of_ensemble[name].item() == pytest.approx(float(expected), rel=1e-9)
    assert of_ensemble["crps"].item() == pytest.approx(CRPS(*ensemble), rel=1e-5)


@pytest.mark.parametrize("threshold", THRESHOLDS_MM_H)
def test_brier_is_that_of_the_scores_library(ensemble, of_ensemble, threshold):
    probability = pytest.importorskip("scores.probability")
    members = xr.DataArray(ensemble[0], dims=("member", "pixel"))
    observed = xr.DataArray(ensemble[1], dims="pixel")
    expected = probability.brier_score_for_ensemble(
        members, observed, "member", [np.float32(threshold)], fair_correction=False
    ).squeeze()
    got = of_ensemble["brier"].sel(threshold=threshold).item()
    assert got == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("threshold", THRESHOLDS_MM_H)
def test_reliability_and_roc_are_those_of_pysteps(ensemble, of_ensemble, threshold):
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.verification import probscores
    members, observed = ensemble
    part = (members >= threshold).mean(0)
    diagram = probscores.reldiag_init(threshold, n_bins=11)
    diagram["bin_edges"] = np.concatenate([[-1e-6], BINS[:-1] + 0.05, [1 + 1e-6]])
    probscores.reldiag_accum(diagram, part, observed)
    with np.errstate(invalid="ignore"):  # bins without cases
        probability, frequency = probscores.reldiag_compute(diagram)
    mine = of_ensemble.sel(threshold=threshold)
    enough = mine["probability_cases"].values >= diagram["min_count"]  # fewer it does not say
    for name, expected in (
        ("observed_frequency", frequency),
        ("forecast_probability", probability),
    ):
        np.testing.assert_allclose(mine[name][enough], expected[enough], rtol=1e-6)
    curve = probscores.ROC_curve_init(threshold, n_prob_thrs=11)
    curve["prob_thrs"] = BINS - 0.049
    probscores.ROC_curve_accum(curve, part, observed)
    false_rate, pod = probscores.ROC_curve_compute(curve)
    np.testing.assert_allclose(mine["warning_pod"], pod, rtol=1e-9)
    np.testing.assert_allclose(mine["warning_far_rate"], false_rate, rtol=1e-9)


def test_the_rank_histogram_is_that_of_pysteps_where_nothing_ties(of_ensemble):
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.verification import ensscores
    rng = np.random.default_rng(5)
    draws = rng.gamma(2.0, 2.0, (10, 500)).astype("f4")
    histogram = ensscores.rankhist_init(9)
    ensscores.rankhist_accum(histogram, draws[:9], draws[9])
    sums = ensemble_sums(draws[:9], draws[9], THRESHOLDS_MM_H)
    np.testing.assert_allclose(
        sums["ranks"] / 500, ensscores.rankhist_compute(histogram, normalize=True), rtol=1e-12
    )


def test_power_is_that_of_pysteps_by_wavelength():
    """On a square, pysteps' mean power of each whole wavenumber; ours of half octaves of them."""
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.utils.spectral import rapsd
    field = np.random.default_rng(0).gamma(1.0, 2.0, (128, 128))
    smooth = ndimage.gaussian_filter(field, 1.5).astype("f4")
    theirs = [rapsd(one, fft_method=np.fft) for one in (smooth, field.astype("f4"))]
    mine = [power(one, (1.0, 1.0)) for one in (smooth, field.astype("f4"))]
    wavenumber = 128 / WAVELENGTHS_KM
    inside = (wavenumber > 4) & (wavenumber < 50)
    ratio = np.interp(wavenumber[inside], np.arange(64), theirs[0][:64] / theirs[1][:64])
    np.testing.assert_allclose(mine[0][inside] / mine[1][inside], ratio, rtol=0.1)
