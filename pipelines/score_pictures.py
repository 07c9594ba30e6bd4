"""Pictures of scores: skill by lead time, a line for each forecaster."""

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.compare import DOMAIN
from pipelines.score_store import SERVED
from pipelines.scores import scores

COLUMNS = 3
PANEL_INCHES = (3.6, 2.7)


def served_first(values: xr.Dataset) -> xr.Dataset:
    """Sums or scores of the whole domain, the forecaster "served" before the others."""
    if "region" in values.dims:
        values = values.sel(region=DOMAIN, drop=True)
    names = values["forecaster"].values.tolist()
    return values.sel(forecaster=sorted(names, key=lambda name: name != SERVED))


def skill_picture(sums: xr.Dataset) -> bytes:
    """Scores by lead time as a PNG: CSI for each threshold, FSS at the lowest, and MAE.

    `sums` : (forecaster, lead_time[, region], threshold[, scale]), see `pipelines.scores`. Of the
    whole domain. A panel without any case says so.
    """
    panels = list(_panels(served_first(scores(sums))))
    rows = -(-len(panels) // COLUMNS)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(COLUMNS * width, rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).ravel())
    for axis, (title, score, top) in zip(axes, panels, strict=False):
        _draw(axis, title, score, top)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _panels(values: xr.Dataset) -> Iterator[tuple[str, xr.DataArray, float | None]]:
    """Title, score (forecaster, lead_time) and largest possible value of each panel."""
    for threshold in values["threshold"].values:
        csi = values["csi"].sel(threshold=threshold)
        yield f"CSI ≥ {threshold:g} mm/h", csi, 1.0
    if "fss" in values:
        lowest = values["fss"].sel(threshold=values["threshold"].min())
        for scale in values["scale"].values:
            title = f"FSS ≥ {float(lowest['threshold']):g} mm/h, {scale:g} km"
            yield title, lowest.sel(scale=scale), 1.0
    yield "MAE (mm/h)", values["mae"], None


def _draw(axis: Axes, title: str, score: xr.DataArray, top: float | None) -> None:
    """A line for each forecaster over the lead time in minutes."""
    minutes = pd.TimedeltaIndex(score["lead_time"].values).total_seconds() / 60
    for number, name in enumerate(score["forecaster"].values):
        values = score.sel(forecaster=name).transpose("lead_time").values
        bold = name == SERVED
        axis.plot(
            minutes,
            values,
            color="black" if bold else f"C{number % 10}",
            linewidth=2.4 if bold else 1.3,
            linestyle="-" if bold else ("--", "-.", ":")[number % 3],
            marker="o" if len(minutes) == 1 else None,
            label=str(name),
            zorder=3 if bold else 2,
        )
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("lead time (min)", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.set_xlim(0, 1.03 * max(minutes))
    axis.set_ylim(0, top)
    if not np.isfinite(score.values).any():
        axis.text(0.5, 0.5, "no cases", ha="center", transform=axis.transAxes)
