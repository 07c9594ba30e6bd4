"""How long a frame takes to become a forecast, by stage, from what the forecasts say of themselves.

Latency runs from when the newest frame's file became visible (`frame_received_time`) to when its
forecast could be read (`publish_time`). A forecast says how long each stage of its making took
(`seconds_ingest` and so on); what is left is the wait: until the run started, and for whatever the
run did before its turn. Only first revisions count that were made for the newest frame of the time:
a later revision and a backfill come long after the frame, and not because anything was slow.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines import storage
from pipelines.errors import NotFoundError
from pipelines.forecasts import folder_url
from pipelines.records import Record, published_names, read_records
from pipelines.times import now, time_text

STAGES = ("ingest", "read", "predict", "products", "publish")
"""As in the attributes `seconds_…`, in order."""
ROWS = ("total", "wait", *STAGES)
QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}
PERIOD = pd.Timedelta("24h")


@dataclass(frozen=True)
class Latency:
    """Seconds from visible frame to readable forecast.

    `seconds` has a row for each forecast, by init_time, and a column for each of `ROWS`; `left_out`
    says how many revisions of the period did not count, and why.
    """

    seconds: pd.DataFrame
    left_out: dict[str, int]

    def quantiles(self) -> pd.DataFrame:
        """Of `ROWS` (rows), `QUANTILES` (columns), in seconds; linear between neighbours."""
        table = self.seconds.quantile(list(QUANTILES.values())).T
        return table.set_axis(list(QUANTILES), axis="columns")

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON; without quantiles where there is no forecast."""
        times = [time_text(time) for time in self.seconds.index]
        summary: dict[str, Any] = {
            "forecasts": len(times),
            "first": times[0] if times else None,
            "last": times[-1] if times else None,
            "left_out": self.left_out,
        }
        if times:
            summary["seconds"] = self.quantiles().round(3).to_dict(orient="index")
        return summary


def latency(
    root: str,
    product: str,
    since: pd.Timestamp | None = None,
    until: pd.Timestamp | None = None,
) -> Latency:
    """Of the forecasts of a period: by default, the 24 hours up to the newest, or up to `until`.

    Parameters
    ----------
    since, until : the first and the last init_time, UTC

    Raises `NotFoundError` where no forecast of the period can be counted.
    """
    names = published_names(root, product)
    last = until if until is not None else max(names, default=now())
    first = since if since is not None else last - PERIOD
    chosen = [name for time, all_ in names.items() if first <= time <= last for name in all_]
    result = of_records(read_records(root, product, chosen))
    if result.seconds.empty:
        why = ", ".join(f"{n} {reason}" for reason, n in result.left_out.items())
        raise NotFoundError(
            "no forecast whose latency is known",
            found=f"{why or 'no forecast'} from {time_text(first)} to {time_text(last)}, of "
            f"{len(names)} init_times at {storage.display(folder_url(root, product))}",
            expected="a forecast published for the newest frame of its time",
            remedy="run `squall nowcast` as frames arrive, or name a period: --since, --until",
        )
    return result


def of_records(records: Iterable[Record]) -> Latency:
    """Of the records that count."""
    rows: dict[pd.Timestamp, dict[str, float]] = {}
    left_out: Counter[str] = Counter()
    for record in records:
        if reason := _reason(record):
            left_out[reason] += 1
        else:
            rows[record.init_time] = _seconds(record)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(ROWS)).sort_index()
    return Latency(table, dict(left_out))


def _reason(record: Record) -> str | None:
    """Why a record does not count; None where it does."""
    if record.revision > 1:
        return "later revisions"
    if record.attributes.get("backfill"):
        return "backfilled"
    known = [f"seconds_{stage}" for stage in STAGES] + ["frame_received_time", "publish_time"]
    if any(record.attributes.get(name) in (None, "") for name in known):
        return "without times of their making"
    return None


def _seconds(record: Record) -> dict[str, float]:
    received, published = record.time("frame_received_time"), record.time("publish_time")
    assert received is not None
    assert published is not None
    total = (published - received).total_seconds()
    stages = {stage: float(record.attributes[f"seconds_{stage}"]) for stage in STAGES}
    return {"total": total, "wait": total - sum(stages.values()), **stages}
