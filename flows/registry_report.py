"""What `squall registry` prints, for people and for programs."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from flows.report import console, print_scores, titled
from flows.verify import score_table
from models.card import Card, headlines, read_scores, to_json
from models.registry import reigns
from pipelines.storage import display


def summary(root: str, card: Card) -> dict[str, Any]:
    """A version in a few fields; `headlines` are scores beside the best baseline's."""
    history = reigns(root, card.name)
    sums = read_scores(root, card.name, card.version)
    return {
        "model": card.id,
        "champion": bool(history) and history[-1].version == card.version,
        "reason": str(history[-1]) if history and history[-1].version == card.version else None,
        "created": card.created,
        "window": card.window,
        "parent": card.parent,
        "headlines": [] if sums is None else [asdict(one) for one in headlines(sums, card.name)],
    }


def details(root: str, card: Card) -> dict[str, Any]:
    """All that is known of a version: its summary, card, times as champion, and sums."""
    sums = read_scores(root, card.name, card.version)
    own = [one for one in reigns(root, card.name) if one.version == card.version]
    return (
        summary(root, card)
        | card.model_dump()
        | {
            "champion_since": [one.since for one in own],
            "reigns": [asdict(one) | {"reason": str(one)} for one in own],
            "scores": None if sums is None else to_json(sums),
        }
    )


def print_versions(entries: list[dict[str, Any]], where: str) -> None:
    """One row per version; `where` they were looked for."""
    if not entries:
        console.print(f"no model at {display(where)}", soft_wrap=True)
        return
    rows = titled("Models", ("version", "scores (best baseline)"))
    rows.columns[0].no_wrap = True
    for entry in entries:
        lines = [entry["model"]]
        lines += [f"champion, {entry['reason']}"] if entry["champion"] else []
        lines += [f"made {entry['created'][:16]}"]
        lines += [f"on {entry['window']}"] if entry["window"] else []
        scores = "\n".join(_headline(one) for one in entry["headlines"])
        rows.add_row("\n".join(lines), scores or "–", end_section=True)
    console.print(rows)


def _headline(headline: dict[str, Any]) -> str:
    own, best = headline["model"], headline["best_baseline"]
    text = f"{headline['score']}: " + ("–" if own is None else f"{own:.3f}")
    return text if best is None else f"{text} ({best} {headline['baseline']:.3f})"


def print_version(root: str, card: Card) -> None:
    """The card, and the score table of its validation."""
    facts = details(root, card)
    archive = " ".join(f"{key}={value}" for key, value in card.archive.items())
    lines = {
        "model": card.id,
        "champion": ("now; " if facts["champion"] else "")
        + (
            "; ".join(f"since {one['since']}, {one['reason']}" for one in facts["reigns"])
            or "never"
        ),
        "made": " ".join([card.created, "by", *(f"{of} {v}" for of, v in card.code.items())]),
        "trained on from": card.parent or "nothing",
        "weights": f"{card.parameters:,} parameters, sha256 {card.weights_sha256}",
        "input": f"{card.past_frames} past frames, {card.timestep_seconds:g} s apart, "
        f"normalisation {card.normalisation or '–'}",
        "archive": archive,
        "metrics": ", ".join(f"{key} {value:.4g}" for key, value in card.metrics.items()),
        "settings": " ".join(f"{key}={value}" for key, value in card.settings.items()),
    }
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in lines.items():
        rows.add_row(name, text or "–")
    console.print(rows)
    sums = read_scores(root, card.name, card.version)
    if sums is not None:
        print_scores(score_table(sums))
        console.print(f"{sums.attrs.get('events', '?')} events; all forecasters on the same pixels")
