"""Whether a challenger is better than the champion and the baselines: the proof, from scores alone.

A challenger passes where, against every opponent, at every declared lead time and threshold, the
difference of its score from the opponent's has a bootstrap interval that lies wholly on the winning
side of zero (`pipelines.bootstrap`: whole event blocks are drawn, the two stay paired). Only
init_times that both forecast count, on the same pixels. What cannot be said is not proven: too few
forecasts, too few blocks in which the event was observed, an opponent or lead time that is missing.

What either of challenger and champion learnt from is no evidence: an init_time counts only if no
frame it is forecast from, or that it forecasts, lies in the time that one of them was trained on
(or the model that one was trained on from), whatever the archive: neighbouring radars see the same
rain. It is left out for all opponents, so that every comparison is of the same weather.

How strict that is: of two equal forecasters one wins a comparison by luck in (1 − level) / 2 of all
cases, 2.5 %, about (tests simulate it). All comparisons have to hold at once, which can only be
rarer: the whole is conservative, and needs no correction for how many there are. It is no
protection against trying often: of many challengers, or of one that is judged anew every day, one
will pass by luck sooner or later.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from models.verdict import (
    LEAD_TIMES,
    LOWER_IS_BETTER,
    Comparison,
    Outcome,
    PromotionSettings,
    Verdict,
)
from pipelines.bootstrap import block_sums, interval, resampled
from pipelines.compare import DOMAIN
from pipelines.score_store import of_forecaster
from pipelines.scores import scores
from pipelines.times import format_duration, time_text


@dataclass(frozen=True)
class Learnt:
    """From which frames a model was made.

    Attributes
    ----------
    model : id of the model
    first : valid_time of the first frame
    last : the newest init_time that is forecast from one of the frames
    """

    model: str
    first: pd.Timestamp
    last: pd.Timestamp


def judge(
    sums: xr.Dataset,
    challenger: str,
    champion: str | None,
    settings: PromotionSettings,
    learnt: Sequence[Learnt] = (),
) -> Verdict:
    """Compare a challenger with the champion, where there is one, and with the baselines.

    Parameters
    ----------
    sums : (init_time, forecaster, lead_time, region, …), as `pipelines.score_store.open_scores`
    challenger, champion : ids, name/version
    learnt : what either of them was made from
    """
    assert challenger != champion, "a champion has nothing to prove"
    sums = sums.sel(region=DOMAIN, drop=True) if "region" in sums.dims else sums
    leads, missing_leads = _lead_times(sums, settings)
    missing = _missing_labels(sums, settings)
    lacking = [*missing_leads, *missing]
    sums = sums.sel(lead_time=leads)
    mine = of_forecaster(sums, challenger)
    times = pd.DatetimeIndex(sums["init_time"].values)
    scored = (mine["pixels"] > 0).any("lead_time").values
    known = _known(times, learnt, leads)
    evidence = scored & ~known
    if len(leads) and not scored.any():
        lacking.append(f"no scores of {challenger}")
    elif scored.any() and not evidence.any():
        seen = ", ".join(f"{one.model} from {time_text(one.first)} on" for one in learnt)
        lacking.append(f"no forecast later or earlier than what was learnt from ({seen})")
    comparisons: list[Comparison] = []
    opponents = [*([champion] if champion else []), *settings.against]
    if evidence.any() and not missing:
        fair = sums.isel(init_time=evidence)
        for opponent in opponents:
            ours, theirs = (of_forecaster(fair, one) for one in (challenger, opponent))
            if ((ours["pixels"] > 0) & (theirs["pixels"] > 0)).any():
                comparisons += compare(ours, theirs, opponent, settings)
            else:
                lacking.append(f"no scores of {opponent} on the same init_times")
    own = times[evidence]
    return Verdict(
        challenger,
        champion,
        settings,
        since=time_text(own[0]) if len(own) else "",
        until=time_text(own[-1]) if len(own) else "",
        forecasts=len(own),
        left_out=int((scored & known).sum()),
        comparisons=tuple(comparisons),
        lacking=tuple(lacking),
    )


def compare(
    ours: xr.Dataset, theirs: xr.Dataset, opponent: str, settings: PromotionSettings
) -> list[Comparison]:
    """A comparison for each lead time and threshold, of sums (init_time, lead_time, …)."""
    length = pd.Timedelta(settings.block)
    both = xr.concat(
        [one.drop_vars(set(one.coords) - set(one.dims)) for one in (ours, theirs)],
        pd.Index(["ours", "theirs"], name="side"),
    )
    common = (both["pixels"] > 0).all("side")
    both = both.where(common, 0.0).isel(init_time=common.any("lead_time").values)
    score = _score(both.sum("init_time"), settings)
    draws = _score(resampled(both, length, settings.samples), settings)
    difference = draws.sel(side="ours", drop=True) - draws.sel(side="theirs", drop=True)
    observed = (both["hits"] + both["misses"]).sel(side="ours", threshold=_thresholds(settings))
    rain = block_sums(observed.to_dataset(name="event"), length)["event"]
    table = xr.Dataset(
        {
            **{side: score.sel(side=side, drop=True) for side in ("ours", "theirs")},
            "difference": difference,
            "forecasts": common.sum("init_time"),
            "blocks": (rain > 0).sum("block"),
            "effective_blocks": rain.sum("block") ** 2 / (rain**2).sum("block"),
        }
    )
    return [
        _comparison(opponent, table.sel(lead_time=lead, threshold=threshold), settings)
        for lead in table["lead_time"].values
        for threshold in table["threshold"].values
    ]


def _comparison(opponent: str, row: xr.Dataset, settings: PromotionSettings) -> Comparison:
    """One row of the table, and what it amounts to."""
    forecasts, blocks = int(row["forecasts"]), int(row["blocks"])
    level = expanded(settings.level, float(row["effective_blocks"]))
    lower, upper = interval(row["difference"], level).values.tolist()
    lower_is_better = settings.score in LOWER_IS_BETTER
    note = ""
    outcome: Outcome = "not proven"
    if forecasts < settings.least_forecasts:
        note = f"{forecasts} common forecasts of at least {settings.least_forecasts}"
    elif blocks < settings.least_blocks:
        note = f"rain in {blocks} blocks of at least {settings.least_blocks}"
    elif math.isnan(lower):
        note = "too few events for an interval"
    elif lower > 0 or upper < 0:
        outcome = "better" if (upper < 0) == lower_is_better else "worse"
    return Comparison(
        opponent,
        lead_time=pd.TimedeltaIndex([row["lead_time"].values])[0],
        threshold_mm_h=None if lower_is_better else float(row["threshold"]),
        ours=float(row["ours"]),
        theirs=float(row["theirs"]),
        lower=lower,
        upper=upper,
        forecasts=forecasts,
        blocks=blocks,
        outcome="cannot say" if note else outcome,
        note=note,
    )


def expanded(level: float, blocks: float) -> float:
    """The level at which a percentile interval of few blocks covers as often as `level` says.

    As Student's interval is wider than the normal one: α'/2 = Φ(−√(n / (n − 1)) t), where t is the
    quantile 1 − α/2 of Student's distribution with n − 1 degrees of freedom (Hesterberg 2015, "What
    teachers should know about the bootstrap", the expanded percentile interval). n is the effective
    number of blocks, (Σ w)² / Σ w² of the rain w in each (Kish 1965): where nearly all of it fell
    in one, ten say little more than one does.
    """
    if not blocks > 1:
        return 1.0
    student = stats.t.ppf((1 + level) / 2, blocks - 1)
    return float(1 - 2 * stats.norm.cdf(-math.sqrt(blocks / (blocks - 1)) * student))


def _score(sums: xr.Dataset, settings: PromotionSettings) -> xr.DataArray:
    """The score (…, lead_time, threshold); of a score without thresholds the lowest stands there.

    What rain is, in a block, has a threshold even then.
    """
    value = scores(sums)[settings.score]
    if "scale" in value.dims:
        value = value.sel(scale=settings.scale_km, drop=True)
    if "threshold" in value.dims:
        return value.sel(threshold=_thresholds(settings))
    return value.expand_dims(threshold=_thresholds(settings))


def _thresholds(settings: PromotionSettings) -> list[float]:
    declared = sorted(set(settings.thresholds_mm_h))
    return declared[:1] if settings.score in LOWER_IS_BETTER else declared


def _lead_times(
    sums: xr.Dataset, settings: PromotionSettings
) -> tuple[pd.TimedeltaIndex, list[str]]:
    """Where the forecasters are compared, and what of it is missing."""
    stored = pd.TimedeltaIndex(sums["lead_time"].values)
    wanted = pd.TimedeltaIndex(settings.lead_times or LEAD_TIMES).sort_values()
    there = wanted[wanted.isin(stored)]
    if settings.lead_times is None and len(there):
        return there, []
    missing = wanted.difference(there)
    return there, [f"no scores at {format_duration(lead)}" for lead in missing]


def _missing_labels(sums: xr.Dataset, settings: PromotionSettings) -> list[str]:
    """Thresholds, scales and scores that the sums do not have."""
    stored = sums["threshold"].values
    lacking = [
        f"no scores at {threshold:g} mm/h (verify.thresholds_mm_h)"
        for threshold in _thresholds(settings)
        if threshold not in stored
    ]
    if settings.score not in scores(sums.isel(init_time=slice(0, 1))):
        return [*lacking, f"no {settings.score} in the scores"]
    if settings.score == "fss" and settings.scale_km not in sums["scale"].values:
        return [*lacking, f"no fss at {settings.scale_km:g} km (verify.scales_km)"]
    return lacking


def _known(
    init_times: pd.DatetimeIndex, learnt: Iterable[Learnt], leads: pd.TimedeltaIndex
) -> NDArray[np.bool_]:
    """Which init_times have a frame, past or forecast, that a model learnt from."""
    ahead = leads.max() if len(leads) else pd.Timedelta(0)
    known = np.zeros(len(init_times), bool)
    for one in learnt:
        known |= (init_times + ahead >= one.first) & (init_times <= one.last)
    return known
