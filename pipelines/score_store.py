"""The scores store: what verification measured, a row for each forecast, as sums.

    {root}/scores/{product}/{YYYYMMDD}.parquet       the forecasts that start on one UTC day

A row is one init_time, forecaster, lead_time and region; the columns are the sums that scores are
divided from (`pipelines.scores`), one for each threshold, scale, … that a sum has:

    hits[threshold=0.5]    fraction_error[threshold=0.5,scale=20]    squared_error    pixels

Every sum adds up, whatever rows are taken together. So pandas alone has a score of any period:

    rows = pd.read_parquet("ROOT/scores/knmi")
    total = rows.groupby(["forecaster", "lead_time"]).sum(numeric_only=True)
    total["squared_error"] / total["pixels"]

A day is one object, replaced whole: a reader has the old one or the new one. Rows and columns are
in one order, however they came, so the same sums are the same bytes. Writers take turns by a lock
of the operating system's. An object store has none: of two that write in the same moment one's rows
may be lost there, and the next verification, which looks what is missing, adds them.
"""

import datetime as dt
import io
import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import xarray as xr
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import NotFoundError
from pipelines.lock import exclusive
from pipelines.once import sweep

ROW = ("init_time", "forecaster", "lead_time", "region")
"""What a row is of."""
SUFFIX = ".parquet"
SERVED = "served"
"""The forecaster that a reader had, whatever model made its forecast."""

Place = tuple[tuple[str, float], ...]
"""What else a sum is by, such as threshold 0.5 and scale 20."""


def folder_url(root: str, product: str) -> str:
    """Where the scores of a product are."""
    return storage.join(root, "scores", product)


def days(root: str, product: str) -> pd.DatetimeIndex:
    """The UTC days that have scores, ascending."""
    names = storage.names(folder_url(root, product))
    texts = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    return pd.DatetimeIndex(pd.to_datetime(texts, format="%Y%m%d"))


def read_rows(
    root: str,
    product: str,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    columns: list[str] | None = None,
) -> pd.DataFrame:
    """The rows with start ≤ init_time ≤ end, empty where there are none.

    Of their columns only some, where given, init_time among them.
    """
    found = list(_days_of_rows(root, product, start, end, columns))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns or [*ROW])


def _days_of_rows(
    root: str,
    product: str,
    start: pd.Timestamp | None,
    end: pd.Timestamp | None,
    columns: list[str] | None = None,
    sums: Collection[str] | None = None,
) -> Iterator[pd.DataFrame]:
    """The rows of a period, a day at a time; a day that is removed meanwhile has none.

    Of their columns only some, or only those of some `sums`, with what labels them.
    """
    for day in days(root, product):
        if (start is not None and day < start.floor("D")) or (end is not None and day > end):
            continue
        try:
            content = storage.read_bytes(_day_url(root, product, day))
        except FileNotFoundError:
            continue
        if sums is not None:
            columns = _columns_of(content, sums)
        rows = pd.read_parquet(io.BytesIO(content), columns=columns)
        after = rows["init_time"] >= start if start is not None else True
        before = rows["init_time"] <= end if end is not None else True
        rows = rows[np.broadcast_to(after & before, len(rows))]
        if len(rows):
            yield rows


def _columns_of(content: bytes, sums: Collection[str]) -> list[str]:
    """The columns of some sums, and those that are no sums."""
    schema = parquet.read_schema(io.BytesIO(content))
    return [one.name for one in schema if str(one.type) != "double" or _parsed(one.name)[0] in sums]


def open_scores(
    root: str,
    product: str,
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    sums: Collection[str] | None = None,
) -> xr.Dataset:
    """The sums of a period by init_time, forecaster, lead_time, region, … for `scores.scores`.

    What was not measured adds nothing: it is 0, `pixels` among it. Coordinates by init_time say
    which model made what was served, and how well. `sums` are the names of those wanted; all of a
    long period need much memory. Raises `NotFoundError` where nothing is.
    """
    found = list(_days_of_rows(root, product, start, end, sums=sums))
    if not found:
        raise _no_scores(root, product)
    return from_rows(pd.concat(found, ignore_index=True))


@dataclass(frozen=True)
class Total:
    """The sums (forecaster, lead_time, region, …) of a period, all forecasts together.

    `forecasts` is how many there are, `models` by which models those that were served are.
    """

    sums: xr.Dataset
    forecasts: int
    models: Counter[str]


def total(
    root: str, product: str, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
) -> Total:
    """The sums of a period, added up a day at a time, the oldest first: in the memory of a day.

    Raises `NotFoundError` where nothing is.
    """
    added, forecasts, models = None, 0, Counter[str]()
    for rows in _days_of_rows(root, product, start, end):
        ones = rows.drop_duplicates("init_time")
        forecasts += len(ones)
        models.update(ones.get("model", ()))
        of_day = rows.groupby(list(ROW[1:])).sum(numeric_only=True).select_dtypes("float64")
        added = of_day if added is None else added.add(of_day, fill_value=0.0)
    if added is None:
        raise _no_scores(root, product)
    any_time = added.assign(init_time=pd.Timestamp(0).as_unit("ns")).reset_index()
    return Total(from_rows(any_time).isel(init_time=0, drop=True), forecasts, models)


def _no_scores(root: str, product: str) -> NotFoundError:
    return NotFoundError(
        "no scores",
        found=f"nothing in that period at {storage.display(folder_url(root, product))}",
        expected="at least one verified forecast",
        remedy="run `squall verify`, or name another period",
    )


def of_forecaster(sums: xr.Dataset, forecaster: str) -> xr.Dataset:
    """The sums of one forecaster, without that dimension: of its own rows, and of what it served.

    0 where it has none. What was served counts where `model` says that this one made it.
    """
    known = sums["forecaster"].values
    own = (
        sums.sel(forecaster=forecaster, drop=True)
        if forecaster in known
        else xr.zeros_like(sums.isel(forecaster=0, drop=True))
    )
    if SERVED not in known or "model" not in sums.coords:
        return own
    return own.where(sums["model"] != forecaster, sums.sel(forecaster=SERVED, drop=True))


def write_scores(root: str, product: str, parts: Iterable[xr.Dataset]) -> list[str]:
    """Add the sums of forecasts, each instead of what there is of its init_time; the URLs.

    Parts have the scalar coordinate init_time, or it as a dimension. Nothing else changes.
    """
    frames = [to_rows(part) for part in parts]
    if not frames:
        return []
    new = pd.concat(frames, ignore_index=True)
    urls = []
    for day, rows in new.groupby(new["init_time"].dt.floor("D")):
        url = _day_url(root, product, pd.Timestamp(day))
        with exclusive(folder_url(root, product), by="verification"):
            if storage.exists(url):
                old = pd.read_parquet(io.BytesIO(storage.read_bytes(url)))
                rows = pd.concat([old[~old["init_time"].isin(rows["init_time"])], rows])
            storage.write_bytes(url, _in_order(rows).to_parquet(None, index=False))
        urls.append(url)
    return urls


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows and columns in their order, without columns of what no row has any more."""
    columns = sorted(rows.dropna(axis="columns", how="all").columns.difference([*ROW]), key=_parsed)
    return rows[[*ROW, *columns]].sort_values(list(ROW), ignore_index=True)


def remove_before(root: str, product: str, day: pd.Timestamp) -> list[str]:
    """Remove the days before `day`; their URLs."""
    urls = [_day_url(root, product, one) for one in days(root, product) if one < day.floor("D")]
    for url in urls:
        storage.remove(url)
    return urls


def prune_scores(root: str, product: str, keep: dt.timedelta | None) -> int:
    """Remove the days that are older than `keep`, where given, before the newest; how many.

    Counted from the newest, the scores of a past period stay as long as those of today. What
    writers that died have staged goes as well; the lock's file stays, for someone may hold it.
    """
    sweep(folder_url(root, product))
    there = days(root, product)
    if keep is None or there.empty:
        return 0
    return len(remove_before(root, product, there.max() - pd.Timedelta(keep)))


def _day_url(root: str, product: str, day: pd.Timestamp) -> str:
    return f"{folder_url(root, product)}/{day:%Y%m%d}{SUFFIX}"


# Sums as rows, and back --------------------------------------------------------------------------


def to_rows(sums: xr.Dataset) -> pd.DataFrame:
    """A row for each init_time, forecaster, lead_time and region; see the module."""
    if "init_time" not in sums.dims:
        sums = sums.expand_dims("init_time")
    whole = xr.DataArray(
        np.ones([sums.sizes[name] for name in ROW]), [(name, sums.indexes[name]) for name in ROW]
    )
    columns: dict[str, NDArray[np.float64]] = {}
    for name, variable in sums.data_vars.items():
        extra = [dim for dim in variable.dims if dim not in ROW]
        values = (variable * whole).transpose(*ROW, *extra).values.reshape(whole.size, -1)
        labels = itertools.product(*(sums.indexes[dim] for dim in extra))
        columns |= {_column(name, extra, one): values[:, k] for k, one in enumerate(labels)}
    index = pd.MultiIndex.from_product([sums.indexes[name] for name in ROW], names=ROW)
    rows = pd.DataFrame(columns, index=index).reset_index()
    for name, coordinate in sums.coords.items():
        if coordinate.dims == ("init_time",) and name != "init_time":
            rows[name] = rows["init_time"].map(coordinate.to_series())
    return rows


def from_rows(rows: pd.DataFrame) -> xr.Dataset:
    """Sums (init_time, forecaster, lead_time, region, …), 0 where there is no row or no value."""
    rows = rows.set_index(list(ROW))
    labels = [rows.index.unique(name).sort_values() for name in ROW]
    full = pd.MultiIndex.from_product(labels, names=ROW)
    found: dict[str, dict[Place, str]] = {}
    told = []
    for column in rows.columns:
        if rows[column].dtype.kind != "f":
            told.append(column)
            continue
        name, place = _parsed(column)
        found.setdefault(name, {})[place] = column
    values = rows.drop(columns=told).reindex(full).fillna(0.0)
    variables = {name: _array(values, places, labels) for name, places in found.items()}
    sums = xr.Dataset(variables).fillna(0.0)
    first = rows[told].groupby("init_time").first()
    return sums.assign_coords({name: ("init_time", first[name].to_numpy()) for name in told})


def _array(
    values: pd.DataFrame,
    places: dict[Place, str],
    labels: list[pd.Index],
) -> xr.DataArray:
    """The columns of one sum as an array over rows and what else it is by."""
    dims = [dim for dim, _ in next(iter(places))]
    extra = [sorted({dict(place)[dim] for place in places}) for dim in dims]
    pairs = ([(dim, one) for one in ones] for dim, ones in zip(dims, extra, strict=True))
    wanted = itertools.product(*pairs)
    columns = [places.get(place) for place in wanted]
    parts = [np.zeros(len(values)) if one is None else values[one].to_numpy() for one in columns]
    shape = [len(one) for one in labels] + [len(one) for one in extra]
    coords = dict(zip((*ROW, *dims), (*labels, *extra), strict=True))
    return xr.DataArray(np.stack(parts, axis=-1).reshape(shape), coords, (*ROW, *dims))


def _column(name: Hashable, dims: Sequence[Hashable], labels: tuple[float, ...]) -> str:
    inside = ",".join(f"{dim}={label:.10g}" for dim, label in zip(dims, labels, strict=True))
    return f"{name}[{inside}]" if inside else str(name)


def _parsed(column: str) -> tuple[str, Place]:
    """The sum's name, and the values of what else it is by."""
    name, _, inside = column.rstrip("]").partition("[")
    pairs = (one.split("=") for one in inside.split(",") if one)
    return name, tuple((dim, float(label)) for dim, label in pairs)
