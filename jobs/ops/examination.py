"""A running cluster asked by tasks on its nodes -> findings. Decides nothing: `vcrd_ray/planning` says what is wrong."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors import probes
from jobs.ops.plan import asks
from vcrd_ray.config import Config
from vcrd_ray.planning import fit, health
from vcrd_ray.planning.fit import Node
from vcrd_ray.planning.health import Clock, Finding, NodeReport
from vcrd_ray.planning.tokenizers import check_loading, check_tokenizers, is_plain, model_here, role_paths


def nodes_of_cluster() -> tuple[list[Node], list[Finding]]:
    """Nodes that are alive, and what is said of those and of dead ones."""
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


class Examination:
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
        answers, found = {}, []
        for node, answer in probes.on_nodes(probe, calls, timeout_s=self._timeout_s).items():
            if not isinstance(answer, probes.Silence):
                answers[node] = answer
                continue
            name = self._nodes.pop(node).name
            text = f"{name} was asked for {what}: {answer.why}"
            cure = "see `ray status` and the logs of that node; raise --timeout-s if it is only slow"
            found.append(Finding(severity="error", check="nodes", what=text, cure=cure))
        return answers, found

    def _everywhere(self, *arguments: Any) -> dict[str, Sequence[Any]]:
        return {node: arguments for node in self._nodes}

    def placement(self, cluster: Path | None) -> list[Finding]:
        """Whether there is room for all actors: now, or once the autoscaler has brought what it may."""
        available = ray.available_resources()
        return fit.check_room(self._asks, list(self._nodes.values()), available=available, cluster=cluster)

    def reports(self) -> list[Finding]:
        """Versions and exposure."""
        self._reports, found = self._ask("its versions", probes.report, self._everywhere(str(self._directory)))
        named = {self._nodes[node].name: report for node, report in self._reports.items()}
        vllm = [
            role
            for role, pool in (("teacher", self._config.teacher), ("rollout", self._config.rollouts.refresh))
            if pool.engine == "vllm"
        ]
        nodes = list(self._nodes.values())
        eligible = {ask.role: [node.name for node in fit.eligible(ask, nodes)] for ask in self._asks}
        found += health.check_versions(named, eligible, vllm_roles=vllm)
        modes = {"here": os.environ.get("RAY_AUTH_MODE", "")} | {name: r.auth_mode for name, r in named.items()}
        addresses = {node.name: node.address for node in nodes}
        return found + health.check_exposure(dashboard=_dashboard(), addresses=addresses, auth_modes=modes)

    def sizes(self) -> list[Finding]:
        """GPUs, host memory, object stores and disks against the estimates of the plan."""
        return fit.check_sizes(self._config, self._asks, list(self._nodes.values()), self._reports)

    def storage(self) -> list[Finding]:
        """Whether the run directory can be written and is the same everywhere; what is left there is removed."""
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
            nodes = [] if ask is None else fit.eligible(ask, list(self._nodes.values()))
            by_transformers = role == "student" or self._config.teacher.engine == "hf"
            arguments = (path, is_plain(self._config, role), by_transformers)
            answers, silent = self._ask(f"the {role}'s tokenizer", model_here, {n.id: arguments for n in nodes})
            named = {self._nodes[node].name: answer for node, answer in answers.items()}
            found += silent + check_loading(role, path, named)
        found += check_tokenizers(self._config)
        if found:
            return found
        what = "configurations, headers of weights and tokenizers load and fit each other; weights are not read"
        return [Finding(severity="ok", check="models", what=what)]

    def clocks(self) -> list[Finding]:
        """Clocks of all nodes against the one here, one at a time so that the round trip is short."""
        clocks, found = {}, []
        for node in list(self._nodes):
            name, sent = self._nodes[node].name, time.time()
            answer, silent = self._ask("the time", probes.clock, {node: ()})
            received = time.time()
            found += silent
            if node in answer:
                clocks[name] = Clock(sent_s=sent, there_s=answer[node], received_s=received)
        return found + health.check_clocks(clocks)


def _dashboard() -> str | None:
    """HOST:PORT of the cluster's dashboard; None without one."""
    url: str | None = ray._private.worker.get_dashboard_url()
    return url or None
