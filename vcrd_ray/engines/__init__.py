"""What a model that is asked for text or signals can do. Knows no implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.types import FloatArray, IntArray, PairBatch, Prompt, Rollout, TeacherRequest, TeacherSignals

Use = Literal["generate", "annotate"]
"""What a process holds an engine for."""
TEACHER_CHUNK_TOKENS = 256
"""Tokens whose logits exist at a time when a teacher annotates."""


@runtime_checkable
class Engine(Protocol):
    """Generates responses and annotates given ones; token ids in, token ids out. Stateless between calls."""

    fingerprint: str
    """Identifies the weights."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection, *, seed: int) -> list[Rollout]:
        """One response to each prompt, in order. A response depends on (seed, prompt id), not on its batch, to rounding."""
        ...

    def annotate(self, batch: PairBatch, request: TeacherRequest) -> TeacherSignals:
        """The distribution at every response position, as asked, and a proposal at every student position."""
        ...


@runtime_checkable
class VersionedEngine(Protocol):
    """Generates with the weights of a model that is trained elsewhere."""

    fingerprint: str
    """Identifies the weights that it was started with."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection, *, seed: int) -> list[Rollout]:
        """One response to each prompt, as an `Engine` gives it."""
        ...

    def load_version(self, directory: Path, kind: Literal["adapter", "weights"]) -> None:
        """Take on the LoRA matrices, or the whole model, that lie in a directory; nothing of earlier ones is left."""
        ...

    def logprobs(self, prompt: IntArray, response: IntArray) -> FloatArray:
        """Log-probability of each response token over all rows of the model's head, untempered. [T]"""
        ...
