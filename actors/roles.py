"""The teacher and the judge as actors: plain classes that answer requests and keep nothing between them.

They are wrapped by `ray.remote` where they are placed (pools.py), so that they can be tested without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from vcrd_ray.config import Config, SamplingSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.models import device_for
from vcrd_ray.signals import judge_request
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Prompt, Rollout, Side, TeacherRequest, TeacherSignals

_SELF_CHECK_LEAVES = 8


class EngineActor:
    """Holds one model and generates or annotates."""

    def __init__(self, path: str, *, dtype: str, gpus: float, threads: int, seed: int) -> None:
        torch.set_num_threads(threads)
        self._engine = HFEngine(path, dtype=dtype, device=device_for(gpus))
        self._seed = seed

    def ready(self) -> int:
        """Process id, once the model is loaded."""
        return os.getpid()

    def annotate(self, batch: PairBatch, request: TeacherRequest) -> tuple[TeacherSignals, IntArray]:
        """The signals, and the proposals once more as an object of their own that the judge can be sent alone."""
        signals = self._engine.annotate(batch, request)
        return signals, signals.student_prefix_proposals

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection) -> list[Rollout]:
        """One response to each prompt."""
        return self._engine.generate(prompts, sampling, seed=self._seed)


class JudgeActor:
    """Holds one judge."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.judge.threads)
        self._judge = load_judge(config.judge, policy=config.student.path)
        self._seed = config.run.seed

    def ready(self) -> int:
        """Process id, once the judge is loaded."""
        return os.getpid()

    def score(self, batch: PairBatch, side: Side, candidates: IntArray) -> JudgeScores:
        """Scores of one side's rollouts and of the other model's proposals. [rows of that side]"""
        return self._judge.score(judge_request(batch, side, candidates))

    def self_check(self, batch: PairBatch, side: Side, candidates: IntArray) -> float:
        """Largest logit difference of packed and separate judging on some leaves."""
        return self._judge.self_check(
            judge_request(batch, side, candidates), num_leaves=_SELF_CHECK_LEAVES, seed=self._seed
        )
