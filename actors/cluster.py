"""The Ray cluster of a run: connect to the one there is, or start one here and stop just that. Knows no roles."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import ray

from actors.placement import local_cluster_resources
from actors.ranks.timeline import VARIABLE
from vcrd_ray.config import Config
from vcrd_ray.runs.logs import RUN_VARIABLE

_ROOT = Path(__file__).resolve().parent.parent
_GIB = 1024**3


class SharedCluster:
    """What the stages inside a block of `shared_cluster` share."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.start_s = 0.0
        """How long connecting took; zero until a stage needed it."""


_shared: ContextVar[SharedCluster | None] = ContextVar("shared", default=None)


@contextmanager
def shared_cluster(config: Config) -> Iterator[SharedCluster]:
    """One connection for all blocks of `ray_cluster` inside, made when the first of them begins, with room for what this
    config asks. Where none begins, as in a pipeline that is finished, no cluster is started.
    """
    shared = SharedCluster(config)
    token = _shared.set(shared)
    was_initialized = ray.is_initialized()
    try:
        yield shared
    finally:
        _shared.reset(token)
        if not was_initialized:
            ray.shutdown()


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """Connect for the time of the block. A Ray that is already initialised in this process is used and left alone."""
    if ray.is_initialized():
        yield
        return
    if (shared := _shared.get()) is not None:
        begun = time.perf_counter()
        _connect(shared.config)
        shared.start_s = time.perf_counter() - begun
        yield
        return
    _connect(config)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(config: Config) -> None:
    timeline = {VARIABLE: "1"} if config.cluster.timeline else {}
    os.environ.update(timeline)  # read by Ray's own processes, which are started here
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    runtime_env = {"env_vars": {**worker_environment(), RUN_VARIABLE: config.run.dir.name, **timeline}}
    if address:
        ray.init(address=address, runtime_env=runtime_env, logging_level=logging.WARNING, log_to_driver=False)
    else:
        runtime_env["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
        ray.init(
            address="local",
            include_dashboard=config.cluster.dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=int(config.cluster.object_store_gib * _GIB),
            runtime_env=runtime_env,
            logging_level=logging.WARNING,
            # Workers write to Ray's session logs; what a person must read is raised here or is in the run directory.
            log_to_driver=False,
            **local_cluster_resources(config),
        )


def worker_environment() -> dict[str, str]:
    """Environment variables that every process of a run needs before it imports anything."""
    # DeepSpeed compiles its shared-memory op with the ninja of this environment and finds it again beside it.
    binaries = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    return {
        "PATH": path if binaries in path.split(os.pathsep) else f"{binaries}{os.pathsep}{path}",
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
    }
