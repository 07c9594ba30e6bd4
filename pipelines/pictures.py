"""Pictures of frames and forecasts: maps in the grid's own projection, colours in mm/h."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.grid import Grid
from pipelines.times import format_duration

LEVELS_MM_H = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
COLOURS = (
    "#cfe8ff", "#94c8f5", "#4f9fe8", "#2166ac", "#1a9850",
    "#91cf60", "#fee08b", "#fc8d59", "#d73027",
)  # fmt: skip
HEAVIEST, DRY, NOT_OBSERVED = "#7a0177", "#ffffff", "#d9d9d9"
COLUMNS = 4


def frame_picture(frame: xr.DataArray, title: str) -> bytes:
    """A frame (y, x) in mm/h as a PNG: a map with colour bar, coordinates and graticule."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots()
    grid = Grid.of(frame)
    _draw(axes, frame, grid, _window(frame, grid))
    axes.set_title(title)
    _label(axes, grid, left=True, bottom=True)
    _colour_bar(figure, [axes])
    return _png(figure)


def forecast_picture(
    forecast: xr.DataArray, observed: xr.DataArray, title: str, columns: int = COLUMNS
) -> bytes:
    """Observed above, forecast below, at up to `columns` lead times, as a PNG.

    Parameters
    ----------
    forecast : (lead_time, y, x) mm/h with the scalar coordinate init_time
    observed : (lead_time, y, x) mm/h at the lead times that have come; fewer than the forecast's
        where the rest are still to come
    """
    grid = Grid.of(forecast)
    init_time = pd.Timestamp(forecast["init_time"].item())
    lead_times = pd.TimedeltaIndex(forecast["lead_time"].values)
    chosen = lead_times[_spread(len(lead_times), columns)]
    window = _window(forecast, grid)
    west, east, south, north = window
    height = 2 * 2.9 * (north - south) / (east - west) + 1.2
    figure = Figure(figsize=(2.9 * len(chosen) + 1.7, height), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False, sharex=True, sharey=True)
    for column, lead_time in enumerate(chosen):
        upper, lower = axes[0, column], axes[1, column]
        if lead_time in observed["lead_time"]:
            _draw(upper, observed.sel(lead_time=lead_time), grid, window)
        else:
            _draw(upper, forecast.sel(lead_time=lead_time) * np.nan, grid, window)
            upper.text(0.5, 0.5, "not yet observed", ha="center", transform=upper.transAxes)
        _draw(lower, forecast.sel(lead_time=lead_time), grid, window)
        upper.set_title(
            f"+{format_duration(lead_time)}  ({init_time + lead_time:%H:%M} UTC)", fontsize=10
        )
        _label(upper, grid, left=column == 0, bottom=False)
        _label(lower, grid, left=column == 0, bottom=True)
    for axis, name in zip(axes[:, 0], ("observed", "forecast"), strict=True):
        axis.set_ylabel(f"{name}\n{axis.get_ylabel()}", fontsize=10)
    figure.suptitle(title, fontsize=12)
    _colour_bar(figure, list(axes.ravel()))
    return _png(figure)


def comparison_picture(fields: Mapping[str, xr.DataArray], title: str) -> bytes:
    """Fields (y, x) in mm/h by name, side by side on one scale, as a PNG."""
    first = next(iter(fields.values()))
    grid = Grid.of(first)
    window = _window(first, grid)
    west, east, south, north = window
    height = 2.9 * (north - south) / (east - west) + 1.0
    figure = Figure(figsize=(2.9 * len(fields) + 1.4, height), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False, sharex=True, sharey=True)[0]
    for number, (axis, (name, field)) in enumerate(zip(axes, fields.items(), strict=True)):
        _draw(axis, field, grid, window)
        axis.set_title(name, fontsize=10)
        _label(axis, grid, left=number == 0, bottom=True)
    figure.suptitle(title, fontsize=12)
    _colour_bar(figure, list(axes))
    return _png(figure)


def sequence_picture(
    forecast: NDArray[np.floating],
    observed: NDArray[np.floating],
    leads: Sequence[str],
    title: str,
    columns: int = COLUMNS,
) -> bytes:
    """Observed above, forecast below, as `forecast_picture` has it, of a crop without a place.

    Parameters
    ----------
    forecast, observed : (lead_time, y, x) mm/h, NaN where not observed; north is up
    leads : how each lead time is called, such as 15min
    """
    chosen = _spread(len(leads), columns)
    rows, width = observed.shape[1:]
    size = 2.4 * len(chosen) + 1.5, 2 * 2.4 * rows / width + 0.9
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for row, name, frames in zip(axes, ("observed", "forecast"), (observed, forecast), strict=True):
        row[0].set_ylabel(name, fontsize=10)
        for axis, number in zip(row, chosen, strict=True):
            _show(axis, frames[number])
            axis.set(xticks=[], yticks=[])
    for axis, number in zip(axes[0], chosen, strict=True):
        axis.set_title(f"+{leads[number]}", fontsize=10)
    figure.suptitle(title, fontsize=12)
    _colour_bar(figure, list(axes.ravel()))
    return _png(figure)


def _spread(count: int, columns: int) -> NDArray[np.int64]:
    """Up to `columns` of `count` numbers, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, columns).round().astype(int))


Window = tuple[float, float, float, float]
"""West, east, south and north edge of what is shown, in km (degrees on a geographic grid)."""


def _axis_unit(grid: Grid) -> float:
    """How much of the grid's coordinates is one on the axes: a kilometre, or a degree."""
    return 1.0 if grid.is_geographic else 1000.0


def _window(field: xr.DataArray, grid: Grid) -> Window:
    """The part of the grid that has values, with a margin; the whole grid where none has."""
    seen = field.notnull().any([dim for dim in field.dims if dim not in ("y", "x")])
    y = (grid.y[seen.any("x").values] if seen.any() else grid.y) / _axis_unit(grid)
    x = (grid.x[seen.any("y").values] if seen.any() else grid.x) / _axis_unit(grid)
    margin = 0.04 * max(np.ptp(x), np.ptp(y))
    return x.min() - margin, x.max() + margin, y.min() - margin, y.max() + margin


def _draw(axes: Axes, frame: xr.DataArray, grid: Grid, window: Window) -> None:
    """One map: rain rate over grey (not observed) and white (dry), with a lat/lon graticule."""
    unit = _axis_unit(grid)
    dx, dy = (size / unit for size in grid.pixel)
    x, y = grid.x / unit, grid.y / unit
    extent = (x[0] - dx / 2, x[-1] + dx / 2, y[-1] - dy / 2, y[0] + dy / 2)
    axes.set_facecolor(NOT_OBSERVED)
    _show(axes, frame.transpose("y", "x").values, extent)
    west, east, south, north = window
    x, y = np.linspace(west, east, 60), np.linspace(south, north, 60)
    lon, lat = grid.lonlat(*np.meshgrid(x * unit, y * unit))
    for field, degrees in ((lon, "°E"), (lat, "°N")):
        spacing = _graticule_spacing(float(np.ptp(field)))
        levels = np.arange(np.ceil(field.min() / spacing), field.max() / spacing) * spacing
        if np.all(np.isfinite(field)) and len(levels):
            lines = axes.contour(x, y, field, levels=levels, colors="#555555", linewidths=0.4)
            axes.clabel(lines, fmt=lambda v, degrees=degrees: f"{v:g}{degrees}", fontsize=6)
    axes.set_aspect("equal")
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)


def _show(axes: Axes, values: NDArray[np.floating], extent: Window | None = None) -> None:
    """Rain rate (y, x) in its colours."""
    colours, norm = _colours()
    axes.imshow(
        np.ma.masked_invalid(values),
        extent=extent,
        cmap=colours,
        norm=norm,
        interpolation="nearest",
    )


def _graticule_spacing(span: float) -> float:
    """Degrees between lines so that there are about four."""
    return next((s for s in (0.5, 1, 2, 5, 10, 20) if span / s <= 5), 30)


def _colours() -> tuple[Colormap, BoundaryNorm]:
    colours = ListedColormap(list(COLOURS)).with_extremes(
        under=DRY, over=HEAVIEST, bad=NOT_OBSERVED
    )
    return colours, BoundaryNorm(LEVELS_MM_H, len(COLOURS))


def _colour_bar(figure: Figure, axes: list[Axes]) -> None:
    from matplotlib.cm import ScalarMappable

    colours, norm = _colours()
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=axes, extend="both", ticks=LEVELS_MM_H, shrink=0.9
    )
    bar.ax.set_yticklabels([f"{level:g}" for level in LEVELS_MM_H])
    bar.set_label("rain rate (mm/h); white: dry, grey: not observed")


def _label(axes: Axes, grid: Grid, *, left: bool, bottom: bool) -> None:
    axes.tick_params(labelsize=7, labelleft=left, labelbottom=bottom)
    if left:
        axes.set_ylabel("latitude (°N)" if grid.is_geographic else "northing (km)", fontsize=8)
    if bottom:
        axes.set_xlabel("longitude (°E)" if grid.is_geographic else "easting (km)", fontsize=8)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
