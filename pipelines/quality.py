"""Quality control: which pixels are not believed, and which frames stand out from their neighbours.

Nothing is on by default. A pixel becomes *not observed* where the truth behind it is unknown, and
*dry* where the radar looked and saw no rain worth the name:

========  ======================================  ============
rule      pixels                                  become
========  ======================================  ============
largest   rain rate above a limit                 not observed
clutter   in a static mask                        not observed
least     rain rate above 0 and below a limit     dry
speckle   wet areas of too few pixels             dry
========  ======================================  ============

Clutter hides the rain behind it, so its pixels are unknown. Speckle is an echo where its whole
surroundings have none; the minimum-echo-area test of Gabella and Notarpietro (2002, ERAD, 305–311;
`wradlib.classify.filter_gabella`) takes it for no rain, and as pysteps does before it tracks
motion, it is set to dry: holes in clear air would say that nobody looked.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from pipelines import storage
from pipelines.errors import GridMismatchError, SquallError
from pipelines.grid import CRS_VARIABLE, Grid
from pipelines.section import Section
from pipelines.times import Duration
from pipelines.units import DRY_MM_H

RULES = ("largest", "clutter", "least", "speckle")
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
FLOORS = {"rain_rate_mm_h": 0.05, "wet_fraction": 0.01}
"""Added to both sides before a statistic is compared by factor, so that nearly dry frames do not
jump by noise."""


class QualitySettings(Section):
    """What of a frame is not believed. All off by default."""

    largest_mm_h: float | None = Field(
        None, gt=0, description="A rain rate above this is not believed: not observed (mm/h)."
    )
    least_mm_h: float | None = Field(
        None, gt=0, description="A rain rate below this is no rain: dry (mm/h)."
    )
    speckle_pixels: int | None = Field(
        None,
        ge=2,
        description="Wet areas (8 neighbours) of fewer pixels than this become dry, unless they "
        "touch the grid's border or what is not observed, where their size is not known.",
    )
    clutter: str | None = Field(
        None,
        description="URL of a mask (y, x) of pixels that are never believed: .npy, .nc or .zarr, "
        "true where clutter. They become not observed.",
    )
    jump_factor: float | None = Field(
        None,
        gt=1,
        description="A frame whose mean rain rate or wet fraction differs by more than this factor "
        "from both of its neighbours is flagged.",
    )
    least_coverage: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A frame that observes less than this part of the usual area is flagged.",
    )
    neighbours_within: Duration = Field(
        pd.Timedelta("15min").to_pytimedelta(),
        description="Frames further apart than this are no neighbours.",
    )


def apply(frame: xr.DataArray, settings: QualitySettings) -> tuple[xr.DataArray, dict[str, int]]:
    """The frame (see `pipelines.sources.base.frame`) with the rules applied, and pixels by rule.

    Rules go in the table's order; every changed pixel is changed and counted once. Applied again,
    nothing changes. With every rule off the frame itself comes back.

    Raises `GridMismatchError` where the clutter mask is of another grid than the frame.
    """
    changed = dict.fromkeys(RULES, 0)
    rules = settings.largest_mm_h, settings.clutter, settings.least_mm_h, settings.speckle_pixels
    if all(rule is None for rule in rules):
        return frame, changed
    before = frame.values
    rain_rate = before.copy()

    def change(rule: str, pixels: NDArray[np.bool_], to: float) -> None:
        changed[rule] = int(pixels.sum())
        rain_rate[pixels] = to

    with np.errstate(invalid="ignore"):
        if settings.largest_mm_h is not None:
            change("largest", rain_rate > settings.largest_mm_h, np.nan)
        if settings.clutter is not None:
            mask = clutter_mask(settings.clutter, Grid.of(frame))
            change("clutter", mask & np.isfinite(rain_rate), np.nan)
        if settings.least_mm_h is not None:
            change("least", (rain_rate > 0) & (rain_rate < settings.least_mm_h), 0.0)
        if settings.speckle_pixels is not None:
            change("speckle", _speckle(rain_rate, np.isnan(before), settings.speckle_pixels), 0.0)
    if not any(changed.values()):
        return frame, changed
    observed = (frame.dims, np.isfinite(rain_rate))
    return frame.copy(data=rain_rate).assign_coords(observed=observed), changed


def _speckle(
    rain_rate: NDArray[np.floating], unknown: NDArray[np.bool_], least_pixels: int
) -> NDArray[np.bool_]:
    """(y, x) wet areas of fewer pixels whose surroundings are all known."""
    areas, _ = ndimage.label(rain_rate >= DRY_MM_H, EIGHT_NEIGHBOURS)
    small = np.bincount(areas.ravel()) < least_pixels
    beside = ndimage.binary_dilation(unknown, EIGHT_NEIGHBOURS, border_value=1)
    small[areas[beside]] = False
    small[0] = False  # label 0 is what is not wet
    return np.asarray(small[areas])


# Clutter -----------------------------------------------------------------------------------------


def clutter_mask(url: str, grid: Grid) -> NDArray[np.bool_]:
    """The boolean (y, x) mask at a URL; read again only when it has changed.

    A netCDF or Zarr holds it as ``clutter`` and, if it has the coordinates that
    `clutter_from_frames` writes, must be of `grid`; any must have its shape (`GridMismatchError`).
    """
    fs, path = storage.filesystem(url)
    try:
        mask, of = _read_mask(url, str(fs.ukey(path)))
    except (OSError, KeyError, ValueError) as error:
        raise SquallError(
            "not a clutter mask",
            found=f"{storage.display(url)} ({type(error).__name__}: {error})",
            expected="a .npy array, or `clutter` in a .nc or .zarr, boolean over (y, x)",
            remedy="make one with pipelines.quality.clutter_from_frames",
        ) from error
    if mask.shape != grid.shape or (of is not None and not of.matches(grid)):
        raise GridMismatchError(
            "a clutter mask of another grid",
            found=str(of or f"{mask.shape} pixels in {storage.display(url)}"),
            expected=str(grid),
            remedy="make the mask from frames on this grid",
        )
    return mask


@lru_cache(maxsize=4)
def _read_mask(url: str, version: str) -> tuple[NDArray[np.bool_], Grid | None]:
    if url.rstrip("/").endswith(".npy"):
        mask = np.load(BytesIO(storage.read_bytes(url)), allow_pickle=False)
        return mask.astype(bool), None
    if url.rstrip("/").endswith(".zarr"):
        dataset = xr.open_zarr(storage.zarr_store(storage.normalise(url)), chunks=None)
    else:
        dataset = xr.load_dataset(BytesIO(storage.read_bytes(url)))
    grid = Grid.of(dataset) if CRS_VARIABLE in dataset.variables else None
    return dataset["clutter"].transpose("y", "x").values.astype(bool), grid


def clutter_from_frames(
    frames: xr.DataArray,
    *,
    share: float = 0.5,
    ratio: float = 3.0,
    least_share: float = 0.05,
    window: int = 11,
    least_frames: int = 288,
) -> xr.DataArray:
    """``clutter(y, x)``: pixels that are wet too often to be rain, from an archive's frames.

    The wet share of a pixel is wet frames over frames that observe it. Clutter is wet in more than
    `share` of them, or in more than `least_share` and more than `ratio` times the median of the
    `window`×`window` pixels around: rain passes over neighbours alike. Pixels observed in fewer
    than `least_frames` are not judged. Take months, as one rainy day says nothing; compare
    `wradlib.classify.histo_cut`, which cuts a yearly accumulation by its histogram.

    `frames` is rain rate (time, y, x) in mm/h; lazy ones are counted chunk by chunk.
    """
    counts = xr.Dataset(
        {"wet": (frames >= DRY_MM_H).sum("time"), "observed": frames.notnull().sum("time")}
    ).compute()
    judged = counts["observed"].values >= least_frames
    wet_share = np.full(judged.shape, np.nan)
    np.divide(counts["wet"].values, counts["observed"].values, out=wet_share, where=judged)
    with np.errstate(invalid="ignore"):
        often = wet_share > share
        odd = (wet_share > least_share) & (wet_share > ratio * _median_around(wet_share, window))
    mask = xr.DataArray(
        often | odd,
        dims=("y", "x"),
        coords=Grid.of(frames).coords(lonlat=False),
        name="clutter",
        attrs={"long_name": "static clutter", "grid_mapping": CRS_VARIABLE},
    )
    return mask.assign_coords(wet_share=(("y", "x"), wet_share))


def _median_around(field: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """(y, x) median of the window around each pixel, of what is not NaN; row by row for memory."""
    half = window // 2
    padded = np.pad(field, half, constant_values=np.nan)
    width = 2 * half + 1
    around = np.lib.stride_tricks.sliding_window_view(padded, (width, width))
    median = np.full(field.shape, np.nan)
    for row, known in enumerate(np.isfinite(field)):
        if known.any():  # a known pixel is in its own window: no window is empty
            median[row, known] = np.nanmedian(around[row, known], axis=(1, 2))
    return median


# Jumps -------------------------------------------------------------------------------------------


def sudden_jumps(stats: pd.DataFrame, settings: QualitySettings) -> pd.DataFrame:
    """The flagged times, and by which statistic: booleans, one row for each of them.

    `stats` has the columns observed_fraction, rain_rate_mm_h and wet_fraction, by time (see
    `pipelines.info.frame_statistics`). Mean rain rate and wet fraction are flagged where they are
    more than `jump_factor` above, or below, the neighbours on both sides: weather that arrives
    stays for longer than a frame. The newest frame is judged once its successor is there. The
    observed fraction is flagged where it is less than `least_coverage` of the median of the day
    around (±12 h), so an outage is flagged as long as it lasts, up to half a day.

    Pixels are not changed. What is flagged follows from the set of frames alone, whatever the order
    in which they arrived.
    """
    stats = stats.sort_index()
    if not stats.index.is_unique:
        raise SquallError(
            "two frames of one time",
            found=str(stats.index[stats.index.duplicated()][0]),
            expected="a row for each time",
            remedy="keep the archive's frame only",
        )
    flags = pd.DataFrame(False, index=stats.index, columns=list(stats.columns))
    if settings.jump_factor is not None:
        for name, floor in FLOORS.items():
            flags[name] = _stands_out(stats[name] + floor, settings)
    if settings.least_coverage is not None:
        coverage = stats["observed_fraction"]
        usual = coverage.rolling("1D", center=True, closed="both").median()
        flags["observed_fraction"] = coverage < settings.least_coverage * usual
    return flags[flags.any(axis=1)]


def _stands_out(values: pd.Series, settings: QualitySettings) -> pd.Series:
    """Where a value is more than the factor above, or below, both of its neighbours."""
    assert settings.jump_factor is not None
    gap = values.index.to_series().diff()
    near = (gap <= settings.neighbours_within) & (gap.shift(-1) <= settings.neighbours_within)
    sides = pd.concat([values.shift(1), values.shift(-1)], axis=1)
    higher = values > settings.jump_factor * sides.max(axis=1, skipna=False)
    lower = values < sides.min(axis=1, skipna=False) / settings.jump_factor
    return near & (higher | lower)
