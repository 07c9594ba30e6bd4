"""Training samples: crops of sequences without gaps, where it rains often enough to learn from.

A sequence is `past` then `future` frames, evenly spaced, every one of them committed in the
archive. A sample is a crop of one, named by its init_time and its upper-left pixel.
"""

import hashlib
import io
import json
import logging
from dataclasses import asdict, dataclass

import dask
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines import storage
from pipelines.archive import Archive
from pipelines.crops import sequence_table
from pipelines.errors import SquallError
from pipelines.manifest import read_manifest
from pipelines.reading import SampleReader
from pipelines.times import format_duration, time_text

STATISTICS = ("valid_fraction", "mean_mm_h", "max_mm_h", "acceptance")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceShape:
    """How many frames a sequence has before and after its init_time, and how large a crop is.

    `past` counts the frame at init_time itself. `crop` is in pixels, smaller where the grid is.
    """

    past: int
    future: int
    crop: int

    @property
    def frames(self) -> int:
        """All frames of a sequence."""
        return self.past + self.future


@dataclass(frozen=True)
class SampleIndex:
    """The samples of an archive: slot of the first frame, upper-left pixel, what is in the crop.

    Parameters
    ----------
    first, y, x : (sample,) int64
    valid_fraction : (sample,) float32 in (0, 1], the share of pixels that are observed
    mean_mm_h, max_mm_h : (sample,) float32, of the observed pixels
    acceptance : (sample,) float64 in (0, 1], how likely an epoch is to use the sample
    """

    shape: SequenceShape
    first: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    valid_fraction: NDArray[np.float32]
    mean_mm_h: NDArray[np.float32]
    max_mm_h: NDArray[np.float32]
    acceptance: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)

    def window(self, sample: int) -> tuple[slice, slice, slice]:
        """Slots, rows and columns of one sample."""
        first, y, x = int(self.first[sample]), int(self.y[sample]), int(self.x[sample])
        size = self.shape.crop
        return slice(first, first + self.shape.frames), slice(y, y + size), slice(x, x + size)

    def read(self, reader: SampleReader, sample: int) -> NDArray[np.float32]:
        """One sample: (time, y, x) float32 mm/h, NaN where not observed."""
        return reader.read(*self.window(sample))

    def slots(self) -> slice:
        """All slots that any sample uses, and those between."""
        return slice(int(self.first.min()), int(self.first.max()) + self.shape.frames)


def complete_init_times(
    times: pd.DatetimeIndex, timestep: pd.Timedelta, shape: SequenceShape
) -> pd.DatetimeIndex:
    """The init_times whose whole sequence is among `times`: windows never span a gap."""
    offsets = [timestep * k for k in range(1 - shape.past, shape.future + 1)]
    complete = np.ones(len(times), bool)
    for offset in offsets:
        complete &= (times + offset).isin(times)
    return times[complete]


def build_index(
    archive: Archive, init_times: pd.DatetimeIndex, shape: SequenceShape
) -> SampleIndex:
    """All crops (half overlapping) of the sequences at `init_times`, with their acceptance.

    See `pipelines.crops.sequence_table` for what is known of a sample. Samples are found a day at a
    time with Dask, and kept beside the archive in one Parquet file a day,
    ``{product}.samples/{past}-{future}-{crop}/{day}.parquet``, with the columns of that table. A
    file says which frames it was made from (their times, sources and decoders); where those are no
    longer the archive's, it is made anew.
    """
    size = min(shape.crop, *archive.grid.shape)
    shape = SequenceShape(shape.past, shape.future, size)
    usable = archive.usable_times()
    complete = complete_init_times(usable, archive.timestep, shape)
    complete = complete[complete.floor("D").isin(init_times.floor("D"))]
    if len(complete.intersection(init_times)) == 0:
        raise SquallError(
            "no sequence to learn from",
            found="no run of frames without a gap that is long enough",
            expected=f"{shape.frames} successive frames ({shape.past} past, {shape.future} future)",
            remedy="ingest a longer period, or shorten train.past and train.future",
        )
    first = archive.times.get_indexer(complete - archive.timestep * (shape.past - 1))
    folder = f"{_folder(archive.url)}/{shape.past}-{shape.future}-{shape.crop}"
    make = dask.delayed(_samples_of_day, pure=False)
    reader = SampleReader(archive.url)
    sources = _sources(archive, shape, complete)
    days = complete.floor("D")
    tables = dask.compute(
        *(
            make(
                f"{folder}/{day:%Y-%m-%d}.parquet",
                _identity(archive, shape, usable, complete[days == day], sources),
                reader,
                complete[days == day],
                first[days == day],
                shape,
                archive.grid.shape,
            )
            for day in days.unique()
        )
    )
    table = pd.concat(tables, ignore_index=True)
    table = table[table["init_time"].isin(init_times)]
    if table.empty:
        raise SquallError(
            "no sample to learn from",
            found=f"{len(init_times)} sequences without an observed pixel",
            expected="frames with observations",
            remedy="look at the frames with `squall show`",
        )
    slots = archive.times.get_indexer(pd.DatetimeIndex(table["init_time"]))
    columns = {name: table[name].to_numpy() for name in ("y", "x", *STATISTICS)}
    return SampleIndex(shape, first=slots - (shape.past - 1), **columns)


# Parquet -----------------------------------------------------------------------------------------


def _folder(url: str) -> str:
    return storage.normalise(url).removesuffix(".zarr") + ".samples"


def _samples_of_day(
    url: str,
    identity: str,
    reader: SampleReader,
    init_times: pd.DatetimeIndex,
    first: NDArray[np.int64],
    shape: SequenceShape,
    grid_shape: tuple[int, int],
) -> pd.DataFrame:
    """One day's table: the one at `url` where its identity is right, else made and kept there."""
    table = _stored_table(url)
    if table is not None and table.attrs.get("identity") == identity:
        return table
    table = sequence_table(reader, init_times, first, shape.frames, shape.crop, grid_shape)
    table.attrs.update(asdict(shape), identity=identity)
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    try:
        storage.write_bytes(url, content.getvalue())
    except OSError as error:
        log.warning("samples are not kept at %s: %s", storage.display(url), error)
    return table


def _stored_table(url: str) -> pd.DataFrame | None:
    """The table at `url`; None where there is none that can be read."""
    try:
        return pd.read_parquet(io.BytesIO(storage.read_bytes(url)))
    except (OSError, ValueError):
        return None


def _span(
    archive: Archive, shape: SequenceShape, init_times: pd.DatetimeIndex
) -> tuple[pd.Timestamp, pd.Timestamp]:
    """The first and the last frame of the sequences at `init_times`."""
    return (
        init_times[0] - archive.timestep * (shape.past - 1),
        init_times[-1] + archive.timestep * shape.future,
    )


def _sources(
    archive: Archive, shape: SequenceShape, init_times: pd.DatetimeIndex
) -> dict[str, str]:
    """What the manifest says every frame was made from and by, by valid time."""
    start, stop = _span(archive, shape, init_times)
    days = pd.date_range(start.floor("D"), stop, freq="D")
    return {
        row.valid_time: f"{row.sha256} {row.decoder}"
        for day in days
        for row in read_manifest(archive.url, [f"{day:%Y-%m-%d}"])
        if row.outcome in ("ok", "late")
    }


def _identity(
    archive: Archive,
    shape: SequenceShape,
    usable: pd.DatetimeIndex,
    init_times: pd.DatetimeIndex,
    sources: dict[str, str],
) -> str:
    """A digest of all that a day's table follows from."""
    frames_used = usable[usable.slice_indexer(*_span(archive, shape, init_times))]
    texts = [time_text(time) for time in frames_used]
    frames = [(text, sources.get(text, "")) for text in texts]
    facts = [asdict(shape), archive.grid.shape, str(archive.timestep), frames]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def describe(index: SampleIndex, archive: Archive) -> str:
    """One line for people: how many samples, of what, from when to when."""
    first, last = archive.times[index.first.min()], archive.times[index.first.max()]
    return (
        f"{len(index)} samples of {index.shape.past} past and {index.shape.future} future frames, "
        f"{format_duration(archive.timestep)} apart, {index.shape.crop}² pixels, "
        f"{time_text(first)} to {time_text(last)}"
    )
