"""What a model answered to a benchmark, and what became of it, as kept on disk. Knows no models and no rules of grading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.grading.thinking import ThinkingState
from vcrd_ray.types import Prompt


class Answer(BaseModel):
    """One response."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Of the question."""
    sample: int
    """From 0."""
    text: str
    """Special tokens included."""
    num_tokens: int
    finish_reason: str


class Graded(BaseModel):
    """One response with its verdicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    sample: int
    correct: dict[str, bool]
    """By each metric, such as the two graders of mathematics, or base and plus."""
    verdict: dict[str, str]
    """By each metric, in words: also what is neither right nor wrong, such as a timeout."""
    prediction: str | None
    """What was read out of the response."""
    thinking: ThinkingState = "none"
    """What stood before the answer and was taken off."""
    correct_whole: dict[str, bool] = {}
    """By each metric, were it read too; empty where there is none."""


class Benchmark(Protocol):
    """Questions, how they are put to a model, and how answers are graded."""

    name: str
    samples: int
    """Responses to each question."""
    sampling: SamplingSection
    metrics: tuple[str, ...]
    """The first one is the headline."""

    @property
    def num_questions(self) -> int:
        """Each counts once."""
        ...

    def prompts(self, tokenizer: Any) -> list[Prompt]:
        """One prompt a question, in order; `Prompt.id` is the question's."""
        ...

    def grade(self, answers: Sequence[Answer]) -> list[Graded]:
        """Verdicts in the order of the answers, whose texts have no thinking in them, or are read whole. Called with a batch at
        a time, from one thread."""
        ...

    def gold(self, id: str) -> str:
        """What a person compares an answer with."""
        ...

    def close(self) -> None:
        """End what grading has started."""
        ...
