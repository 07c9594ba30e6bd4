"""The pictures of a verification report, as SVG: scores and intervals, spectra, ensembles."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.calibration import Reliability
from pipelines.score_store import SERVED

COLUMNS = 3
PANEL_INCHES = (3.7, 2.7)


def colour_of(name: str, names: list[str]) -> str:
    """Black for what was served; each other forecaster has its own."""
    others = [one for one in names if one != SERVED]
    return "black" if name == SERVED else f"C{others.index(name) % 10}"


def lines_picture(
    panels: Mapping[str, xr.DataArray], bands: Mapping[str, xr.DataArray], perfect: float | None
) -> str:
    """Scores by lead time: a panel each, a line for each forecaster, its interval behind it.

    Parameters
    ----------
    panels : (forecaster, lead_time) by title
    bands : (bound, forecaster, lead_time) by the same titles, where known
    perfect : where a thin line is drawn
    """
    figure, axes = _panels(len(panels))
    for axis, (title, score) in zip(axes, panels.items(), strict=False):
        names = [str(name) for name in score["forecaster"].values]
        minutes = _minutes(score)
        for name in names:
            colour = colour_of(name, names)
            style = {"linewidth": 2.2} if name == SERVED else {"linewidth": 1.2, "linestyle": "--"}
            axis.plot(minutes, score.sel(forecaster=name), color=colour, label=name, **style)
            if title in bands:
                low, high = bands[title].sel(forecaster=name).transpose("bound", "lead_time").values
                axis.fill_between(minutes, low, high, color=colour, alpha=0.13, linewidth=0)
        if perfect is not None:
            axis.axhline(perfect, color="grey", linewidth=0.6)
        _label(axis, title, "lead time (min)", bool(np.isfinite(score.values).any()))
    _legend(figure, axes)
    return _svg(figure)


def spectra_picture(ratio: xr.DataArray) -> str:
    """Power of forecast by observed (forecaster, lead_time, wavelength): under 1 is blurred."""
    leads = ratio["lead_time"].values
    chosen = leads[np.unique(np.linspace(0, len(leads) - 1, COLUMNS).round().astype(int))]
    figure, axes = _panels(len(chosen))
    for axis, lead in zip(axes, chosen, strict=False):
        names = [str(name) for name in ratio["forecaster"].values]
        for name in names:
            style = {"linewidth": 2.2} if name == SERVED else {"linewidth": 1.2, "linestyle": "--"}
            line = ratio.sel(forecaster=name, lead_time=lead)
            axis.loglog(
                ratio["wavelength"], line, color=colour_of(name, names), label=name, **style
            )
        axis.axhline(1, color="grey", linewidth=0.6)
        minutes = pd.Timedelta(lead).total_seconds() / 60
        _label(axis, f"+{minutes:g} min", "wavelength (km)", bool(np.isfinite(ratio.values).any()))
    _legend(figure, axes)
    return _svg(figure)


def reliability_picture(values: xr.Dataset) -> str:
    """Observed frequency by forecast probability of a forecaster, a panel for each threshold.

    `values` : forecast_probability, observed_frequency, probability_cases (threshold, probability)
    """
    figure, axes = _panels(values.sizes["threshold"])
    for axis, threshold in zip(axes, values["threshold"].values, strict=False):
        one = values.sel(threshold=threshold)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.6)
        axis.plot(one["forecast_probability"], one["observed_frequency"], "o-", color="black")
        counts = axis.twinx()
        counts.bar(one["probability"], one["probability_cases"], width=0.06, alpha=0.15)
        counts.set_yscale("symlog")
        counts.tick_params(labelsize=6)
        axis.set_ylim(0, 1)
        some = bool(one["observed_frequency"].notnull().any())
        _label(axis, f"≥ {threshold:g} mm/h", "forecast probability", some)
    return _svg(figure)


def calibration_picture(reliability: Sequence[Reliability]) -> str:
    """Observed frequency by probability, before and after, a panel for each threshold."""
    figure, axes = _panels(len(reliability))
    for axis, one in zip(axes, reliability, strict=False):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.6)
        some = np.array(one.cases) > 0
        for label, probability, style in (
            ("before", one.before, "o--"),
            ("after", one.after, "o-"),
        ):
            axis.plot(
                np.array(probability)[some], np.array(one.frequency)[some], style, label=label
            )
        _label(axis, f"≥ {one.threshold_mm_h:g} mm/h", "forecast probability", bool(some.any()))
    _legend(figure, axes)
    return _svg(figure)


def ranks_picture(ranks: xr.DataArray, spread: xr.DataArray, skill: xr.DataArray) -> str:
    """Rank histogram of a forecaster (rank), and its spread beside its skill by lead time."""
    figure, (left, right) = _panels(2)
    left.bar(ranks["rank"], ranks, color="black", alpha=0.6)
    left.axhline(1 / max(1, ranks.sizes["rank"]), color="grey", linewidth=0.6)
    _label(left, "rank of what was observed", "rank", bool(ranks.notnull().any()))
    right.plot(_minutes(spread), spread, "--", color="C0", label="spread")
    right.plot(_minutes(skill), skill, color="black", label="RMSE of the mean")
    right.legend(fontsize=7, frameon=False)
    _label(right, "spread and skill (mm/h)", "lead time (min)", bool(skill.notnull().any()))
    return _svg(figure)


def _minutes(score: xr.DataArray) -> NDArray[np.float64]:
    return pd.TimedeltaIndex(score["lead_time"].values).total_seconds().to_numpy() / 60


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, the rest of the last row empty."""
    columns = min(COLUMNS, max(count, 1))
    rows = -(-max(count, 1) // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(columns * width, rows * height + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _label(axis: Axes, title: str, below: str, some: bool) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(below, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if not some:
        axis.text(0.5, 0.5, "no cases", ha="center", transform=axis.transAxes)


def _legend(figure: Figure, axes: list[Axes]) -> None:
    lines, names = axes[0].get_legend_handles_labels()
    if names:
        columns = min(len(names), 4)
        figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False)


def _svg(figure: Figure) -> str:
    """As the <svg> element alone, without a date: the same scores are the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
