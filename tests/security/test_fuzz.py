"""A share of the broken files; `python -m tests.security.fuzz` reads a hundred thousand."""

import numpy as np
import pytest

from pipelines.decode import IngestSettings, read

from . import fuzz

pytest.importorskip("h5netcdf")
pytest.importorskip("rasterio")
pytest.importorskip("wradlib")

FILES = 40


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.seeds_once())
def test_broken_files_are_refused_or_are_frames(name):
    report = fuzz.run(name, 0, FILES)
    assert report.wrong == []
    assert report.outcomes.total() == FILES
    assert report.outcomes["refused"] > FILES / 4, "they are broken"


@pytest.mark.parametrize(
    ("values", "what"),
    [(np.inf, "WRONG no frame"), (-1.0, "WRONG negative rain"), (7.0, "WRONG rain despite")],
)
def test_what_must_not_be_is_seen(monkeypatch, values, what):
    source, content = fuzz.seeds_once()["mrms.gz"]
    good = read(content, IngestSettings(source=source))
    monkeypatch.setattr(fuzz, "read", lambda *_: good.copy(data=np.full(good.shape, values)))
    assert fuzz.outcome("mrms.gz", 0, good).startswith(what)


def test_an_exception_that_is_not_ours_is_seen(monkeypatch):
    source, content = fuzz.seeds_once()["knmi"]
    good = read(content, IngestSettings(source=source))
    monkeypatch.setattr(fuzz, "read", lambda *_: 1 / 0)
    assert fuzz.outcome("knmi", 0, good).startswith("WRONG ZeroDivisionError")
