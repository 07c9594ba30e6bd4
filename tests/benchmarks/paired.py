"""Two ways of doing one thing, timed in turns, so that what else the machine does meets both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Seconds per frame of two ways, one pair a round.

    `ratio` is how many times the throughput of the second the first has: the median of the rounds'
    own ratios, with the smallest and the largest.
    """

    ours_s: list[float]
    theirs_s: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def row(self, name: str, goal: str) -> tuple[str, ...]:
        """What, ms per frame of either, the ratio with its range, the goal."""
        return (
            name,
            f"{statistics.median(self.ours_s) * 1e3:.0f}",
            f"{statistics.median(self.theirs_s) * 1e3:.0f}",
            f"{self.ratio:.2f} ({min(self.ratios):.2f}–{max(self.ratios):.2f})",
            goal,
        )


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way returns, round by round, after a first time of each that does not count."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(way())
    return times


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table with columns of even width."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
