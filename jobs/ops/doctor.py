"""Whether a cluster is fit for a distillation, looked at before anything is paid for. Loads no model, changes nothing.

Every node is asked by a task that runs on it. Ends with 1 where something is wrong. What only the models themselves can show
(packed against separate judging) the job checks when it starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.cli import load_config
from jobs.ops.plan import asks, read_offers
from vcrd_ray.config import Config
from vcrd_ray.errors import ModelError
from vcrd_ray.planning import health, host, memory
from vcrd_ray.planning.estimate import read_shapes, role_items
from vcrd_ray.planning.health import Clock, Finding, NodeReport
from vcrd_ray.planning.placing import Offer, RoleAsk, place
from vcrd_ray.planning.rates import Shapes
from vcrd_ray.planning.tokenizers import check_tokenizers, model_here, role_paths

_COLORS = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the cluster, as the scheduler knows it."""

    id: str
    name: str
    """For people; two nodes of one host have different ones."""
    address: str
    resources: Mapping[str, float]


def run(config: Config, *, cluster: Path | None = None, timeout_s: float = 120.0) -> list[Finding]:
    """All findings about the cluster that `config` names, or about one that is started here as the jobs do.

    Args:
        cluster: a cluster file, whose nodes the autoscaler may still bring.
        timeout_s: longest wait for the nodes' answers to one question.
    """
    from actors.cluster import ray_cluster

    with ray_cluster(config):
        nodes, found = _nodes()
        examination = _Examination(config, nodes, timeout_s=timeout_s)
        found += examination.placement(cluster)
        found += examination.reports()
        found += examination.sizes()
        found += examination.storage()
        found += examination.models()
        found += examination.clocks()
    return found


def _nodes() -> tuple[list[Node], list[Finding]]:
    """Nodes that are alive, and those that were."""
    import ray

    alive: list[Node] = []
    dead: list[Node] = []
    for entry in ray.nodes():
        name = f"{entry['NodeManagerHostname']}/{entry['NodeID'][:6]}"
        node = Node(
            id=entry["NodeID"], name=name, address=entry["NodeManagerAddress"], resources=entry.get("Resources", {})
        )
        (alive if entry["Alive"] else dead).append(node)
    found = [Finding(severity="ok", check="nodes", what=f"{len(alive)} alive: {', '.join(n.name for n in alive)}")]
    cure = "look at its logs if nobody took it away; the autoscaler and spot markets do"
    found += [Finding(severity="warning", check="nodes", what=f"{node.name} is dead", cure=cure) for node in dead]
    return alive, found


class _Examination:
    """One question after the other to all nodes at once; a node that is silent once is named and not asked again."""

    def __init__(self, config: Config, nodes: Sequence[Node], *, timeout_s: float) -> None:
        self._config = config
        self._nodes = {node.id: node for node in nodes}
        self._timeout_s = timeout_s
        self._asks = asks(config)
        self._reports: dict[str, NodeReport] = {}
        self._directory = config.run.dir.resolve()

    def _ask(
        self, what: str, probe: Callable[..., Any], calls: Mapping[str, Sequence[Any]]
    ) -> tuple[dict[str, Any], list[Finding]]:
        """Node id -> its answer, of those that gave one."""
        from actors.probes import Silence, on_nodes

        answers, found = {}, []
        for node, answer in on_nodes(probe, calls, timeout_s=self._timeout_s).items():
            if not isinstance(answer, Silence):
                answers[node] = answer
                continue
            name = self._nodes.pop(node).name
            text = f"{name} was asked for {what}: {answer.why}"
            cure = "see `ray status` and the logs of that node; raise --timeout-s if it is only slow"
            found.append(Finding(severity="error", check="nodes", what=text, cure=cure))
        return answers, found

    def _everywhere(self, *arguments: Any) -> dict[str, Sequence[Any]]:
        return {node: arguments for node in self._nodes}

    def _eligible(self, ask: RoleAsk) -> list[Node]:
        """Nodes that an actor of a role may land on."""
        return [
            node
            for node in self._nodes.values()
            if all(node.resources.get(name, 0) >= amount for name, amount in ask.resources.items())
        ]

    def _offers(self) -> list[Offer]:
        return [Offer(name=n.id, count=1, always=1, resources=n.resources) for n in self._nodes.values()]

    def placement(self, cluster: Path | None) -> list[Finding]:
        """Whether there is room for all actors: now, or once the autoscaler has brought what it may."""
        import ray

        missing = place(self._asks, self._offers()).missing
        if not missing:
            return [_ok("placement", "all actors have room"), *self._in_use(ray.available_resources())]
        said = ", ".join(f"{count} x {role}" for role, count in missing.items())
        if cluster is not None and not place(self._asks, read_offers(cluster)).missing:
            return [_ok("placement", f"no room yet for {said}; {cluster.name} lets the autoscaler bring it")]
        what = f"no room for {said} on this cluster" + (f", nor on all nodes of {cluster.name}" if cluster else "")
        cure = "add nodes, ask for less, or start nodes with the custom resources that cluster.pools separate needs"
        if cluster is None:
            cure += "; if an autoscaler brings them, give its --cluster-file"
        return [Finding(severity="error", check="placement", what=what, cure=cure)]

    def _in_use(self, available: Mapping[str, float]) -> list[Finding]:
        asked: dict[str, float] = {}
        for ask in self._asks:
            for name, amount in ask.resources.items():
                asked[name] = asked.get(name, 0) + ask.count * amount
        free = {name: available.get(name, 0) for name in asked}
        short = [f"{free[name]:g} of {need:g} {name}" for name, need in asked.items() if free[name] < need]
        if not short:
            return []
        what = f"free now: {', '.join(short)}; the run would wait for other work"
        return [Finding(severity="warning", check="placement", what=what, cure="end other jobs, or wait for them")]

    def reports(self) -> list[Finding]:
        """Versions and exposure."""
        from actors import probes

        self._reports, found = self._ask("its versions", probes.report, self._everywhere(str(self._directory)))
        named = {self._nodes[node].name: report for node, report in self._reports.items()}
        vllm = [
            role
            for role, pool in (("teacher", self._config.teacher), ("rollout", self._config.rollouts.refresh))
            if pool.engine == "vllm"
        ]
        eligible = {ask.role: [node.name for node in self._eligible(ask)] for ask in self._asks}
        found += health.check_versions(named, eligible, vllm_roles=vllm)
        modes = {"here": os.environ.get("RAY_AUTH_MODE", "")} | {name: r.auth_mode for name, r in named.items()}
        addresses = {node.name: node.address for node in self._nodes.values()}
        return found + health.check_exposure(dashboard=_dashboard(), addresses=addresses, auth_modes=modes)

    def sizes(self) -> list[Finding]:
        """GPUs, host memory, object stores and disks against the estimates of the plan."""
        config = self._config
        try:
            shapes = read_shapes(config)
        except ModelError as error:
            return [Finding(severity="warning", check="sizes", what=f"not compared: {error}", cure="give plan.shapes")]
        found = [finding for ask in self._asks for finding in self._gpus(ask, shapes)]
        placed = place(self._asks, self._offers()).actors
        flight = host.in_flight(config, shapes.teacher)
        run = config.distill
        learnt = memory.trainable(shapes.student, lora=run.lora, train_head=run.train_head)
        width = memory.dtype_bytes(config.student.dtype)
        # A checkpoint has weights in the model's type and three numbers in float32 for each that is learnt.
        disk = (run.keep_checkpoints + 1) * learnt * (width + 12) + shapes.student.parameters * width
        small: list[Finding] = []
        for node_id, report in self._reports.items():
            node = self._nodes[node_id]
            counts = {role: actors.get(node_id, 0) for role, actors in placed.items()}
            store = int(node.resources.get("object_store_memory", 0))
            need = sum(count * host.host_bytes(config, role, shapes) for role, count in counts.items()) + store
            small += health.check_memory(node.name, need, report)
            in_store = counts.get("student", 0) * flight.per_rank
            if counts.get("teacher"):
                in_store = max(in_store, flight.all_ranks * counts["teacher"] // config.teacher.replicas)
            small += health.check_stores(node.name, store_bytes=store, need_bytes=in_store, report=report)
            small += health.check_disk(node.name, need_bytes=disk, report=report)
        return found + (small or [_ok("sizes", "memory, object stores and disks have room")])

    def _gpus(self, ask: RoleAsk, shapes: Shapes) -> list[Finding]:
        if not ask.resources.get("GPU"):
            return []
        nodes = self._eligible(ask)
        reports = {node.name: self._reports[node.id] for node in nodes if node.id in self._reports}
        sizes = [gpu.bytes for report in reports.values() for gpu in report.gpus]
        # What vLLM takes depends on the GPU that it finds.
        plan = self._config.plan
        hardware = getattr(plan, ask.role)
        if sizes:
            hardware = hardware.model_copy(update={"gpu_gib": min(sizes) / memory.GIB})
        config = self._config.model_copy(update={"plan": plan.model_copy(update={ask.role: hardware})})
        need = int(memory.total(role_items(config, ask.role, shapes)) / min(1.0, ask.resources["GPU"]))
        return health.check_gpus(ask.role, need, reports, {node.name: node.resources.get("GPU", 0) for node in nodes})

    def storage(self) -> list[Finding]:
        """Whether the run directory can be written and is the same everywhere; what is left there is removed."""
        import shutil

        from actors import probes

        folder, content = self._directory / f".doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
        try:
            calls = {node: (str(folder), node, content) for node in self._nodes}
            written, found = self._ask(f"a file in {self._directory}", probes.write_mark, calls)
            marks = {node: content for node, why in written.items() if why is None}
            read, silent = self._ask("the files of the others", probes.read_marks, self._everywhere(str(folder), marks))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        name = {node: self._nodes[node].name for node in read}
        named = {
            name[node]: {name.get(writer, writer): ok for writer, ok in seen.items()} for node, seen in read.items()
        }
        who = {name.get(node, node): why for node, why in written.items()}
        return found + silent + health.check_storage(who, named, directory=str(self._directory))

    def models(self) -> list[Finding]:
        """Whether each model can be loaded where its actors may land, and whether tokenizers fit each other."""
        found: list[Finding] = []
        for role, path in role_paths(self._config).items():
            ask = next((ask for ask in self._asks if ask.role == role), None)
            nodes = [] if ask is None else self._eligible(ask)
            answers, silent = self._ask(f"the {role}'s tokenizer", model_here, {n.id: (path,) for n in nodes})
            found += silent
            for node, (_, why) in answers.items():
                if why:
                    what = f"{role} {path} cannot be loaded on {self._nodes[node].name}: {why}"
                    cure = "put it on storage that all nodes see, or give the nodes the network and HF_TOKEN"
                    found.append(Finding(severity="error", check="models", what=what, cure=cure))
            fingerprints = {print_ for print_, _ in answers.values() if print_ is not None}
            if len(fingerprints) > 1:
                what = f"{role} {path}: nodes have different tokenizers"
                found.append(Finding(severity="error", check="models", what=what, cure="copy one folder to all nodes"))
        found += check_tokenizers(self._config)
        return found or [_ok("models", "configurations and tokenizers load and fit each other; weights are not read")]

    def clocks(self) -> list[Finding]:
        """Clocks of all nodes against the one here, one at a time so that the round trip is short."""
        from actors import probes

        clocks, found = {}, []
        for node in list(self._nodes):
            name, sent = self._nodes[node].name, time.time()
            answer, silent = self._ask("the time", probes.clock, {node: ()})
            received = time.time()
            found += silent
            if node in answer:
                clocks[name] = Clock(sent_s=sent, there_s=answer[node], received_s=received)
        return found + health.check_clocks(clocks)


def _ok(check: str, what: str) -> Finding:
    return Finding(severity="ok", check=check, what=what)


def _dashboard() -> str | None:
    """HOST:PORT of the cluster's dashboard; None without one."""
    import ray

    url: str | None = ray._private.worker.get_dashboard_url()
    return url or None


def show(found: Sequence[Finding], console: Console) -> None:
    """A line for each finding, and its cure below."""
    for finding in found:
        mark = f"[{_COLORS[finding.severity]}]{finding.severity:<8}[/]"
        console.print(f"{mark}{finding.check}: {finding.what}", soft_wrap=True)
        if finding.cure:
            console.print(f"        -> {finding.cure}", soft_wrap=True)


def main(argv: list[str]) -> int:
    """See the module."""
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--cluster-file", type=Path, metavar="FILE", help="nodes that the autoscaler may bring")
    extra.add_argument("--timeout-s", type=float, default=120.0, help="longest wait for the answers to one question")
    extra.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    config, flags = load_config("doctor", "Whether a cluster is fit for a distillation.", argv, extra=extra)
    found = run(config, cluster=flags.cluster_file, timeout_s=flags.timeout_s)
    if flags.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        show(found, Console(highlight=False))
    return int(any(finding.severity == "error" for finding in found))
