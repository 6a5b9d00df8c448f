"""KubeRay manifests: valid by their CRDs, closed, and the same cluster in both."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

import vcrd_ray
from tests.unit.deploy.files import DEPLOY, KUBERAY, ROOT, cluster_spec, crd_folder, load
from vcrd_ray.planning.node_types import read_node_types

each_file = pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses keys it does not name, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not open_ended:
        closed["additionalProperties"] = False
    return closed


@cache
def crd(kind: str) -> jsonschema.Draft7Validator:
    file = crd_folder() / f"ray.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"no CRD of {kind} at {file}; set VCRD_DATA to the folder with kuberay/{file.name}")
    # A megabyte of YAML: the parser in C takes a second, the one in Python ten.
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in content["spec"]["versions"] if v["name"] == "v1")
    return jsonschema.Draft7Validator(strict(version["schema"]["openAPIV3Schema"]))


def pods(path: Path) -> Iterator[tuple[str, Any]]:
    """(name of the group, pod template) of every pod that a manifest makes."""
    spec = cluster_spec(path)
    yield "head", spec["headGroupSpec"]["template"]
    yield from ((group["groupName"], group["template"]) for group in spec["workerGroupSpecs"])
    if "submitterPodTemplate" in load(path)["spec"]:
        yield "submitter", load(path)["spec"]["submitterPodTemplate"]


def shared() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kuberay" / "shared.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


@each_file
def test_manifests_are_valid_by_their_crd(path: Path) -> None:
    manifest = load(path)
    crd(manifest["kind"]).validate(manifest)


def test_a_misspelt_key_is_not_valid_by_the_crd() -> None:
    manifest = load(KUBERAY[0])
    manifest["spec"]["autoscalerOptions"]["idleTimeout"] = 60
    with pytest.raises(jsonschema.ValidationError, match="idleTimeout"):
        crd("RayCluster").validate(manifest)


def test_a_job_has_the_same_cluster_as_one_that_stays() -> None:
    assert cluster_spec(KUBERAY[0]) == cluster_spec(KUBERAY[1])


@each_file
def test_ray_reads_the_same_resources_from_the_manifest_as_the_check(path: Path) -> None:
    spec, types = cluster_spec(path), {t.name: t for t in read_node_types(path)}
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        offered = _get_ray_resources_from_group_spec(group, is_head=name == "head")
        offered.pop("memory")
        assert offered == types[name].resources
    assert types["student"].resources["student"] == types["student"].resources["GPU"] == 4


@each_file
def test_the_autoscaler_is_v2_and_owns_the_number_of_pods(path: Path) -> None:
    spec = cluster_spec(path)
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    for group in spec["workerGroupSpecs"]:
        assert "replicas" not in group and group["minReplicas"] == 0 < group["maxReplicas"]
    assert {template["spec"]["restartPolicy"] for _, template in pods(path)} == {"Never"}


@each_file
def test_a_token_is_asked_for_by_the_version_of_ray_that_the_images_hold(path: Path) -> None:
    spec = cluster_spec(path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = (d for d in project["dependencies"] if d.startswith("ray["))
    assert spec["rayVersion"] == pin.split("==")[1]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"


@each_file
def test_no_pod_may_be_root_or_become_it(path: Path) -> None:
    for _, template in pods(path):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert cluster_spec(path)["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


@each_file
def test_gpus_are_asked_for_where_they_are_and_only_there(path: Path) -> None:
    for name, template in pods(path):
        (container,) = template["spec"]["containers"]
        resources = container["resources"]
        has_gpu = name in ("student", "teacher", "judge")
        assert ("nvidia.com/gpu" in resources["limits"]) == has_gpu
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert container["image"].endswith(f":{vcrd_ray.__version__}-{'gpu' if has_gpu else 'cpu'}")
        tolerated = {toleration["key"] for toleration in template["spec"].get("tolerations", [])}
        assert ("nvidia.com/gpu" in tolerated) == has_gpu
        capacity = template["spec"].get("nodeSelector", {}).get("karpenter.sh/capacity-type")
        assert capacity == {"head": "on-demand", "student": "on-demand", "submitter": None}.get(name, "spot")


@each_file
def test_probes_ask_what_answers_without_a_token(path: Path) -> None:
    for name, template in pods(path):
        (container,) = template["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            if name != "submitter":
                assert container[probe]["httpGet"]["path"] in PUBLIC_EXACT_PATHS


@each_file
def test_every_pod_is_under_the_network_policy_and_members_share_a_volume_that_many_can_write(path: Path) -> None:
    documents = shared()
    claim, policy = documents["PersistentVolumeClaim"], documents["NetworkPolicy"]["spec"]
    label = policy["podSelector"]["matchLabels"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"] and policy["policyTypes"] == ["Ingress"]
    for name, template in pods(path):
        assert label.items() <= template["metadata"]["labels"].items()
        if name != "submitter":
            volumes = [v["persistentVolumeClaim"] for v in template["spec"]["volumes"] if "persistentVolumeClaim" in v]
            assert volumes == [{"claimName": claim["metadata"]["name"]}]
    monitor = load(DEPLOY / "kuberay" / "podmonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == label


def test_a_job_ends_its_cluster_and_has_an_end_itself() -> None:
    spec = load(KUBERAY[1])["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["submissionMode"] == "K8sJobMode"
    assert spec["backoffLimit"] > 0 and spec["activeDeadlineSeconds"] > 0


def test_custom_resources_are_quoted_as_kuberay_wants_them() -> None:
    quoted = [group["rayStartParams"].get("resources") for group in cluster_spec(KUBERAY[0])["workerGroupSpecs"]]
    assert all(re.fullmatch(r'"\{(\\"\w+\\": \d+(, )?)+\}"', text) for text in quoted if text)
    assert quoted.count(None) == 1
