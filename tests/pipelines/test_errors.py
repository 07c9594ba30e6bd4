"""Errors: one line that says what was found, what was expected and what to do."""

import pickle

import pytest

from pipelines import errors
from pipelines.errors import Failure, FrameError, SquallError, UnknownNameError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SquallError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_one_line_with_found_expected_and_remedy(kind):
    error = kind("it broke", found="a\nlong\n  thing", expected="b", remedy="do c.")
    assert str(error) == "it broke: found a long thing; expected b. Remedy: do c."
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_travels_between_processes(kind):
    error = kind("it broke", found=3, expected="b", remedy="do c")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.problem, again.found, again.expected) == ("it broke", 3, "b")


def test_an_unknown_name_error_travels_too():
    error = UnknownNameError.of("source", "odin", ["odim", "knmi"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_unknown_name_is_answered_with_the_nearest():
    error = UnknownNameError.of("source", "odin", ["odim", "knmi"])
    assert str(error) == (
        "unknown source: found 'odin'; expected one of knmi, odim. Remedy: did you mean 'odim'?"
    )


def test_a_name_like_no_other_gets_no_guess():
    assert "choose one of those" in str(UnknownNameError.of("source", "xyz", ["odim", "knmi"]))


def test_a_frame_that_does_not_fit_is_a_frame_error():
    assert issubclass(errors.GridMismatchError, FrameError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://key:***@bucket/a"),
        ("at http://:secret@h:80 and http://u:p@h", "at http://:***@h:80 and http://u:***@h"),
        ("sftp://me@host/a", "sftp://me@host/a"),
        ("http://host:80/a@b", "http://host:80/a@b"),
    ],
)
def test_passwords_of_urls_are_not_shown(text, shown):
    error = SquallError("nothing there", found=text, expected="x", remedy="y")
    assert shown in str(error)
    assert "secret" not in str(error)


class OddError(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def sent(error):
    """What another process raises for it."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        pickle.loads(pickle.dumps(Failure.of(error))).again("a process far away")
    return raised.value


def test_every_exception_can_be_sent_and_says_where_it_was():
    error = FrameError("a", found=1, expected=2, remedy="b")
    again = sent(error)
    assert (type(again), str(again)) == (FrameError, str(error))
    assert again.__notes__[0].startswith("In a process far away:\npipelines.errors.FrameError: a")
    assert str(sent(OddError(1, 2))) in ("1 and 2", "OddError: 1 and 2")  # tblib, if used, saves it


def test_an_exception_that_cannot_be_pickled_is_sent_as_what_it_says():
    unpicklable = ValueError(lambda: None)
    with pytest.raises(Exception, match="pickle"):
        pickle.dumps(unpicklable)
    again = sent(unpicklable)
    assert type(again) is RuntimeError
    assert str(again).startswith("ValueError: <function")
