"""What a verdict looks like, for people: a table, and the same as markdown."""

import math

from flows.report import console, titled
from models.verdict import Comparison, Verdict
from pipelines.times import format_duration

COLOURS = {"better": "green", "worse": "red", "not proven": "yellow", "cannot say": "yellow"}


def rows(verdict: Verdict) -> list[dict[str, str]]:
    """A row for each opponent, lead time and threshold."""
    interval = f"{verdict.settings.level:.0%} interval"
    return [
        {
            "opponent": one.opponent,
            "lead time": format_duration(one.lead_time),
            "mm/h": "" if one.threshold_mm_h is None else f"≥ {one.threshold_mm_h:g}",
            "ours": _number(one.ours),
            "theirs": _number(one.theirs),
            "difference": _number(one.difference, "+"),
            interval: f"{_number(one.lower, '+')} to {_number(one.upper, '+')}",
            "forecasts": str(one.forecasts),
            "blocks": str(one.blocks),
            "verdict": _outcome(one),
        }
        for one in verdict.comparisons
    ]


def told(verdict: Verdict) -> list[str]:
    """What the table is of, and what is missing, a line each."""
    settings = verdict.settings
    lines = [
        f"{verdict.forecasts} forecasts, {verdict.since} to {verdict.until}; "
        f"event blocks of {format_duration(settings.block)}"
        if verdict.forecasts
        else "no forecast that counts"
    ]
    if verdict.left_out:
        lines.append(f"{verdict.left_out} forecasts left out: of what they learnt from")
    lines += [f"lacking: {one}" for one in verdict.lacking]
    proven = sum(one.outcome == "better" for one in verdict.comparisons)
    lines.append(
        ("passed: " if verdict.passed else "not passed: ")
        + f"better in {proven} of {len(verdict.comparisons)} comparisons"
    )
    return lines


def title(verdict: Verdict) -> str:
    """Who against whom, by what."""
    against = verdict.champion or "no champion"
    return f"{verdict.challenger} against {against}, by {verdict.settings.score}"


def show_verdict(verdict: Verdict, *, as_markdown: bool = False) -> None:
    """Print the table, and what it is of."""
    if as_markdown:
        print(markdown(verdict))
        return
    content = rows(verdict)
    if content:
        table = titled(title(verdict), content[0])
        for row, one in zip(content, verdict.comparisons, strict=True):
            cells = {**row, "verdict": f"[{COLOURS[one.outcome]}]{row['verdict']}[/]"}
            table.add_row(*cells.values())
        console.print(table)
    else:
        console.print(title(verdict), soft_wrap=True)
    for line in told(verdict):
        console.print(line, soft_wrap=True)


def markdown(verdict: Verdict) -> str:
    """The same for an artifact, a merge request or a mail."""
    content = rows(verdict)
    lines = [f"**{title(verdict)}**", ""]
    if content:
        cells = [list(content[0]), ["---"] * len(content[0]), *(list(r.values()) for r in content)]
        lines += [f"| {' | '.join(row)} |" for row in cells] + [""]
    return "\n".join([*lines, *(f"- {line}" for line in told(verdict))]) + "\n"


def _outcome(one: Comparison) -> str:
    return f"{one.outcome}: {one.note}" if one.note else one.outcome


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.3f}"
