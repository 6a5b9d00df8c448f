"""Clusters of several raylets on this machine, on loopback, and distillations that connect to them.

Each cluster is made of processes of its own and ends with its block; a cluster of this module never touches another.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

from vcrd_ray.config import Config
from vcrd_ray.runs.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
_RUN = (
    "import sys, pathlib; from vcrd_ray.config import Config; from jobs import distill;"
    "distill.run(Config.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))"
)
_HEAD = "f" * 51 + "00000"
"""The name that the autoscaler's pretended nodes expect of the head."""
_OBJECT_STORE = 80 * 1024**2


def wait_until(true: Callable[[], bool], what: str, *, timeout_s: float = 120) -> float:
    """Seconds until something is so; fails when it does not come to be."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < timeout_s, f"in vain: {what}"
        time.sleep(0.05)
    return time.monotonic() - started


def kill_family(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, at once: Ray would drain each node for half a minute."""
    if process.poll() is not None:
        return
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(timeout=30)


class Watched:
    """A distillation in another process."""

    def __init__(self, config: Config, environment: Mapping[str, str], *, within: Sequence[str] = ()) -> None:
        """`within`: a command that runs another, such as `ip netns exec NAME`."""
        self.directory = config.run.dir / "distill"
        self._log = config.run.dir / "output.txt"
        self._num_updates = config.distill.num_updates or 0
        config.run.dir.mkdir(parents=True, exist_ok=True)
        file = config.run.dir / "config.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                [*within, sys.executable, "-c", _RUN, str(file)],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        """What it said."""
        return self._log.read_text(encoding="utf-8")

    def updates(self) -> int:
        """How many are done."""
        assert self._process.poll() in (None, 0), self.output[-4000:]
        file = self.directory / "metrics.jsonl"
        return read_jsonl(file)[-1]["update"] + 1 if file.exists() and file.stat().st_size else 0

    def go_on(self, count: int = 1) -> float:
        """Seconds until so many further updates are done."""
        until = self.updates() + count
        assert until < self._num_updates, "the run was over before it was disturbed"
        try:
            return wait_until(lambda: self.updates() >= until, f"update {until}", timeout_s=200)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output[-4000:]}") from None

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def end(self) -> int:
        """Its exit code, once it has one."""
        try:
            return self._process.wait(timeout=240)
        finally:
            self._process.kill()


class Cluster(ABC):
    """What all clusters here have."""

    address: str
    within: Sequence[str] = ()

    def __enter__(self) -> Self:
        # Short: sockets lie in it, and their paths have a limit.
        self.directory = Path(tempfile.mkdtemp(prefix="n-"))
        self.environment = os.environ | {
            # Ray then takes loopback for the address of every node, and listens nowhere else.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TMPDIR": str(self.directory),
            # Else `ray start` wants a token of everybody, this process too.
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
        }
        self.environment.pop("RAY_ADDRESS", None)
        self._runs: list[Watched] = []
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._runs:
            run._process.kill()
        try:
            self._end()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    @abstractmethod
    def _begin(self) -> None:
        """Start its processes and set `address`."""

    @abstractmethod
    def _end(self) -> None:
        """End them, however many there are."""

    @cached_property
    def _state(self) -> GlobalState:
        state = GlobalState()
        options = GcsClientOptions.create(self.address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
        state._initialize_global_state(options)
        return state

    def start(self, config: Config) -> Watched:
        """Begin a distillation on these nodes."""
        cluster = config.cluster.model_copy(update={"address": self.address, "pools": "separate"})
        run = Watched(config.model_copy(update={"cluster": cluster}), self.environment, within=self.within)
        self._runs.append(run)
        return run

    def placed(self, actor: str) -> list[str]:
        """Nodes on which actors of this class live."""
        rows = self._state.actor_table(None).values()
        return sorted(r["Address"]["NodeID"] for r in rows if r["ActorClassName"] == actor and r["State"] == "ALIVE")

    def alive(self) -> list[dict[str, Any]]:
        """Nodes that are there."""
        return [node for node in self._state.node_table() if node["Alive"]]


class Nodes(Cluster):
    """A cluster whose nodes come and go by hand. Ray's own test cluster, in a process that ends when its input does."""

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.actors.nodes"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.directory / "nodes.log").open("w"),
            text=True,
        )
        self.address = self._ask(do="address")

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        finally:
            self._process.kill()

    def _ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the cluster ended: {(self.directory / 'nodes.log').read_text()[-2000:]}"
        return json.loads(line)

    def add(self, **resources: float) -> str:
        """A node with these custom resources and two CPUs; its id."""
        return str(self._ask(do="add", resources=resources))

    @contextmanager
    def paused(self, actor: str) -> Iterator[None]:
        """Actors of this class stand still meanwhile."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        stopped = [process for process in family if f"ray::{actor}" in " ".join(process.cmdline())]
        assert stopped, f"no {actor}"
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                process.resume()

    def drain(self, node: str, *, deadline_s: int) -> None:
        """Tell Ray, as a cloud's notice does, that this node is going to be taken away. It is not: see `kill`."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            "--address",
            self.address,
            "--node-id",
            node,
        ]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the spot market has spoken"]
        command += ["--deadline-remaining-seconds", str(deadline_s)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)

    def kill(self, node: str) -> None:
        """SIGKILL everything of a node."""
        self._ask(do="kill", node=node)


class GrowingNodes(Cluster):
    """A cluster whose judge nodes are brought and taken away by Ray's autoscaler."""

    def __init__(self, *, max_judges: int) -> None:
        head = {"CPU": 4, "student": 1, "teacher": 1}
        nothing: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}}
        nothing |= {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
        nothing |= {f"{stage}_commands": [] for stage in ("initialization", "setup", "head_setup", "worker_setup")}
        nothing |= {f"{kind}_start_ray_commands": [] for kind in ("head", "worker")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._resources = head
        self._config = nothing | {
            "cluster_name": "growing",
            "max_workers": max_judges,
            "upscaling_speed": 4.0,
            "idle_timeout_minutes": 0.1,
            "provider": {
                # By its module: the wheel has no defaults for the type that Ray calls fake_multinode.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "head_node_id": _HEAD,
            },
            "available_node_types": {
                "ray.head.default": {"resources": head, "node_config": {}, "max_workers": 0},
                "judge": {
                    "resources": {"CPU": 1, "judge": 1, "object_store_memory": _OBJECT_STORE},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": max_judges,
                },
            },
            "head_node_type": "ray.head.default",
        }

    def _begin(self) -> None:
        config = self.directory / "autoscaling.json"
        config.write_text(json.dumps(self._config), encoding="utf-8")
        own = {name: amount for name, amount in self._resources.items() if name != "CPU"}
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={self._port}"),
            *(f"--num-cpus={self._resources['CPU']}", f"--resources={json.dumps(own)}"),
            *("--include-dashboard=false", f"--object-store-memory={_OBJECT_STORE}", f"--autoscaling-config={config}"),
        ]
        environment = self.environment | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
        }
        with (self.directory / "head.log").open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        wait_until(self._started, "the head")

    def _started(self) -> bool:
        said = (self.directory / "head.log").read_text()
        assert self._process.poll() is None, said
        return "Ray runtime started" in said

    def _end(self) -> None:
        # Nodes that the autoscaler started are its children too.
        kill_family(self._process)


def _obey() -> None:
    from ray import cluster_utils

    common = {"num_cpus": 2, "object_store_memory": _OBJECT_STORE, "node_ip_address": "127.0.0.1"}
    # Ray's own output goes elsewhere: only answers are on the pipe.
    answers, sys.stdout = sys.stdout, sys.stderr
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**common, "include_dashboard": False})
    nodes: dict[str, Any] = {}
    try:
        for line in sys.stdin:
            answer: Any = None
            match json.loads(line):
                case {"do": "address"}:
                    answer = cluster.address
                case {"do": "add", "resources": resources}:
                    node = cluster.add_node(resources=resources, **common)
                    nodes[node.node_id] = node
                    answer = node.node_id
                case {"do": "kill", "node": name}:
                    cluster.remove_node(nodes.pop(name), allow_graceful=False)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        # At once: a node that may end gracefully takes half a minute.
        for node in [*cluster.worker_nodes, cluster.head_node]:
            cluster.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    _obey()
