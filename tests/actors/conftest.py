"""One local Ray for the tests of the actors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.cluster import ray_cluster
from vcrd_ray.config import Config

SMALL = {
    "batch_size": 8,
    "micro_batch_size": 2,
    "num_updates": 6,
    "optim": {"lr": 1e-3},
    "lora": {"r": 4, "alpha": 16, "dropout": 0.1},
    "checkpoint_every": 2,
}


def make_config(run_dir: Path, directory: Path, *, distill: dict[str, Any] | None = None, **sections: Any) -> Config:
    """A short distillation of the tiny world."""
    made = {"run": {"dir": run_dir}, "distill": SMALL | {"rollouts": directory} | (distill or {}), **sections}
    return Config.model_validate(made)


_shared = ExitStack()
"""The local Ray of all modules that ask for one: starting it takes as long as many a test."""


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray with room for the largest group of any test."""
    if ray.is_initialized():
        return
    room = {
        "student": {"ranks": 2},
        "teacher": {"replicas": 2},
        "judge": {"type": "value_head", "replicas": 2},
        "rollouts": {"refresh": {"every": 1, "replicas": 2}},
    }
    _shared.enter_context(ray_cluster(Config.model_validate(room)))


@pytest.fixture(scope="module")
def no_ray() -> None:
    """For who starts clusters of their own."""
    _shared.close()


@pytest.fixture(scope="package", autouse=True)
def _end_of_ray() -> Iterator[None]:
    yield
    _shared.close()
