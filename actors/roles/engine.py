"""A model that generates or annotates, as an actor. Knows no Ray: `actors/pools/launch.py` places it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.models import TeacherSection
from vcrd_ray.engines import Use
from vcrd_ray.engines.loading import load_engine
from vcrd_ray.runs.logs import log_as
from vcrd_ray.types import IntArray, PairBatch, Prompt, Rollout, TeacherRequest, TeacherSignals


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
