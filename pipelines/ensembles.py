"""Scores of ensembles from mergeable sums.

Of M members xᵢ against what was observed, o, at each pixel that counts:

    CRPS = mean |xᵢ − o| − ΣᵢΣⱼ |xᵢ − xⱼ| / (2 M²), of the ensemble as it is (Hersbach 2000)
    fair CRPS: M (M − 1) instead of M², of what its members are drawn from (Ferro 2014)
    Brier score = mean (p − e)²: p the part of the members at or above a threshold, e 1 or 0
    reliability: how often it rained that much where p was in a bin; bins are tenths, see `BINS`
    ROC: POD against false alarm rate, where p at or above each bin means a warning; its area
    spread = √((M + 1)/M · mean variance of the members), which is the RMSE of their mean if
        members and rain are drawn alike (Fortin et al. 2014, eq. 15); skill = that RMSE
    rank histogram: the rank of o among the members; where members equal o, as in dry weather, it
        could be any of these ranks, so each of them gets its part (no dice: the same every time)
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

BINS = np.round(np.arange(11) / 10, 1)
"""A probability is in the bin whose label is nearest to it."""
ENSEMBLE_DIMS: dict[str, tuple[str, ...]] = {
    "ensemble_pixels": (),
    "members": (),
    "member_error": (),
    "member_distance": (),
    "member_distance_fair": (),
    "member_variance": (),
    "ensemble_squared_error": (),
    "brier_error": ("threshold",),
    "probability_cases": ("threshold", "probability"),
    "probability_sum": ("threshold", "probability"),
    "probability_events": ("threshold", "probability"),
    "ranks": ("rank",),
}
"""The sums, and what each is by."""


def ratio(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    """part / whole, NaN where there is nothing to divide by."""
    return part / whole.where(whole > 0)


def ensemble_sums(
    members: NDArray[np.float32], observed: NDArray[np.float32], thresholds: Sequence[float]
) -> dict[str, NDArray[np.float64]]:
    """Sums over pixels, named and shaped as `ENSEMBLE_DIMS` says.

    Parameters
    ----------
    members : (member, pixel) mm/h
    observed : (pixel) mm/h
    """
    count = len(members)
    ordered = np.sort(members.astype("f8"), axis=0)
    wanted = observed.astype("f8")
    weights = 2 * np.arange(1, count + 1) - count - 1
    distance = float(weights @ ordered.sum(1))  # ½ ΣᵢΣⱼ |xᵢ − xⱼ|, from the order alone
    mean = ordered.mean(0)
    sums = {
        "ensemble_pixels": wanted.size,
        "members": count * wanted.size,
        "member_error": np.abs(ordered - wanted).sum() / count,
        "member_distance": distance / count**2,
        "member_distance_fair": distance / (count * (count - 1)) if count > 1 else 0.0,
        "member_variance": ordered.var(0, ddof=1).sum() if count > 1 else 0.0,
        "ensemble_squared_error": np.square(mean - wanted).sum(),
        "ranks": _ranks(members, observed),
    }
    events = [_of_event(members, observed, np.float32(threshold)) for threshold in thresholds]
    sums |= {name: np.stack([event[name] for event in events]) for name in events[0]}
    return {name: np.asarray(values, "f8") for name, values in sums.items()}


def _of_event(
    members: NDArray[np.float32], observed: NDArray[np.float32], threshold: np.float32
) -> dict[str, NDArray[np.float64]]:
    """By how many members are at or above the threshold: p has no more than M + 1 values."""
    count = len(members)
    over = (members >= threshold).sum(0)
    happened = observed >= threshold
    cases = np.bincount(over, minlength=count + 1)
    hits = np.bincount(over[happened], minlength=count + 1)
    probability = np.arange(count + 1) / count
    place = np.searchsorted(BINS + 0.05, probability, side="left").clip(0, len(BINS) - 1)
    binned = {
        "probability_cases": cases,
        "probability_sum": cases * probability,
        "probability_events": hits,
    }
    error = (cases - hits) * probability**2 + hits * (1 - probability) ** 2
    return {"brier_error": error.sum()} | {
        name: np.bincount(place, values, len(BINS)) for name, values in binned.items()
    }


def _ranks(members: NDArray[np.float32], observed: NDArray[np.float32]) -> NDArray[np.float64]:
    """How often each rank, 0 (below all members) to M (above all); ties are shared."""
    count = len(members)
    below, equal = (members < observed).sum(0), (members == observed).sum(0)
    cases = np.bincount(below * (count + 1) + equal, minlength=(count + 1) ** 2)
    ranks = np.zeros(count + 1)
    for number in np.flatnonzero(cases):
        first, ties = divmod(number, count + 1)
        ranks[first : first + ties + 1] += cases[number] / (ties + 1)
    return ranks


def ensemble_scores(sums: xr.Dataset) -> dict[str, xr.DataArray]:
    """crps, crps_fair (mm/h), spread, skill (mm/h), members (…); brier, roc_area (…, threshold);
    forecast_probability, observed_frequency, probability_cases, and of warnings from that
    probability on warning_pod, warning_far_rate (…, threshold, probability); ranks (…, rank)."""
    pixels = sums["ensemble_pixels"]
    error = ratio(sums["member_error"], pixels)
    size = ratio(sums["members"], pixels)
    variance = ratio(sums["member_variance"], pixels)
    cases, events = sums["probability_cases"], sums["probability_events"]
    pod = _from_above(events, events)
    false_rate = _from_above(cases - events, cases - events)
    return {
        "crps": error - ratio(sums["member_distance"], pixels),
        "crps_fair": error - ratio(sums["member_distance_fair"], pixels),
        "spread": (variance * (size + 1) / size) ** 0.5,
        "skill": ratio(sums["ensemble_squared_error"], pixels) ** 0.5,
        "members": size,
        "brier": ratio(sums["brier_error"], pixels),
        "forecast_probability": ratio(sums["probability_sum"], cases),
        "observed_frequency": ratio(events, cases),
        "probability_cases": cases,
        "warning_pod": pod,
        "warning_far_rate": false_rate,
        "roc_area": _area(false_rate, pod),
        "ranks": ratio(sums["ranks"], sums["ranks"].sum("rank")),
    }


def _from_above(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    """Of the whole how much lies at each probability and above."""
    reverse = part.isel(probability=slice(None, None, -1))
    return (
        ratio(reverse.cumsum("probability"), whole.sum("probability"))
        .assign_coords(probability=reverse["probability"])
        .isel(probability=slice(None, None, -1))
    )


def _area(false_rate: xr.DataArray, pod: xr.DataArray) -> xr.DataArray:
    """Under the curve through (0, 0) and the points, by trapezia."""
    x, y = (
        one.isel(probability=slice(None, None, -1)).pad(
            probability=(1, 0), mode="constant", constant_values=0.0
        )
        for one in (false_rate, pod)
    )
    steps = {"probability": slice(1, None)}, {"probability": slice(None, -1)}
    x, y = (one.drop_vars("probability") for one in (x, y))
    width = x.isel(steps[0]) - x.isel(steps[1])
    return (width * (y.isel(steps[0]) + y.isel(steps[1])) / 2).sum("probability", skipna=False)
