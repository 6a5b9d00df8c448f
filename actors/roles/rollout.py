"""A writer of the student's responses, as an actor. Knows no Ray: `actors/pools/launch.py` places it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from vcrd_ray.config import Config
from vcrd_ray.engines import VersionedEngine
from vcrd_ray.engines.loading import load_versioned_engine
from vcrd_ray.runs.logs import log_as
from vcrd_ray.runs.storage import Store
from vcrd_ray.training.on_policy.policy_versions import bring_version
from vcrd_ray.training.on_policy.requests import PolicyVersion, ResponseRequest, Written
from vcrd_ray.training.on_policy.writer import ResponseWriter, WriterSettings
from vcrd_ray.types import PairBatch, Prompt, Rollout


def student_engine(config: Config) -> VersionedEngine:
    """What writes the student's responses in a run."""
    return load_versioned_engine(config.rollouts.refresh, config.student, lora=config.distill.lora)


class RolloutActor:
    """Holds one version of the student at a time and writes responses with it."""

    def __init__(self, config: Config, load: Callable[[Config], VersionedEngine]) -> None:
        torch.set_num_threads(config.rollouts.refresh.threads)
        log_as(stderr=True, role="rollout", replica=os.getpid())
        self._writer = ResponseWriter(load(config), WriterSettings.of(config))
        self._storage = config.run.storage

    def ready(self) -> int:
        """Process id, once the student before training is loaded."""
        return os.getpid()

    def write(self, request: ResponseRequest) -> list[PairBatch | Written]:
        """The request's batches, and at the end what it took: each becomes an object of its own."""
        self._bring(request.version)
        batches, written = self._writer.write(request)
        return [*batches, written]

    def answer(self, version: PolicyVersion, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Answers of a version to held-out problems."""
        self._bring(version)
        return self._writer.answer(version, prompts)

    def _bring(self, version: PolicyVersion) -> None:
        if self._storage is not None:
            versions = version.directory.parent
            bring_version(version.directory, Store(self._storage).within(versions.parent.name).within(versions.name))
