"""HumanEval and MBPP, each with its plus, as benchmarks. Knows no models and no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.evaluate import CodeSection, CodeSetName
from vcrd_ray.data.chat import as_data, chat_text, encode
from vcrd_ray.evaluation.answers import Answer, Benchmark, Graded
from vcrd_ray.evaluation.code.evaluate import Rules, evaluate_solutions
from vcrd_ray.evaluation.code.solutions import from_response
from vcrd_ray.evaluation.code.tasks import base_prompt, chat_prompt, read_tasks
from vcrd_ray.types import Prompt

_FILES: dict[CodeSetName, str] = {
    "humaneval": "humaneval_plus/HumanEvalPlus.jsonl.gz",
    "mbpp": "mbpp_plus/MbppPlus.jsonl.gz",
}


class CodeBenchmark(Benchmark):
    """`Benchmark` on one set."""

    metrics: tuple[str, ...] = ("base", "plus")

    def __init__(self, section: CodeSection, name: CodeSetName) -> None:
        """
        Raises:
            DataError: the file is missing or malformed.
        """
        self.name: str = name
        self.samples = section.samples
        self.sampling: SamplingSection = section.sampling
        self._section = section
        self._tasks = {task.id: task for task in read_tasks(section.data / _FILES[name])[: section.limit]}

    @property
    def num_questions(self) -> int:
        return len(self._tasks)

    def prompts(self, tokenizer: Any) -> list[Prompt]:
        found = []
        for task in self._tasks.values():
            if self._section.prompt == "base":
                ids = encode(as_data(base_prompt(task), tokenizer), tokenizer, add_special_tokens=True)
            else:
                asked = chat_prompt(task)
                # The response goes on inside the code block that these words open.
                text = chat_text(asked.user, tokenizer) + asked.response_prefix
                ids = encode(text, tokenizer, add_special_tokens=False)
            found.append(Prompt(id=task.id, question=task.prompt, gold=None, ids=ids))
        return found

    def grade(self, answers: Sequence[Answer]) -> list[Graded]:
        section = self._section
        solutions = [
            from_response(self._tasks[a.id], a.text, id=f"{a.id}#{a.sample}", mode=section.prompt) for a in answers
        ]
        verdicts = evaluate_solutions(
            solutions,
            list(self._tasks.values()),
            rules=Rules(with_plus=True, sanitize_s=section.sanitize_s, max_chars=section.max_chars),
            cache_dir=section.cache.expanduser(),
            workers=section.workers,
            allow_network=section.allow_network,
        )
        found = {verdict.id: verdict for verdict in verdicts}
        graded = []
        for answer in answers:
            verdict = found[f"{answer.id}#{answer.sample}"]
            assert verdict.plus is not None
            graded.append(
                Graded(
                    id=answer.id,
                    sample=answer.sample,
                    correct={"base": verdict.base_passed, "plus": verdict.plus_passed},
                    verdict={"base": verdict.base.status, "plus": verdict.plus.status},
                    prediction=verdict.code,
                )
            )
        return graded

    def gold(self, id: str) -> str:
        """The task: there is no one right program."""
        return self._tasks[id].prompt

    def close(self) -> None:
        """Sandboxes end with their solutions."""


def code_benchmarks(section: CodeSection) -> list[CodeBenchmark]:
    """All sets of a section.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: EvalPlus is not installed.
    """
    from vcrd_ray.evaluation.code.library import library_paths

    library_paths()
    return [CodeBenchmark(section, name) for name in section.sets]
