"""Cluster files of Ray's launcher: valid, closed, and alike on every cloud. Nothing is started and no cloud is asked."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config

import vcrd_ray
from actors.placement import Role
from tests.unit.deploy.files import LAUNCHER, everything, load

# (vCPUs, GPUs) as the clouds state them.
MACHINES = {
    "m7i.2xlarge": (8, 0),
    "m7i.4xlarge": (16, 0),
    "g6.2xlarge": (8, 1),
    "g6e.2xlarge": (8, 1),
    "g6e.12xlarge": (48, 4),
    "n2-standard-8": (8, 0),
    "n2-standard-16": (16, 0),
    "g2-standard-8": (8, 1),
    "a2-highgpu-1g": (12, 1),
    "a2-highgpu-4g": (48, 4),
    "Standard_D8s_v5": (8, 0),
    "Standard_D16s_v5": (16, 0),
    "Standard_NC24ads_A100_v4": (24, 1),
    "Standard_NC96ads_A100_v4": (96, 4),
}
SECRETS = {
    "a private key": r"-----BEGIN",
    "an AWS key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of a hub": r"\b(ghp|gho|glpat|hf|xox[bap])[_-][A-Za-z0-9_-]{16,}",
    "a long hexadecimal string": r"\b[0-9a-fA-F]{32,}\b",
    "a password": r"(?i)\bpassword\s*[:=]\s*\S",
    "the token itself": r"RAY_AUTH_TOKEN=(?!\$)\S",
}
each_file = pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)


def machine(node_config: dict[str, Any]) -> str:
    """The name of the machine, whatever the cloud calls the key."""
    arm = node_config.get("azure_arm_parameters", {})
    return str(node_config.get("InstanceType") or node_config.get("machineType") or arm["vmSize"])


def is_spot(node_config: dict[str, Any]) -> bool:
    """Whether the cloud may take the node away."""
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType", "")
    model = node_config.get("scheduling", {}).get("provisioningModel", "")
    priority = node_config.get("azure_arm_parameters", {}).get("priority", "")
    return "spot" in f"{market}{model}{priority}".lower()


@each_file
def test_the_launcher_accepts_the_file(path: Path) -> None:
    prepared = prepare_config(load(path))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_the_launcher_refuses_a_key_that_it_does_not_know() -> None:
    wrong = copy.deepcopy(load(LAUNCHER[0]))
    wrong["idle_timeout"] = 10
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(wrong))


@each_file
def test_nodes_offer_what_their_machine_has_and_a_unit_of_their_role_for_each_gpu(path: Path) -> None:
    types = load(path)["available_node_types"]
    assert set(types) == {"head", "student", "teacher", "judge", "cpu"}
    for name, node in types.items():
        cpus, gpus = MACHINES[machine(node["node_config"])]
        offered = node["resources"]
        assert offered["CPU"] == (0 if name == "head" else cpus)
        assert offered.get("GPU", 0) == gpus
        units = {role: amount for role, amount in offered.items() if role not in ("CPU", "GPU")}
        assert set(units.values()) <= {gpus} and (name in units) == bool(gpus)
    assert set(get_args(Role)) <= {resource for node in types.values() for resource in node["resources"]}


@each_file
def test_only_head_and_student_are_kept_from_spot_and_nothing_but_the_head_stays(path: Path) -> None:
    cluster = load(path)
    for name, node in cluster["available_node_types"].items():
        assert is_spot(node["node_config"]) == (name in ("teacher", "judge", "cpu"))
        assert node.get("min_workers", 0) == 0
    workers = [node for name, node in cluster["available_node_types"].items() if name != "head"]
    assert cluster["max_workers"] == sum(node["max_workers"] for node in workers)
    assert 0 < cluster["idle_timeout_minutes"] <= 30
    assert cluster["provider"].get("cache_stopped_nodes", False) is False


@each_file
def test_dashboard_and_job_server_answer_on_loopback_only(path: Path) -> None:
    start = load(path)["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start and "--dashboard-port=8265" in start
    for command in (start, load(path)["worker_start_ray_commands"][-1]):
        assert "--metrics-export-port=8080" in command


@each_file
def test_the_token_comes_from_a_mounted_folder_and_stands_in_no_file(path: Path) -> None:
    cluster = load(path)
    options = " ".join(cluster["docker"]["run_options"])
    assert "--env RAY_AUTH_MODE=token" in options
    (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert str(Path(token).parent) in cluster["file_mounts"]
    assert all(local.startswith("~/") for local in cluster["file_mounts"].values())


@each_file
def test_roles_run_in_the_image_that_fits_their_nodes(path: Path) -> None:
    cluster = load(path)
    docker = cluster["docker"]
    assert docker["head_image"].endswith(f":{vcrd_ray.__version__}-cpu")
    for name, node in cluster["available_node_types"].items():
        image = docker["head_image"] if name == "head" else node.get("docker", docker)["worker_image"]
        assert image.endswith(f":{vcrd_ray.__version__}-{'gpu' if 'GPU' in node['resources'] else 'cpu'}")


def test_azure_s_machines_are_described_in_the_words_of_the_launcher_s_template() -> None:
    template = Path(ray.__file__).parent / "autoscaler/_private/_azure/azure-vm-template.json"
    words = json.loads(template.read_text(encoding="utf-8"))["parameters"]
    for node in load(LAUNCHER[2])["available_node_types"].values():
        assert set(node["node_config"]["azure_arm_parameters"]) <= set(words)


def test_the_clouds_differ_in_machines_only() -> None:
    def shared(path: Path) -> dict[str, Any]:
        cluster = load(path)
        keys = ("upscaling_speed", "idle_timeout_minutes", "docker", "file_mounts", "worker_start_ray_commands")
        counts = {name: node.get("max_workers") for name, node in cluster["available_node_types"].items()}
        return {key: cluster[key] for key in (*keys, "head_start_ray_commands")} | {"counts": counts}

    aws, *others = map(shared, LAUNCHER)
    assert all(other == aws for other in others)


@pytest.mark.parametrize("path", everything(), ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_opens_an_address_to_all(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [what for what, pattern in SECRETS.items() if re.search(pattern, text)]
    assert not found
    assert "0.0.0.0" not in text


def test_secrets_are_recognised() -> None:
    samples = {
        "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
        "an AWS key": "AKIA" + "ABCDEFGHIJKLMNOP",
        "a token of a hub": "hf_" + "a" * 30,
        "a long hexadecimal string": "0f" * 32,
        "a password": "password: hunter2",
        "the token itself": "--env RAY_AUTH_TOKEN=abc",
    }
    assert {what for what, sample in samples.items() if re.search(SECRETS[what], sample)} == set(SECRETS)
