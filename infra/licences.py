"""Writes infra/licences.md: under which licences is what Squall runs on.

    python -m infra.licences

All that the package and its optional parts need to run, as installed here; not what only its
development needs. A test holds the page against the installation, and refuses a licence that nobody
has looked at.
"""

from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).with_name("licences.md")
PARTS = ("s3", "fast", "formats", "tracking")
LOOKED_UP = {
    "eccodeslib": "Apache-2.0 (ECMWF's; its wheel does not say)",
    "eckitlib": "Apache-2.0 (ECMWF's; its wheel does not say)",
    "gribberish": "MIT (its repository; its wheel does not say)",
    "huey": "MIT (its repository; its package does not say)",
    "skops": "MIT (its repository; its package says: OSI approved)",
    "text-unidecode": "Artistic-1.0 (or GPL: the first is chosen)",
}
"""Where a package's own words are missing or leave a choice."""
FAMILIES = (
    *("MIT", "BSD", "3-Clause BSD", "Apache", "ISC", "PSF", "Python Software Foundation"),
    *("MPL-2.0", "Mozilla Public License 2.0", "CC0", "Artistic-1.0"),
)
"""What may be handed on beside Squall without opening Squall's own source."""


def installed() -> Iterator[tuple[str, Distribution]]:
    """Each distribution that Squall's run time needs and that is installed, by its name."""
    seen = set()
    todo: list[tuple[str, tuple[str, ...]]] = [("squall", PARTS)]
    while todo:
        wanted = todo.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        name, extras = wanted
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform
        if name != "squall":
            yield name, found
        for line in found.requires or []:
            need = Requirement(line)
            asked = [{"extra": extra} for extra in (*extras, "")]
            if need.marker is None or any(need.marker.evaluate(one) for one in asked):
                todo.append((canonicalize_name(need.name), tuple(sorted(need.extras))))


def licence(name: str, of: Distribution) -> str:
    """What a distribution says of its licence, in its own words; "?" where it says nothing."""
    if name in LOOKED_UP:
        return LOOKED_UP[name]
    said = {key: of.metadata.get_all(key) or [] for key in ("License-Expression", "License")}
    classifiers = of.metadata.get_all("Classifier") or []
    named = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License")]
    texts = [*said["License-Expression"], ", ".join(named), *said["License"], "?"]
    return next(text for text in texts if text).split("\n")[0]


def admitted(text: str) -> bool:
    """Whether a licence is of a family that has been looked at."""
    return text.startswith(FAMILIES)


def licences() -> dict[str, str]:
    """Each distribution's licence, by its name."""
    return {name: licence(name, of) for name, of in sorted(installed(), key=lambda it: it[0])}


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Licences of what Squall runs on",
        "",
        "In the words of each package. Made by `python -m infra.licences`; `make audit` asks for",
        "known weaknesses.",
        "",
        "| package | licence |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in licences().items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
