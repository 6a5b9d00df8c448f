"""A judge that scores, as an actor. Knows no Ray: `actors/pools/launch.py` places it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from actors.pools.requests import Tag
from vcrd_ray.judges import Judge
from vcrd_ray.judges.batching import BatchingJudge
from vcrd_ray.judges.cache import open_score_cache
from vcrd_ray.judges.requests import judge_request
from vcrd_ray.judges.self_check import NUM_BRANCHES
from vcrd_ray.runs.logs import log_as
from vcrd_ray.types import IntArray, JudgeRequest, JudgeScores, PairBatch, Side


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
        """Largest logit difference of packed and separate judging on some branches."""
        log_as(update=batch.update)
        request = judge_request(batch, side, proposals, only_at=self._only_at)
        if self._merging is not None:
            return self._merging.self_check(
                request, num_branches=NUM_BRANCHES, seed=self._seed, during=self._running(tag)
            )
        with self._running(tag):
            return self._judge.self_check(request, num_branches=NUM_BRANCHES, seed=self._seed)
