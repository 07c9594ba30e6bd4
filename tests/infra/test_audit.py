"""What Squall runs on: licences that somebody has looked at, and no weakness that is known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.licences import PAGE, admitted, licences, page

ROOT = Path(__file__).parents[2]


def test_no_licence_is_one_that_nobody_has_looked_at():
    found = licences()
    assert {"torch", "ray", "xarray", "prefect", "gribberish", "s3fs"} <= found.keys()
    assert "pytest" not in found, "no part of what runs"
    assert [f"{name}: {text}" for name, text in found.items() if not admitted(text)] == []


@pytest.mark.parametrize("text", ["?", "GPL-3.0", "AGPL-3.0-only", "LGPL-2.1", "Proprietary", ""])
def test_others_are_refused(text):
    assert not admitted(text)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page is of Python 3.11's packages")
def test_the_page_is_what_is_installed():
    assert PAGE.read_text() == page(), "python -m infra.licences"


def audited(*requirements: str, folder: Path) -> dict:
    """What pip-audit says of requirements; skipped where it reaches nobody who would know."""
    path = folder / "requirements.txt"
    path.write_text("\n".join(requirements))
    program = [Path(sys.executable).parent / "uv", "tool", "run", "pip-audit", "--no-deps"]
    how = ["--disable-pip", "--progress-spinner=off", "--format=json", "--requirement", path]
    made = subprocess.run([*program, *how], capture_output=True, text=True, check=False)
    try:
        told = json.loads(made.stdout)
    except json.JSONDecodeError:
        pytest.skip(f"pip-audit cannot ask: {made.stderr.strip()[-200:]}")
    if all("skip_reason" in one for one in told["dependencies"]):
        pytest.skip("pip-audit knows none of the packages: no advisories are to be had here")
    return told


@pytest.mark.slow
def test_no_package_has_a_known_weakness(tmp_path):
    """Against one that has: a service that knows nothing would find nothing."""
    known = audited("jinja2==2.4.1", folder=tmp_path)
    assert known["dependencies"][0]["vulns"], "the service knows of weaknesses"
    locked = (ROOT / "constraints.txt").read_text().splitlines()
    found = audited(*locked, folder=tmp_path)["dependencies"]
    assert [one["name"] for one in found if one.get("vulns")] == []
