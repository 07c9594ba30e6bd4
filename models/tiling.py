"""A large domain forecast tile by tile, so that memory does not grow with it.

Tiles overlap. Each is forecast on its own, and the forecasts are blended: a tile's weight falls
linearly to nothing over the overlap, towards every edge that it shares with another, and the
weights of a pixel sum to one. So what a network makes of a tile's artificial edge, beyond which it
sees nothing, counts least.

Tiles begin at multiples of a network's patches and strides, and all of them end there but the last
ones, which end with the domain: pixels lie in patches as they would in the whole domain.

Memory is what the forecast itself needs, ([member,] lead_time, y, x) float32, one (y, x) field of
weights, and what one tile takes.

What enters a tile from farther outside than it sees is not forecast by it. Let the overlap be at
least twice as wide as rain moves until the last lead_time, where there is room for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from models.forecaster import Forecaster, labelled
from pipelines.errors import SquallError
from pipelines.units import DRY_MM_H


@dataclass(frozen=True)
class Span:
    """Where a tile lies along one dimension, and how much its pixels there weigh."""

    pixels: slice
    weights: NDArray[np.float64]


class Tiled:
    """A forecaster (`models.forecaster.Forecaster`) of domains larger than a tile.

    A domain that fits into a tile along y or x is not cut there.

    Parameters
    ----------
    forecaster : what forecasts a tile
    tile, overlap : side of a tile and how much neighbours share at least, in pixels; both are
        rounded up to a multiple of `align`
    align : tiles begin at multiples of it; what `alignment` says by default

    Raises `SquallError` where the overlap is not smaller than the tile.
    """

    def __init__(
        self, forecaster: Forecaster, tile: int = 512, overlap: int = 128, align: int | None = None
    ) -> None:
        self.align = alignment(forecaster) if align is None else align
        self.tile, self.overlap = (-(-size // self.align) * self.align for size in (tile, overlap))
        if not 0 <= self.overlap < self.tile:
            raise SquallError(
                "tiles that overlap like this do not get on",
                found=f"an overlap of {self.overlap} pixels, tiles of {self.tile}",
                expected="an overlap that is smaller than a tile",
                remedy="choose larger tiles or a smaller overlap",
            )
        self.forecaster = forecaster
        self.name, self.paper = forecaster.name, forecaster.paper
        self.past_frames = forecaster.past_frames

    @property
    def model(self) -> Any:
        """The forecaster's model (`models.registry.Model`), None where it has none."""
        return getattr(self.forecaster, "model", None)

    def predict(self, past: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
        """See `models.forecaster.Forecaster.predict`.

        A pixel has no forecast where no tile has one.
        """
        spans = {dim: self._spans(past.sizes[dim]) for dim in ("y", "x")}
        if all(len(of_dim) == 1 for of_dim in spans.values()):
            return self.forecaster.predict(past, lead_times)
        blended: NDArray[np.float32] | None = None
        seen = np.zeros((past.sizes["y"], past.sizes["x"]), np.float32)
        for rows in spans["y"]:
            for columns in spans["x"]:
                tile = past.isel(y=rows.pixels, x=columns.pixels)
                forecast = self.forecaster.predict(tile, lead_times).values
                if blended is None:
                    shape = (*forecast.shape[:-2], *seen.shape)
                    blended = np.full(shape, np.nan, np.float32)
                here = (..., rows.pixels, columns.pixels)
                weight = np.outer(rows.weights, columns.weights).astype(np.float32)
                seen[here] += weight
                for frame in np.ndindex(forecast.shape[:-2]):
                    blend(blended[frame][here], forecast[frame], weight / seen[here])
        assert blended is not None
        if self.model is not None:  # below 0.1 mm/h a network's forecast is dry: between tiles, too
            for frame in np.ndindex(blended.shape[:-2]):
                blended[frame][blended[frame] < DRY_MM_H] = 0.0
        return labelled(blended, past, lead_times)

    def _spans(self, size: int) -> list[Span]:
        return list(spans(size, self.tile, self.overlap, self.align))


def spans(size: int, tile: int, overlap: int, align: int = 1) -> Iterator[Span]:
    """Tiles along a dimension of `size` pixels, evenly, each overlapping the next by `overlap` or
    more. All sizes but `size` are multiples of `align`.

    >>> [(span.pixels.start, span.pixels.stop) for span in spans(100, 40, 8, 4)]
    [(0, 40), (28, 68), (60, 100)]
    """
    last = max(0, -(-(size - tile) // align))  # where the last tile begins; in `align` pixels
    steps = -(-last // ((tile - overlap) // align))
    starts = [align * (last * k // steps) for k in range(steps)] + [align * last]
    stops = [*(start + tile for start in starts[:-1]), size]
    weights = np.zeros((len(starts), size))
    for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        pixels = np.arange(start, stop) + 0.5
        rising = pixels - start if start > 0 else np.inf
        falling = stop - pixels if stop < size else np.inf
        weights[k, start:stop] = np.minimum(np.minimum(rising, falling) / max(overlap, 1), 1.0)
    weights /= weights.sum(axis=0)
    for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        yield Span(slice(start, stop), weights[k, start:stop])


def blend(
    blended: NDArray[np.float32], forecast: NDArray[np.floating], share: NDArray[np.float32]
) -> None:
    """Take a tile's forecast (y, x) into what is blended so far, in place.

    `share` is the tile's part of all weights so far, which makes it a running weighted mean. Where
    one says NaN the other counts.
    """
    before = np.where(np.isnan(blended), forecast, blended)
    after = np.where(np.isnan(forecast), before, forecast)
    blended[:] = before + (after - before) * share


def alignment(forecaster: Forecaster) -> int:
    """The patches or strides that a forecaster's network cuts fields into, in pixels; 1 for none.

    Networks say it as `multiple` (all their strides together) or as `patch_size`.
    """
    network = getattr(getattr(forecaster, "model", None), "network", None)
    found: int = getattr(network, "multiple", getattr(network, "patch_size", 1))
    return found
