"""Errors for outside input: what was found, what was expected, and what to do about it.

Every one is a `ValueError` whose text is one line, so that a command can print it as it is.
"""

import difflib
import pickle
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

CREDENTIAL = re.compile(r"(://[^/\s@:]*):[^/\s@]+@")
"""A password in a URL."""


def masked(text: str) -> str:
    """A text without the passwords of the URLs in it."""
    return CREDENTIAL.sub(r"\1:***@", text)


class SquallError(ValueError):
    """Outside input that Squall cannot use, told in one line.

    Parameters
    ----------
    problem : what cannot be done, in a few words
    found, expected : the offending value and what would have been right
    remedy : what the reader can do now
    """

    def __init__(self, problem: str, *, found: object, expected: object, remedy: str) -> None:
        self.problem = problem
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(problem, found, expected, remedy)

    def __str__(self) -> str:
        text = (
            f"{self.problem}: found {self.found}; expected {self.expected}. Remedy: {self.remedy}"
        )
        text = text if text.endswith((".", "?", "!")) else text + "."
        return masked(" ".join(text.split()))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.problem, self.found, self.expected, self.remedy)


def _rebuild(
    kind: type[SquallError], problem: str, found: object, expected: object, remedy: str
) -> SquallError:
    """Unpickle: errors travel between Dask, Ray and Prefect processes."""
    return kind(problem, found=found, expected=expected, remedy=remedy)


class NoFramesError(SquallError):
    """A location holds no frames of the source that was named."""


class FrameError(SquallError):
    """One file that cannot become a frame. It ends as a status and a manifest row."""


class GridMismatchError(FrameError):
    """A frame whose grid is not the archive's."""


class TooFewFramesError(SquallError):
    """Too few past frames for a nowcast."""


class NotFoundError(SquallError):
    """An archive, forecast or model that is not there."""


class ExistsError(SquallError):
    """A forecast that is already published: forecasts are immutable."""


class UnknownNameError(SquallError):
    """A source, model, loss or setting that does not exist; names the nearest one that does."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> "UnknownNameError":
        """Say which `kind` is unknown and which of the `known` names is nearest."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else "choose one of those"
        return cls(
            f"unknown {kind}",
            found=repr(name),
            expected="one of " + ", ".join(known),
            remedy=remedy,
        )


@dataclass(frozen=True)
class Failure:
    """What was raised in a process, and where, on its way to another process."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """It can be pickled; an error that does not survive that is a `RuntimeError` that says the
        same (one whose constructor wants other arguments than its text cannot be read again)."""
        trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # it may run any code
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, trace)

    def again(self, where: str) -> NoReturn:
        """Raise the error here, with a note of where it was raised first."""
        self.error.add_note(f"In {where}:\n{self.trace}")
        raise self.error
