"""Progress bars for long work."""

import sys

from tqdm import tqdm

SLOW_S = 5.0


def bar(total: int | None, description: str, unit: str, *, shown: bool) -> tqdm:
    """A progress bar on stderr; where that is no terminal, a line every few seconds.

    `total` is None where it is not known.
    """
    return tqdm(
        total=total,
        desc=f"{description:<10}",
        unit=unit,
        disable=not shown,
        mininterval=0.1 if sys.stderr.isatty() else SLOW_S,
        dynamic_ncols=True,
    )
