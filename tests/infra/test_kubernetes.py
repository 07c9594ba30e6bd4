"""The manifests: Kubernetes, KubeRay and the Dask operator accept them; their promises hold."""

import copy
import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "infra" / "kubernetes"
ROOT = FOLDER.parents[1]
OVERLAYS = ("base", "gpu", "training")
KUBERNETES = ("1.30", "1.37")
"""The oldest and the newest version that the manifests are for."""
KUBERAY = "KUBERAY_CRDS"
"""Names a folder with KubeRay's ray.io_rayclusters.yaml and ray.io_rayjobs.yaml: no package of an
index has them. The pods of its resources are held against Kubernetes' own schema in any case."""

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl, which renders")


def rendered(overlay: str) -> list[dict]:
    made = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / overlay)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(made.stdout))


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[dict]]:
    return {overlay: rendered(overlay) for overlay in OVERLAYS}


def of_kind(documents: list[dict], kind: str) -> list[dict]:
    return [document for document in documents if document["kind"] == kind]


def templates(documents: list[dict]) -> Iterator[tuple[str, dict]]:
    """Every pod template, and what it is for, wherever a resource holds one."""
    for document in documents:
        spec = document.get("spec", {})
        match document["kind"]:
            case "Deployment":
                yield document["metadata"]["name"], spec["template"]
            case "RayCluster":
                yield "ray head", spec["headGroupSpec"]["template"]
                for group in spec["workerGroupSpecs"]:
                    yield f"ray {group['groupName']}", group["template"]
            case "DaskCluster":
                for part in ("scheduler", "worker"):
                    labels = {"dask.org/cluster-name": document["metadata"]["name"]}
                    yield (
                        f"dask {part}",
                        {"metadata": {"labels": labels}, "spec": spec[part]["spec"]},
                    )


# Schemas -----------------------------------------------------------------------------------------


def strict(schema: dict) -> dict:
    """A CRD's schema as JSON Schema that admits no field which it does not name."""
    made: dict = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: strict(one) for name, one in value.items()}
        elif key in ("items", "additionalProperties", "not") and isinstance(value, dict):
            made[key] = strict(value)
        elif key in ("anyOf", "allOf", "oneOf"):
            made[key] = [strict(one) | {"additionalProperties": True} for one in value]
        else:
            made[key] = value
    loose = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    return made if loose or "properties" not in made else made | {"additionalProperties": False}


@functools.cache
def schema_of(definition: Path, kind: str, version: str = "v1") -> dict:
    crd = yaml.load(definition.read_text(), yaml.CSafeLoader)
    assert crd["spec"]["names"]["kind"] == kind
    (found,) = [one for one in crd["spec"]["versions"] if one["name"] == version]
    schema = strict(found["schema"]["openAPIV3Schema"])
    for common in ("apiVersion", "kind"):
        schema["properties"].setdefault(common, {"type": "string"})
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def dask_definitions() -> Path:
    package = importlib.util.find_spec("dask_kubernetes")
    if package is None:
        pytest.skip("dask-kubernetes, which has the definitions, is not installed")
    root = Path(package.origin).parent / "operator" / "deployment" / "helm"
    return root / "dask-kubernetes-operator" / "crds"


def kuberay_definitions() -> Path:
    if KUBERAY not in os.environ:
        pytest.skip(f"no package has KubeRay's definitions: say in {KUBERAY} where they are")
    return Path(os.environ[KUBERAY])


def check(document: dict) -> None:
    """By the schema of whoever defines its kind."""
    kind = document["kind"]
    match document["apiVersion"].split("/")[0]:
        case "ray.io":
            schema = schema_of(kuberay_definitions() / f"ray.io_{kind.lower()}s.yaml", kind)
        case "kubernetes.dask.org":
            schema = schema_of(dask_definitions() / f"{kind.lower()}.yaml", kind)
        case _:
            check_native(document)
            return
    jsonschema.validate(document, schema)


def check_native(document: dict) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for version in KUBERNETES:
        validate(document, version, strict=True)


def pick(manifests: dict[str, list[dict]], kind: str) -> list[dict]:
    found = [one for overlay in OVERLAYS for one in of_kind(manifests[overlay], kind)]
    assert found
    return found


NATIVE = ("Namespace", "ServiceAccount", "ConfigMap", "Deployment", "PodDisruptionBudget")
OPERATORS = ("RayCluster", "RayJob", "DaskCluster", "DaskAutoscaler")


@pytest.mark.parametrize("kind", [*NATIVE, "NetworkPolicy", *OPERATORS])
def test_every_resource_fits_its_schema(manifests, kind):
    for document in pick(manifests, kind):
        check(document)


def test_no_kind_is_left_unchecked(manifests):
    kinds = {document["kind"] for documents in manifests.values() for document in documents}
    assert kinds == {*NATIVE, "NetworkPolicy", *OPERATORS}


def test_every_pod_fits_kubernetes_own_schema_also_inside_operators_resources(manifests):
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}}
    found = [it for documents in manifests.values() for _, it in templates(documents)]
    assert len(found) == 2 * 5
    for template in found:
        check_native(pod | {"template": template})


@pytest.mark.parametrize(
    ("kind", "where", "key", "value"),
    [
        ("Deployment", ["spec"], "replica", 2),
        ("Deployment", ["spec"], "replicas", "two"),
        ("Deployment", ["spec", "template", "spec", "containers", 0], "imagePullPolice", "Always"),
        ("NetworkPolicy", ["spec"], "ingres", []),
        ("RayCluster", ["spec"], "workerGroupSpec", []),
        ("RayCluster", ["spec", "workerGroupSpecs", 0], "minReplicas", "none"),
        ("RayCluster", ["spec", "headGroupSpec", "template", "spec"], "containerz", []),
        ("RayJob", ["spec"], "entryPoint", "true"),
        ("DaskCluster", ["spec", "worker"], "replica", 2),
        ("DaskCluster", ["spec", "scheduler", "spec"], "containerz", []),
        ("DaskAutoscaler", ["spec"], "minimum", "one"),
    ],
)
def test_a_slip_is_found(manifests, kind, where, key, value):
    document = copy.deepcopy(pick(manifests, kind)[0])
    place = document
    for step in where:
        place = place[step]
    place[key] = value
    with pytest.raises(Exception, match=key) as error:
        check(document)
    assert "ValidationError" in type(error.value).__name__


# Promises ----------------------------------------------------------------------------------------


def test_every_container_is_bounded_and_may_do_nothing(manifests):
    for name, template in templates(manifests["gpu"]):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        token = spec["automountServiceAccountToken"]
        assert token == (name == "ray head"), "only who asks Kubernetes for nodes has a token"
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for kind in ("requests", "limits"):
                asked = container["resources"][kind]
                assert {"cpu", "memory", "ephemeral-storage"} <= asked.keys(), name
            assert {"name": "temporary", "mountPath": "/tmp"} in container["volumeMounts"]


def test_images_have_a_version_and_it_is_ours(manifests):
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    images = {
        container["image"]
        for _, template in templates(manifests["gpu"])
        for container in template["spec"]["containers"]
    }
    assert images == {f"squall:{version}", f"squall:{version}-cuda"}


def test_ray_is_the_version_of_the_image(manifests):
    (locked,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert {one["spec"]["rayVersion"] for one in pick(manifests, "RayCluster")} == {locked}


def test_gpus_are_asked_for_where_training_runs_and_nowhere_else(manifests):
    gpu = "nvidia.com/gpu"
    for overlay in ("base", "gpu"):
        for name, template in templates(manifests[overlay]):
            (container,) = template["spec"]["containers"]
            asked = container["resources"]
            wanted = overlay == "gpu" and name == "ray nodes"
            assert (gpu in asked["requests"]) == (gpu in asked["limits"]) == wanted
            assert container["image"].endswith("-cuda") == wanted
            assert ("nodeSelector" in template["spec"]) == wanted
            assert ("tolerations" in template["spec"]) == wanted
    (settings,) = of_kind(manifests["gpu"], "ConfigMap")
    assert settings["data"]["SQUALL_TRAIN__GPU"] == "true"


def test_credentials_come_by_reference_alone(manifests):
    secret = re.compile("KEY|SECRET|TOKEN|PASSWORD|AUTH_STRING")
    for documents in manifests.values():
        assert not of_kind(documents, "Secret")
        for settings in of_kind(documents, "ConfigMap"):
            assert not any(secret.search(name) for name in settings["data"])
        for _, template in templates(documents):
            for container in template["spec"]["containers"]:
                for one in container.get("env", []):
                    assert "value" not in one or not secret.search(one["name"])


def test_settings_are_settings(manifests, monkeypatch):
    from flows.settings import load_settings

    for overlay in ("base", "gpu"):
        (settings,) = of_kind(manifests[overlay], "ConfigMap")
        for name, value in settings["data"].items():
            monkeypatch.setenv(name, value)
        loaded = load_settings()
        assert loaded.root == "s3://squall/store"
        assert loaded.train.gpu is (overlay == "gpu")


def selects(selector: dict, labels: dict) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def labels_of(name: str, template: dict) -> dict:
    """With those that the operators add."""
    labels = dict(template["metadata"]["labels"])
    if name.startswith("ray"):
        labels["ray.io/cluster"] = "squall"
        labels["ray.io/node-type"] = "head" if name == "ray head" else "worker"
    return labels


def test_budgets_and_policies_select_pods_that_there_are(manifests):
    pods = [labels_of(*one) for one in templates(manifests["base"])]
    for budget in of_kind(manifests["base"], "PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"], labels) for labels in pods)
    policies = of_kind(manifests["base"], "NetworkPolicy")
    for policy in policies:
        assert any(selects(policy["spec"]["podSelector"], labels) for labels in pods)
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            for side in rule.get("from", []) + rule.get("to", []):
                if "podSelector" in side:
                    assert any(selects(side["podSelector"], labels) for labels in pods)


def admitted(policies: list[dict], one: dict, other: dict, port: int) -> bool:
    """Whether a pod may reach another in the namespace: both sides have to let it."""

    def side(labels: dict, peer: dict, way: str, key: str) -> bool:
        applying = [p for p in policies if selects(p["spec"]["podSelector"], labels)]
        return any(
            any(selects(to["podSelector"], peer) for to in rule[key] if "podSelector" in to)
            and ("ports" not in rule or port in [p["port"] for p in rule["ports"]])
            for policy in applying
            for rule in policy["spec"].get(way, [])
        )

    return side(one, other, "egress", "to") and side(other, one, "ingress", "from")


def test_who_has_to_talk_may_and_nobody_else(manifests):
    pods = {name: labels_of(name, it) for name, it in templates(manifests["base"])}
    policies = of_kind(manifests["base"], "NetworkPolicy")
    ports = {"ray head": (6379, 8265), "ray nodes": (30000,)}
    ports |= {"dask scheduler": (8786,), "dask worker": (30000,), "worker": (8080,)}
    may = {
        (a, b, port)
        for a in pods
        for b in pods
        if a != b
        for port in ports[b]
        if admitted(policies, pods[a], pods[b], port)
    }
    assert may == {
        ("worker", "ray head", 8265),
        ("worker", "dask scheduler", 8786),
        ("ray nodes", "ray head", 6379),
        ("ray nodes", "ray head", 8265),
        ("ray head", "ray nodes", 30000),
        ("dask worker", "dask scheduler", 8786),
        ("dask scheduler", "dask worker", 30000),
    }
