"""`squall verify --report`: one page, with everything in it, of how good the forecasts were."""

import base64
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import pandas as pd
import xarray as xr

from flows.page import STYLE, figure, numbers, table, text
from flows.settings import Settings
from flows.verify import VerifyReport
from pipelines.archive import Archive, archive_url
from pipelines.bootstrap import block_sums, interval, resampled
from pipelines.calibration_store import read_calibration
from pipelines.compare import DOMAIN, FRACTION_DIMS, PIXEL_DIMS
from pipelines.errors import NotFoundError
from pipelines.forecasts import FIRST, ensemble_mean, open_forecast
from pipelines.latency import latency
from pipelines.pictures import comparison_picture
from pipelines.records import published_names
from pipelines.score_pictures import served_first
from pipelines.score_store import SERVED, open_scores
from pipelines.scores import scores
from pipelines.shadows import shadow_root
from pipelines.skill import read_skill
from pipelines.skill_attributes import horizon_text
from pipelines.times import format_duration, now, time_text
from pipelines.verification_pictures import (
    calibration_picture,
    lines_picture,
    ranks_picture,
    reliability_picture,
    spectra_picture,
)

FEW_BLOCKS = 10
"""With fewer events an interval means little."""
SHOWN_LEADS = 4
SECTIONS = (
    ("CSI", "csi", 1.0),
    ("Frequency bias", "bias", 1.0),
    ("HSS", "hss", 1.0),
    ("ETS", "ets", 1.0),
)
PLAIN = {
    "mae": "MAE (mm/h)",
    "mse": "MSE (mm²/h²)",
    "mean_error": "mean error (mm/h)",
    "correlation": "correlation",
    "ssim": "SSIM",
}
DEFINITIONS = (
    ("CSI", "hits / (hits + misses + false alarms)", "Wilks 2019, ch. 8"),
    ("bias", "forecast events / observed events; 1 is unbiased", "Wilks 2019, ch. 8"),
    ("HSS, ETS", "correct beyond chance", "Wilks 2019, ch. 8"),
    ("FSS", "agreement of fractions in a neighbourhood", "Roberts and Lean 2008, eq. 7"),
    ("MAE, MSE, mean error", "of rain rate, mm/h, over the pixels that count", ""),
    ("correlation", "Pearson's, over pixels", ""),
    ("SSIM", "structural similarity of the radar picture", "Wang et al. 2004, eq. 13"),
    ("power ratio", "forecast by observed power at a wavelength; under 1 is blurred", ""),
    ("CRPS", "of the ensemble as it is", "Hersbach 2000"),
    ("interval", "the middle 95 % of draws of whole events", "Wilks 2019, sec. 5.3.5"),
)


def verification_page(settings: Settings, report: VerifyReport) -> str:
    """The page, HTML 5. `report` : of a verification that has just been made."""
    root, product = settings.root, settings.product
    since = settings.verify.since
    rows = open_scores(
        root, product, sums=[*PIXEL_DIMS, *FRACTION_DIMS, "ssim_sum", "ssim_windows"]
    )
    times = pd.DatetimeIndex(rows["init_time"].values)
    if since is not None:
        rows = rows.isel(init_time=times >= times[-1] - pd.Timedelta(since))
    domain = rows.sel(region=DOMAIN, drop=True)
    everyone = (domain["pixels"].sum("lead_time") > 0).all("forecaster")
    common = domain.isel(init_time=everyone.values) if everyone.any() else domain
    parts = [
        _head(settings, report, rows),
        _verdict(root, product, common, settings.verify.skill.threshold_mm_h),
        *_skill(common, settings),
        *_whole(report.sums),
        _calibration(root, product),
        *_regions(report.sums),
        *_examples(root, product, rows),
        *_operation(root, product, rows),
        _method(),
    ]
    title = f"Verification of {product}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{text(title)}</title>'
        f"<style>{STYLE}</style><h1>{text(title)}</h1>{''.join(parts)}</html>\n"
    )


# Parts -------------------------------------------------------------------------------------------


def _head(settings: Settings, report: VerifyReport, rows: xr.Dataset) -> str:
    pixels = rows.sel(region=DOMAIN, forecaster=SERVED)
    counted, missing = (float(pixels[name].sum()) for name in ("pixels", "missing"))
    share = missing / max(1.0, counted + missing)
    models = pd.Series(rows["model"].values).value_counts()
    quality = pd.Series(rows["quality"].values).value_counts()
    first, last = (time_text(pd.Timestamp(rows["init_time"].values[k])) for k in (0, -1))
    facts = {
        "init_times": f"{first} to {last}",
        "forecasts": report.counts(),
        "served by": ", ".join(f"{name} {count}" for name, count in models.items()),
        "quality": ", ".join(f"{name or 'unknown'} {count}" for name, count in quality.items()),
        "pixels": f"{counted:.3g} compared; {share:.1%} of the grid did not count: "
        "not observed, or not forecast by all",
        "made": f"{time_text(now())} by squall {version('squall')}",
    }
    return table(("", ""), facts.items())


def _verdict(root: str, product: str, common: xr.Dataset, threshold: float) -> str:
    """How far ahead to trust it, and against whom it wins and loses, in sentences."""
    skill = read_skill(root, product)
    served = skill.of(SERVED) if skill else None
    if skill is None or served is None or served.trust_horizon is None:
        return "<h2>In short</h2><p>There was too little rain, or too few forecasts, to say.</p>"
    event = f"rain of {skill.threshold_mm_h:g} mm/h or more"
    said = [f"Forecasts of {event} beat persistence up to {horizon_text(served)} ahead."]
    csi = scores(common.sum("init_time"))["csi"].sel(threshold=threshold, method="nearest")
    own = csi.sel(forecaster=SERVED)
    for name in (str(one) for one in csi["forecaster"].values if one != SERVED):
        other = csi.sel(forecaster=name)
        won, lost = (
            ", ".join(format_duration(pd.Timedelta(one)) for one in csi["lead_time"].values[where])
            for where in ((own > other).values, (own < other).values)
        )
        said.append(
            f"Against {name} CSI is higher at {won or 'no lead time'}, lower at {lost or 'none'}."
        )
    return "<h2>In short</h2><p>" + " ".join(map(text, said)) + "</p>"


def _skill(common: xr.Dataset, settings: Settings) -> Iterator[str]:
    """Scores by lead time with intervals, and how far apart they are."""
    block = settings.verify.skill.block
    blocks = block_sums(common, block).sizes["block"]
    values = served_first(scores(common.sum("init_time")))
    draws = scores(resampled(common, block, settings.verify.skill.samples))
    yield f"<h2>Skill by lead time</h2><p>On the {common.sizes['init_time']} init_times of all."
    yield f" Intervals: draws of {blocks} events of {format_duration(block)}.</p>"
    if blocks < FEW_BLOCKS:
        yield (
            f'<p class="warn">Of only {blocks} events these intervals mean little: they are of '
            "this weather, not of any to come.</p>"
        )
    for title, name, perfect in SECTIONS:
        yield f"<h3>{title}</h3>" + _lines(values[name], draws[name], "threshold", "mm/h", perfect)
    if "fss" in values:
        lowest = {"threshold": values["threshold"].min()}
        yield f"<h3>FSS ≥ {float(lowest['threshold']):g} mm/h</h3>" + _lines(
            values["fss"].sel(lowest), draws["fss"].sel(lowest), "scale", "km", 1.0
        )
    plain = {name: title for name, title in PLAIN.items() if name in values}
    panels = {title: values[name] for name, title in plain.items()}
    bands = {title: interval(draws[name]) for name, title in plain.items()}
    yield "<h3>Errors of rain rate, and likeness</h3>" + figure(
        lines_picture(panels, bands, None), "errors and likeness by lead time"
    )
    yield "".join(numbers(panels.items()))
    yield _differences(values, draws)


def _lines(score: xr.DataArray, draws: xr.DataArray, by: str, unit: str, perfect: float) -> str:
    """A panel for each threshold or scale, and the numbers."""
    panels = {f"{label:g} {unit}": score.sel({by: label}) for label in score[by].values}
    bands = {f"{label:g} {unit}": interval(draws.sel({by: label})) for label in score[by].values}
    picture = lines_picture(panels, bands, perfect)
    return figure(picture, f"{score.name} by lead time") + "".join(numbers(panels.items()))


def _differences(values: xr.Dataset, draws: xr.Dataset) -> str:
    """What was served less each other forecaster, with the interval; bold where it excludes 0."""
    leads = values["lead_time"].values
    chosen = leads[np.unique(np.linspace(0, len(leads) - 1, SHOWN_LEADS).round().astype(int))]
    lines = []
    for other in (str(name) for name in values["forecaster"].values if name != SERVED):
        for name, label in (("csi", "CSI"), ("mae", "MAE, mm/h")):
            for threshold in values["threshold"].values if name == "csi" else (None,):
                at = {} if threshold is None else {"threshold": threshold}
                cells = []
                for lead in chosen:
                    where = at | {"lead_time": lead}
                    one = values[name].sel(where)
                    drawn = draws[name].sel(where)
                    gap = float(one.sel(forecaster=SERVED) - one.sel(forecaster=other))
                    low, high = interval(
                        drawn.sel(forecaster=SERVED) - drawn.sel(forecaster=other)
                    ).values
                    told = f"{gap:+.3f} ({low:+.3f} to {high:+.3f})"
                    if np.isnan([gap, low, high]).any():  # no event in a draw, or in none
                        told = "–" if np.isnan(gap) else f"{gap:+.3f}"
                    sure = low > 0 or high < 0
                    cells.append(f"<b>{told}</b>" if sure else told)
                event = "" if threshold is None else f" ≥ {threshold:g} mm/h"
                lines.append([text(other), label + event, *cells])
    head = ("against", "score", *(f"+{format_duration(pd.Timedelta(one))}" for one in chosen))
    return (
        "<h3>Served less the others</h3><p>Bold where the interval excludes 0. More CSI is better, "
        "more MAE worse.</p>" + table(head, lines, raw=True)
    )


def _whole(sums: xr.Dataset) -> Iterator[str]:
    """Spectra, and ensembles if there are any."""
    values = served_first(scores(sums))
    if "power_ratio" in values:
        yield "<h2>Blurring</h2><p>Power of forecast by observed; under 1 it is smoother.</p>"
        yield figure(spectra_picture(values["power_ratio"]), "power ratio by wavelength")
    if "crps" not in values:
        return
    for name in values["forecaster"].values:
        one = values.sel(forecaster=name)
        if not one["crps"].notnull().any():
            continue
        of_all = scores(sums.sel(region=DOMAIN, forecaster=name).sum("lead_time"))
        yield f"<h2>Ensemble: {text(str(name))}</h2>"
        yield "".join(numbers([("CRPS (mm/h)", one[["crps", "crps_fair"]].to_array("forecaster"))]))
        yield figure(reliability_picture(of_all), "reliability by threshold")
        roc = of_all["roc_area"].to_series()
        yield table(
            ("threshold, mm/h", "Brier score", "ROC area"),
            [
                (f"{t:g}", f"{float(of_all['brier'].sel(threshold=t)):.4f}", f"{a:.3f}")
                for t, a in roc.items()
            ],
        )
        picture = ranks_picture(of_all["ranks"], one["spread"], one["skill"])
        yield figure(picture, "rank histogram; spread and skill")


def _calibration(root: str, product: str) -> str:
    """Reliability before and after the calibration that is applied."""
    calibration = read_calibration(root, product)
    if calibration is None:
        return ""
    lines = [
        (
            f"≥ {one.threshold_mm_h:g} mm/h",
            f"{one.brier_before:.5f}",
            f"{one.brier_after:.5f}",
            f"{one.change_interval[0]:+.5f} to {one.change_interval[1]:+.5f}",
        )
        for one in calibration.reliability
    ]
    return (
        f"<h2>Calibration of {text(calibration.forecaster)}</h2>"
        f"<p>{text(calibration.version)}, fitted on {calibration.forecasts} forecasts from "
        f"{calibration.since} to {calibration.until}; here on events that the fit had not seen.</p>"
        + figure(calibration_picture(calibration.reliability), "reliability before and after")
        + table(("threshold", "Brier before", "after", "change, 95 %"), lines)
    )


def _regions(sums: xr.Dataset) -> Iterator[str]:
    """CSI of what was served, by region, at the lowest threshold."""
    if sums.sizes["region"] < 2:
        return
    csi = scores(sums.sel(forecaster=SERVED, drop=True))["csi"].isel(threshold=0)
    yield f"<h2>Regions</h2><p>CSI ≥ {float(csi['threshold']):g} mm/h of what was served.</p>"
    yield "".join(numbers([("", csi.rename(region="forecaster"))], shut=False))


def _examples(root: str, product: str, rows: xr.Dataset) -> Iterator[str]:
    """The best, a middling and the worst forecast, by MAE at the middle lead time."""
    lead = rows["lead_time"].values[(rows.sizes["lead_time"] - 1) // 2]
    at = rows.sel(region=DOMAIN, forecaster=SERVED, lead_time=lead, drop=True)
    rainy = at["hits"].isel(threshold=0) + at["misses"].isel(threshold=0) > 0
    mae = (at["absolute_error"] / at["pixels"].where((at["pixels"] > 0) & rainy)).to_series()
    mae = mae.dropna().sort_values()
    if mae.empty:
        return
    yield f"<h2>Examples</h2><p>By MAE at +{format_duration(pd.Timedelta(lead))}.</p>"
    places = {"best": 0, "middling": len(mae) // 2, "worst": len(mae) - 1}
    archive = Archive(archive_url(root, product))
    for what, place in places.items():
        init_time = pd.Timestamp(mae.index[place])
        try:
            picture = _example(root, product, archive, init_time, pd.Timedelta(lead), rows)
        except (NotFoundError, FileNotFoundError):  # pruned since
            continue
        data = base64.b64encode(picture).decode()
        label = f"{what}: {time_text(init_time)}, MAE {mae.iloc[place]:.3f} mm/h"
        yield f'<figure><img alt="{label}" src="data:image/png;base64,{data}">'
        yield f"<figcaption>{label}</figcaption></figure>"


def _example(
    root: str,
    product: str,
    archive: Archive,
    init_time: pd.Timestamp,
    lead: pd.Timedelta,
    rows: xr.Dataset,
) -> bytes:
    fields = {"observed": archive.read_frames(pd.DatetimeIndex([init_time + lead]))[0]}
    served = open_forecast(root, product, init_time, FIRST)
    fields["served"] = ensemble_mean(served["rain_rate"].sel(lead_time=lead))
    for name in map(str, rows["forecaster"].values):
        try:
            shadow = open_forecast(shadow_root(root, name), product, init_time, FIRST)
            fields[name] = ensemble_mean(shadow["rain_rate"].sel(lead_time=lead))
        except (NotFoundError, FileNotFoundError, KeyError):
            continue
    fields = {
        name: field.load().drop_vars("lead_time", errors="ignore") for name, field in fields.items()
    }
    return comparison_picture(
        fields, f"{init_time + lead:%Y-%m-%d %H:%M} UTC, +{format_duration(lead)}"
    )


def _operation(root: str, product: str, rows: xr.Dataset) -> Iterator[str]:
    """Latency, and what is missing."""
    first, last = (pd.Timestamp(rows["init_time"].values[k]) for k in (0, -1))
    yield "<h2>Operation</h2>"
    archive = Archive(archive_url(root, product))
    frames = archive.usable_times(first, last)
    slots = pd.date_range(first, last, freq=archive.timestep)
    there = [time for time in published_names(root, product) if first <= time <= last]
    yield (
        f"<p>{len(slots)} timesteps: {len(slots) - len(frames)} without a frame, "
        f"{len(frames.difference(pd.DatetimeIndex(there)))} frames without a forecast.</p>"
    )
    try:
        quantiles = latency(root, product, first, last).quantiles()
    except NotFoundError:
        yield "<p>No forecast of the period was made as its frame came: no latency.</p>"
        return
    lines = [(str(stage), *(f"{one:.2f}" for one in row)) for stage, row in quantiles.iterrows()]
    yield table(("seconds from frame to forecast", *quantiles.columns), lines)


def _method() -> str:
    return (
        "<h2>How it was computed</h2><p>Only pixels count that were observed and that every "
        "forecaster forecast; missing is not dry. Sums are added up first and divided last, so "
        "the order of work changes nothing. Made by <code>squall verify --report</code>.</p>"
        + table(("score", "what it is", "source"), DEFINITIONS)
    )
