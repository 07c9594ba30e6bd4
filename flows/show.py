"""Pictures on request: an archive frame, or a forecast against what was observed."""

import pandas as pd

from flows.nowcast import picture_of
from flows.settings import Settings
from pipelines import storage
from pipelines.archive import Archive, archive_url
from pipelines.errors import NotFoundError
from pipelines.forecasts import latest_init_time
from pipelines.pictures import frame_picture
from pipelines.times import init_time_label, time_text, utc


def picture(
    settings: Settings, *, time: str | None, init_time: str | None, output: str | None
) -> str:
    """Write the picture and return where it is, as a path or URL to show."""
    root, product = settings.root, settings.product
    if time is not None:
        valid_time = utc(time)
        name, png = f"frame-{init_time_label(valid_time)}", _frame(root, product, valid_time)
    else:
        start = utc(init_time) if init_time else latest_init_time(root, product)
        if start is None:
            raise NotFoundError(
                "no forecast to show",
                found=f"none of {product!r} in {storage.display(root)}",
                expected="a published forecast",
                remedy="run `squall nowcast`, or show a frame: --time 2010-08-26T05:00",
            )
        name, png = init_time_label(start), picture_of(root, product, start)
    url = (
        storage.normalise(output)
        if output
        else storage.join(root, "pictures", product, f"{name}.png")
    )
    storage.write_bytes(url, png)
    return storage.display(url)


def _frame(root: str, product: str, valid_time: pd.Timestamp) -> bytes:
    archive = Archive(archive_url(root, product))
    if valid_time not in archive.usable_times(valid_time, valid_time):
        status = archive.status(valid_time, valid_time).get(valid_time)
        raise NotFoundError(
            f"no frame at {time_text(valid_time)}",
            found="a time off the axis" if status is None else f"status {status}",
            expected="a time whose status is ok or late",
            remedy="choose another time; the manifest beside the archive says what came",
        )
    frame = archive.read_frames(pd.DatetimeIndex([valid_time]))[0]
    return frame_picture(frame, f"{product}: {valid_time:%Y-%m-%d %H:%M} UTC")
