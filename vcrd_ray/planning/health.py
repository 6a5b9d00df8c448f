"""What nodes say of themselves -> findings with their cures. Pure: asks no node, knows no Ray."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

Severity = Literal["ok", "warning", "error"]
GIB = 1024**3
_MAX_SKEW_S = 2.0
_TIGHT = 0.9
"""Share of a memory from which an estimate is called tight."""
_SPARE_DISK = 5 * GIB
"""Room for logs and spilled objects."""
_ALIKE = ("python", "torch", "ray", "transformers", "vllm", "deepspeed", "peft", "vcrd-ray", "source")
_ROLE_NEEDS: dict[str, tuple[str, ...]] = {
    "student": ("torch", "transformers", "peft", "deepspeed"),
    "teacher": ("torch", "transformers"),
    "judge": ("torch", "transformers"),
    "rollout": ("torch", "transformers", "peft"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    severity: Severity
    check: str
    what: str
    cure: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of a node."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a process on a node found there."""

    versions: Mapping[str, str | None]
    """Package (and python, and source for a digest of this project's files) -> version; None: not installed."""
    gpus: tuple[Gpu, ...]
    memory_bytes: int
    shm_free_bytes: int
    disk_free_bytes: int
    """On the run directory's file system, or on the nearest one above it."""
    auth_mode: str
    """RAY_AUTH_MODE, empty where it is not set."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A node's clock, asked between two looks at the clock here."""

    sent_s: float
    there_s: float
    received_s: float

    @property
    def skew_s(self) -> float:
        """The least by which the two differ; 0 where the round trip hides it."""
        return max(0.0, self.there_s - self.received_s, self.sent_s - self.there_s)


def check_versions(
    reports: Mapping[str, NodeReport], eligible: Mapping[str, Sequence[str]], *, vllm_roles: Iterable[str]
) -> list[Finding]:
    """Packages that differ between nodes, or are missing where a role may land.

    Args:
        eligible: role -> nodes that it may land on.
        vllm_roles: roles whose engine is vLLM.
    """
    found = []
    for package in _ALIKE:
        by_version: dict[str, list[str]] = defaultdict(list)
        for node, report in reports.items():
            version = report.versions.get(package)
            if version is not None:
                # Builds for CPUs and for GPUs are the same version.
                by_version[version.split("+")[0]].append(node)
        if len(by_version) > 1:
            said = "; ".join(f"{version} on {', '.join(nodes)}" for version, nodes in by_version.items())
            name = "this project's source" if package == "source" else package
            cure = "start all nodes from one image, and submit with --working-dir ."
            found.append(Finding(severity="error", check="versions", what=f"{name} differs: {said}", cure=cure))
    needs = {role: _ROLE_NEEDS[role] + (("vllm",) if role in set(vllm_roles) else ()) for role in eligible}
    for role, nodes in eligible.items():
        for package in needs[role]:
            without = [n for n in nodes if n in reports and reports[n].versions.get(package) is None]
            if without:
                what = f"{package} is not installed on {', '.join(without)}, where a {role} may land"
                found.append(Finding(severity="error", check="versions", what=what, cure=f"install {package} there"))
    if found:
        return found
    return [Finding(severity="ok", check="versions", what=f"the same on {len(reports)} nodes")]


def check_gpus(
    role: str, need_bytes: int, reports: Mapping[str, NodeReport], offered: Mapping[str, float]
) -> list[Finding]:
    """GPUs of the nodes that a role may land on against its estimate.

    Args:
        offered: GPUs that the scheduler counts on each of these nodes.
    """
    found = []
    for node, count in offered.items():
        if node not in reports:
            continue
        gpus = reports[node].gpus
        if len(gpus) < count:
            what = f"the scheduler counts {count:g} GPUs on {node}, nvidia-smi {len(gpus)}"
            cure = "check the driver there, or start the node with the right --num-gpus"
            found.append(Finding(severity="error", check="gpus", what=what, cure=cure))
        if gpus:
            smallest = min(gpus, key=lambda gpu: gpu.bytes)
            found += _compare(role, need_bytes, smallest.bytes, f"a GPU of {node} ({smallest.name})", check="gpus")
    return found or [Finding(severity="ok", check="gpus", what=f"{role}: fits on all nodes where it may land")]


def check_memory(node: str, need_bytes: int, report: NodeReport) -> list[Finding]:
    """Host memory of all actors and the object store of a node."""
    return _compare("actors and object store", need_bytes, report.memory_bytes, f"the memory of {node}", check="memory")


def _compare(who: str, need: int, has: int, where: str, *, check: str) -> list[Finding]:
    if need <= _TIGHT * has:
        return []
    what = f"{who}: about {need / GIB:.1f} GiB of {has / GIB:.1f} GiB, {where}"
    cure = "see `python -m jobs.plan` for what takes it; lower the micro-batch or use larger nodes"
    return [Finding(severity="error" if need > has else "warning", check=check, what=what, cure=cure)]


def check_stores(node: str, *, store_bytes: int, need_bytes: int, report: NodeReport) -> list[Finding]:
    """The object store of a node against what is in flight, and the shared memory that it lives in."""
    found = []
    if need_bytes > store_bytes:
        what = f"{node}: teacher's answers take up to {need_bytes / GIB:.2f} GiB, its object store has {store_bytes / GIB:.2f}"
        cure = (
            "raise cluster.object_store_gib (local) or --object-store-memory (ray start), or lower distill.prefetch;"
            " otherwise answers are spilled to disk"
        )
        found.append(Finding(severity="warning", check="object store", what=what, cure=cure))
    if store_bytes > report.shm_free_bytes:
        free = report.shm_free_bytes / GIB
        what = f"{node}: /dev/shm has {free:.2f} GiB free for an object store of {store_bytes / GIB:.2f}"
        cure = "give the container a larger --shm-size; otherwise the store lies on disk and is slow"
        found.append(Finding(severity="warning", check="object store", what=what, cure=cure))
    return found


def check_disk(node: str, *, need_bytes: int, report: NodeReport) -> list[Finding]:
    """Room for checkpoints and exports."""
    free = report.disk_free_bytes
    if free >= need_bytes + _SPARE_DISK:
        return []
    what = f"{node}: {free / GIB:.1f} GiB free for the run directory, checkpoints take about {need_bytes / GIB:.1f}"
    cure = "free some space, or set another --run.dir or a smaller distill.keep_checkpoints"
    return [Finding(severity="error" if free < need_bytes else "warning", check="disk", what=what, cure=cure)]


def check_storage(
    written: Mapping[str, str | None], read: Mapping[str, Mapping[str, bool] | str], *, directory: str
) -> list[Finding]:
    """Whether each node can write to the run directory and sees what all others wrote.

    Args:
        written: node -> why it could not write; None where it could.
        read: node -> for each writer whether its file was seen, or why none could be read.
    """
    found = []
    for node, why in written.items():
        if why is not None:
            what = f"{node} cannot write to {directory}: {why}"
            cure = "give the nodes' user the right to write there, or choose another --run.dir"
            found.append(Finding(severity="error", check="storage", what=what, cure=cure))
    writers = [node for node, why in written.items() if why is None]
    for node, seen in read.items():
        if isinstance(seen, str):
            missing, what = True, f"{node} cannot read {directory}: {seen}"
        else:
            unseen = [writer for writer in writers if not seen.get(writer)]
            missing, what = bool(unseen), f"{node} does not see in {directory} what {', '.join(unseen)} wrote"
        if missing:
            cure = "mount storage that all nodes share under this path, or set --run.dir to such a path"
            found.append(Finding(severity="error", check="storage", what=what, cure=cure))
    return found or [Finding(severity="ok", check="storage", what=f"{directory} is the same on {len(read)} nodes")]


def check_clocks(clocks: Mapping[str, Clock]) -> list[Finding]:
    """Clocks that differ by more than the round trip explains."""
    wrong = {node: clock.skew_s for node, clock in clocks.items() if clock.skew_s > _MAX_SKEW_S}
    cure = "switch on time synchronisation (chrony or systemd-timesyncd): logs and checkpoints are ordered by time"
    return [
        Finding(severity="warning", check="clocks", what=f"the clock of {node} is off by {skew:.1f} s", cure=cure)
        for node, skew in wrong.items()
    ] or [Finding(severity="ok", check="clocks", what=f"together within {_MAX_SKEW_S:g} s and the round trip")]


def check_exposure(
    *, dashboard: str | None, addresses: Mapping[str, str], auth_modes: Mapping[str, str]
) -> list[Finding]:
    """Who could reach the cluster: whoever does and has no token to show may run anything on it.

    Args:
        dashboard: HOST:PORT it listens on; None: there is none.
        addresses: node -> address that other nodes reach it at.
        auth_modes: node (and here) -> RAY_AUTH_MODE.
    """
    found = []
    modes = set(auth_modes.values())
    if len(modes) > 1:
        said = ", ".join(f"{mode or 'none'} on {node}" for node, mode in auth_modes.items())
        cure = "set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH alike everywhere"
        found.append(Finding(severity="error", check="exposure", what=f"RAY_AUTH_MODE differs: {said}", cure=cure))
    if "token" in modes and len(modes) == 1:
        return [Finding(severity="ok", check="exposure", what="all nodes ask for a token")]
    cure = "start with --dashboard-host=127.0.0.1 and reach it through a tunnel, or set RAY_AUTH_MODE=token"
    if dashboard is not None and not _is_loopback(dashboard.rsplit(":", 1)[0]):
        what = f"the dashboard answers on {dashboard} and asks for no token: whoever reaches it can run code here"
        found.append(Finding(severity="warning", check="exposure", what=what, cure=cure))
    public = [node for node, address in addresses.items() if _is_public(address)]
    if public:
        what = f"public addresses without a token: {', '.join(public)}"
        found.append(
            Finding(severity="error", check="exposure", what=what, cure="set RAY_AUTH_MODE=token, and close the ports")
        )
    return found or [Finding(severity="ok", check="exposure", what="nothing answers beyond private addresses")]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_public(address: str) -> bool:
    try:
        return ip_address(address).is_global
    except ValueError:
        return False
