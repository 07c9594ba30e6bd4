"""Verification scores from mergeable sums.

A forecast is compared with what was observed once, giving sums (`pipelines.compare`); sums of any
number of forecasts, in any order and from any process, add up (`merge`); scores are divided out
last (`scores`). So how the work was distributed cannot change a score: a field's sums are always
made whole, in float64, and adding up thousands of them in another order changes counts by nothing
and other sums by 1e-12 of them at most.

Definitions (Wilks 2019, ch. 8), for an event "rain rate ≥ threshold" with a hits, b false alarms,
c misses and d correct negatives, n in all:

    CSI = a / (a + b + c)    POD = a / (a + c)    FAR = b / (a + b)    bias = (a + b) / (a + c)
    HSS = 2 (ad − bc) / ((a + c)(c + d) + (a + b)(b + d))
    ETS = (a − e) / (a + b + c − e),  e = (a + b)(a + c) / n, the hits of chance

and for rain rates F and O, mm/h, at the pixels that count:

    MSE, MAE, mean error = mean of (F − O)², |F − O|, F − O
    correlation = Pearson's; correlation_uncentred = Σ FO / √(Σ F² Σ O²) (Shi et al. 2015, sec. 4.2)

FSS by neighbourhood: `pipelines.fss`; SSIM: `pipelines.ssim`; power by wavelength, which shows
blurring: `pipelines.spectra`; of ensembles CRPS, Brier score, reliability, ROC, spread and skill,
rank histogram: `pipelines.ensembles`. A score whose denominator is zero is NaN.
"""

from collections.abc import Iterable

import xarray as xr

from pipelines.ensembles import ENSEMBLE_DIMS, ensemble_scores, ratio

THRESHOLDS_MM_H = (0.5, 2.0, 5.0, 10.0, 30.0)
"""HKO-7's thresholds (Shi et al. 2017)."""


def merge(parts: Iterable[xr.Dataset]) -> xr.Dataset:
    """Add sums up; a lead time or threshold that a part lacks adds nothing there.

    Nor does a part without ensembles to sums of ensembles, which have a count of their own. Other
    sums that a part lacks are left out: those beside them would count what they do not.
    """
    parts = list(parts)
    total = parts[0]
    for part in parts[1:]:
        left, right = xr.align(total, part, join="outer", fill_value=0.0)
        total = left + right  # of what both have
        of_one = {n: one[n] for one in (left, right) for n in ENSEMBLE_DIMS if n in one}
        total = total.assign({n: sums for n, sums in of_one.items() if n not in total})
    return total


def scores(sums: xr.Dataset) -> xr.Dataset:
    """Scores from sums, by whatever else the sums are by.

    csi, pod, far, bias, hss, ets (…, threshold); mse (mm²/h²), mae, mean_error (mm/h), correlation,
    correlation_uncentred, ssim (…); fss (…, threshold, scale); forecast_power, observed_power and
    power_ratio (…, wavelength); of ensembles see `pipelines.ensembles.ensemble_scores`. Those whose
    sums are not there are left out.
    """
    a, b, c = sums["hits"], sums["false_alarms"], sums["misses"]
    result = {
        "csi": ratio(a, a + b + c),
        "pod": ratio(a, a + c),
        "far": ratio(b, a + b),
        "bias": ratio(a + b, a + c),
    }
    if "correct_negatives" in sums:
        d = sums["correct_negatives"]
        chance = ratio((a + b) * (a + c), a + b + c + d)
        result["hss"] = ratio(2 * (a * d - b * c), (a + c) * (c + d) + (a + b) * (b + d))
        result["ets"] = ratio(a - chance, a + b + c - chance)
    for score, error in (("mse", "squared_error"), ("mae", "absolute_error")):
        if error in sums:
            result[score] = ratio(sums[error], sums["pixels"])
    if "forecast_rain" in sums:
        result |= _of_rain(sums)
    if "fraction_error" in sums:
        result["fss"] = 1 - ratio(sums["fraction_error"], sums["fraction_reference"])
    if "ssim_sum" in sums:
        result["ssim"] = ratio(sums["ssim_sum"], sums["ssim_windows"])
    if "forecast_power_sum" in sums:
        waves = sums["waves"]
        result["forecast_power"] = ratio(sums["forecast_power_sum"], waves)
        result["observed_power"] = ratio(sums["observed_power_sum"], waves)
        result["power_ratio"] = ratio(sums["forecast_power_sum"], sums["observed_power_sum"])
    if "ensemble_pixels" in sums:
        result |= ensemble_scores(sums)
    return xr.Dataset(result)


def _of_rain(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """Mean error and correlations."""
    n, f, o = sums["pixels"], sums["forecast_rain"], sums["observed_rain"]
    ff, oo, fo = sums["forecast_square"], sums["observed_square"], sums["rain_product"]
    variances = ((n * ff - f**2) * (n * oo - o**2)).clip(0)
    some = (n * ff - f**2 > 1e-9 * n * ff) & (n * oo - o**2 > 1e-9 * n * oo)  # not one value only
    return {
        "mean_error": ratio(f - o, n),
        "correlation": ratio(n * fo - f * o, variances**0.5).where(some),
        "correlation_uncentred": ratio(fo, (ff * oo) ** 0.5),
    }
