"""A mathematics set as a benchmark: questions, prompts, graders. Knows no models and no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcrd_ray.config.data import PromptSection, SamplingSection
from vcrd_ray.config.evaluate import MathSection
from vcrd_ray.data.chat import as_data, encode, prompt_ids
from vcrd_ray.evaluation.answers import Answer, Benchmark, Graded
from vcrd_ray.evaluation.math.grader import QwenGrader, VerifyGrader
from vcrd_ray.evaluation.math.prompts import prompt_text, turns
from vcrd_ray.evaluation.math.sets import MathItem, MathSet, own_set, published_set, read_items
from vcrd_ray.grading.pool import GradingPool, PoolLimits
from vcrd_ray.grading.protocol import Grader
from vcrd_ray.types import Prompt


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a set's items are."""

    math_set: MathSet
    path: Path


class MathBenchmark(Benchmark):
    """`Benchmark` on one set."""

    def __init__(self, section: MathSection, source: _Source, prompt: PromptSection) -> None:
        """
        Raises:
            DataError: the file is missing or malformed.
            ConfigError: a grader's library is not installed.
        """
        self.name = source.math_set.name
        self.samples = section.samples
        self.sampling: SamplingSection = section.sampling
        self.metrics: tuple[str, ...] = section.graders
        self._section = section
        self._prompt = prompt
        self._set = source.math_set
        self.items = read_items(source.path, source.math_set)[: section.limit]
        self._by_id = {str(item.idx): item for item in self.items}
        graders: dict[str, Grader[MathItem]] = {}
        for name in section.graders:
            graders[name] = QwenGrader(mode=section.mode) if name == "qwen" else VerifyGrader()
        limits = PoolLimits(workers=section.workers, timeout_s=section.timeout_s, memory_mib=section.memory_mib)
        self._pools = {name: GradingPool(grader, limits) for name, grader in graders.items()}

    @property
    def num_questions(self) -> int:
        return len(self.items)

    def prompts(self, tokenizer: Any) -> list[Prompt]:
        return [
            Prompt(id=str(item.idx), question=item.question, gold=item.gold, ids=self._prompt_ids(item, tokenizer))
            for item in self.items
        ]

    def _prompt_ids(self, item: MathItem, tokenizer: Any) -> np.ndarray:
        style = self._section.prompt
        if style == "own":
            return prompt_ids(item.question, tokenizer, self._prompt)
        if style == "chat":
            asked = turns(item.question, style="qwen25-math-cot", shots=self._set.shots)
            return prompt_ids(asked.user, tokenizer, PromptSection(system=asked.system))
        text = prompt_text(as_data(item.question, tokenizer), style=style, shots=self._set.shots)
        return encode(text, tokenizer, add_special_tokens=True)

    def grade(self, answers: Sequence[Answer]) -> list[Graded]:
        pairs = [(self._by_id[answer.id], answer.text) for answer in answers]
        grades = {name: pool.grade(pairs) for name, pool in self._pools.items()}
        return [
            Graded(
                id=answer.id,
                sample=answer.sample,
                correct={name: found[i].correct for name, found in grades.items()},
                verdict={name: str(found[i].verdict) for name, found in grades.items()},
                prediction=grades[self.metrics[0]][i].prediction,
            )
            for i, answer in enumerate(answers)
        ]

    def gold(self, id: str) -> str:
        return self._by_id[id].raw_gold

    def close(self) -> None:
        for pool in self._pools.values():
            pool.__exit__(None, None, None)


def math_benchmarks(section: MathSection, prompt: PromptSection) -> list[MathBenchmark]:
    """All sets of a section, each read whole; `prompt` is how the model was trained to be asked.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: a grader's library is not installed.
    """
    published = [_Source(math_set=published_set(s), path=section.data / s / "test.jsonl") for s in section.sets]
    own = [
        _Source(math_set=own_set(o.name, question_key=o.question_key, answer_key=o.answer_key), path=o.path)
        for o in section.own
    ]
    return [MathBenchmark(section, source, prompt) for source in [*published, *own]]
