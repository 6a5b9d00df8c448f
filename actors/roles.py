"""Teacher, judge and writer of responses as actors: plain classes that answer requests that hold all they need.

They are wrapped by `ray.remote` where they are placed (pools.py), so that they can be tested without Ray.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from actors.pools.requests import Tag
from vcrd_ray.config import Config
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.models import TeacherSection
from vcrd_ray.engines import Use, VersionedEngine
from vcrd_ray.engines.loading import load_engine, load_versioned_engine
from vcrd_ray.judges import Judge
from vcrd_ray.judges.batching import BatchingJudge
from vcrd_ray.judges.cache import open_score_cache
from vcrd_ray.judges.requests import judge_request
from vcrd_ray.runs.logs import log_as
from vcrd_ray.runs.storage import Store
from vcrd_ray.training.on_policy.policy_versions import bring_version
from vcrd_ray.training.on_policy.requests import PolicyVersion, ResponseRequest, Written
from vcrd_ray.training.on_policy.writer import ResponseWriter, WriterSettings
from vcrd_ray.types import (
    IntArray,
    JudgeRequest,
    JudgeScores,
    PairBatch,
    Prompt,
    Rollout,
    Side,
    TeacherRequest,
    TeacherSignals,
)

_SELF_CHECK_BRANCHES = 8


class EngineActor:
    """Holds one model and generates or annotates."""

    def __init__(self, section: TeacherSection, path: str, *, use: Use, seed: int) -> None:
        torch.set_num_threads(section.threads)
        log_as(stderr=True, role="teacher" if use == "annotate" else "engine", replica=os.getpid())
        self._engine = load_engine(section, path, use=use)
        self._seed = seed

    def ready(self) -> int:
        """Process id, once the model is loaded."""
        return os.getpid()

    def annotate(self, batch: PairBatch, request: TeacherRequest) -> tuple[TeacherSignals, IntArray]:
        """The signals, and the proposals once more as an object of their own that the judge can be sent alone."""
        log_as(update=batch.update)
        signals = self._engine.annotate(batch, request)
        return signals, signals.student_prefix_proposals

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection) -> list[Rollout]:
        """One response to each prompt."""
        return self._engine.generate(prompts, sampling, seed=self._seed)


class JudgeActor:
    """Holds one judge."""

    def __init__(
        self,
        load: Callable[[], Judge],
        *,
        threads: int,
        merge_requests: int,
        seed: int,
        running: Callable[[Tag], AbstractContextManager[None]],
        only_at: Collection[int] | None = None,
        cache_dir: Path | None = None,
        cache_bytes: int = 0,
    ) -> None:
        """Load the judge.

        Args:
            load: makes it.
            threads: CPU threads.
            merge_requests: requests that may share a pass.
            seed: of the self-check's choice of branches.
            running: held around the work on a request, so that it is known what a dead process was working on.
            only_at: see `judge_request`.
            cache_dir: where scores of student prefixes are kept, in a file of this host; None: nowhere.
            cache_bytes: bound on that file.
        """
        torch.set_num_threads(threads)
        log_as(stderr=True, role="judge", replica=os.getpid())
        self._judge = load()
        self._merging = BatchingJudge(self._judge, max_requests=merge_requests) if merge_requests > 1 else None
        self._seed = seed
        self._running = running
        self._only_at = only_at
        self._cache = None
        if cache_dir is not None:
            # A file of each host: SQLite's locks do not reach over a network.
            file = cache_dir / f"{socket.gethostname()}.sqlite"
            self._cache = open_score_cache(file, max_bytes=cache_bytes, profile=self._judge.profile)

    def ready(self) -> int:
        """Process id, once the judge is loaded."""
        return os.getpid()

    def fingerprint(self) -> str:
        """Identity of the judge."""
        return self._judge.profile.fingerprint

    def score(self, batch: PairBatch, side: Side, proposals: IntArray, tag: Tag) -> JudgeScores:
        """Scores of one side's rollouts and of the other model's proposals. [tokens of that side]"""

        def ask(request: JudgeRequest) -> JudgeScores:
            if self._merging is not None:
                return self._merging.score(request, alone=tag.alone, during=self._running(tag))
            with self._running(tag):
                return self._judge.score(request)

        log_as(update=batch.update)
        request = judge_request(batch, side, proposals, only_at=self._only_at)
        # Scores on teacher prefixes depend on what the student proposes now.
        return ask(request) if self._cache is None or side == "teacher" else self._cache.score(request, ask)

    def self_check(self, batch: PairBatch, side: Side, proposals: IntArray, tag: Tag) -> float:
        """Largest logit difference of packed and separate judging on some leaves."""
        request = judge_request(batch, side, proposals, only_at=self._only_at)
        if self._merging is not None:
            return self._merging.self_check(
                request, num_branches=_SELF_CHECK_BRANCHES, seed=self._seed, during=self._running(tag)
            )
        with self._running(tag):
            return self._judge.self_check(request, num_branches=_SELF_CHECK_BRANCHES, seed=self._seed)


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

    def write(self, order: ResponseRequest) -> list[PairBatch | Written]:
        """The order's batches, and at the end what it took: each becomes an object of its own."""
        self._bring(order.version)
        batches, written = self._writer.write(order)
        return [*batches, written]

    def answer(self, version: PolicyVersion, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Answers of a version to held-out problems."""
        self._bring(version)
        return self._writer.answer(version, prompts)

    def _bring(self, version: PolicyVersion) -> None:
        if self._storage is not None:
            versions = version.directory.parent
            bring_version(version.directory, Store(self._storage).within(versions.parent.name).within(versions.name))
