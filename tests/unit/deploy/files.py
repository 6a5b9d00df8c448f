"""The files of a cluster, and how tests read them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
LAUNCHER = [ROOT / "cluster.yaml", DEPLOY / "gcp.yaml", DEPLOY / "azure.yaml"]
KUBERAY = [DEPLOY / "kuberay" / "raycluster.yaml", DEPLOY / "kuberay" / "rayjob.yaml"]
DOCKERFILES = {"gpu": DEPLOY / "Dockerfile", "cpu": DEPLOY / "Dockerfile.cpu"}
DASHBOARD = DEPLOY / "grafana" / "vcrd_ray.json"
CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))


def everything() -> list[Path]:
    """Every file that says how a cluster is made."""
    made = [path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [ROOT / "cluster.yaml", ROOT / ".dockerignore", *sorted(made)]


def load(path: Path) -> Any:
    """The one document of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def cluster_spec(path: Path) -> Any:
    """The RayCluster's spec in a RayCluster or a RayJob."""
    spec = load(path)["spec"]
    return spec.get("rayClusterSpec", spec)


def crd_folder() -> Path:
    """Where KubeRay's CRDs are, if anywhere."""
    return Path(os.environ.get("VCRD_DATA", ROOT.parent / "shared" / "data")) / "kuberay"
