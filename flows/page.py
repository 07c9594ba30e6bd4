"""HTML of a page that has everything inside: text, tables, figures."""

import html
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import xarray as xr

from pipelines.times import format_duration

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  background: #fff; color: #111 }
table { border-collapse: collapse; margin: .5rem 0; font-size: .85rem }
td, th { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, td.text { text-align: left }
svg, img { max-width: 100%; height: auto; background: #fff }
.warn { border-left: 4px solid #d9822b; padding-left: .8rem }
details { margin: .5rem 0 }
@media print { details { display: none } }
"""


def figure(svg: str, alt: str) -> str:
    """An SVG with a text for those who cannot see it."""
    return f'<figure role="img" aria-label="{text(alt)}">{svg}</figure>'


def numbers(panels: Iterable[tuple[str, xr.DataArray]], shut: bool = True) -> Iterator[str]:
    """Scores (forecaster, lead_time) as tables."""
    for title, score in panels:
        leads = [format_duration(pd.Timedelta(one)) for one in score["lead_time"].values]
        lines = [
            (
                str(name),
                *(
                    "–" if np.isnan(one) else f"{one:.3f}"
                    for one in score.sel(forecaster=name).transpose("lead_time").values
                ),
            )
            for name in score["forecaster"].values
        ]
        rows = table(("", *leads), lines)
        yield (
            f"<details><summary>{text(title)}: numbers</summary>{rows}</details>" if shut else rows
        )


def table(head: Iterable[str], lines: Iterable[Iterable[str]], raw: bool = False) -> str:
    """A head and lines; `raw`: cells are HTML already."""
    told = "".join(f"<th>{text(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{one if raw else text(one)}</td>" for one in line) + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{told}</tr></thead><tbody>{body}</tbody></table>"


def text(value: str) -> str:
    """Text as HTML."""
    return html.escape(value)
