"""The three packages import from the repository root and nowhere else."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipelines", "models", "flows")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_from_the_repository_root_and_nowhere_else(package):
    module = importlib.import_module(package)
    assert [Path(place).resolve() for place in module.__path__] == [ROOT / package]


@pytest.mark.parametrize("path", sorted(p for q in PACKAGES for p in (ROOT / q).rglob("*.py")))
def test_modules_name_each_other_from_the_root(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
    assert not re.search(r"sys\.path(\.|\[| \+?= )", path.read_text()), "where to import from"


@pytest.mark.parametrize("path", sorted(p for q in PACKAGES for p in (ROOT / q).rglob("*.py")))
def test_no_module_is_too_long_to_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400
