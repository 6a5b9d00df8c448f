"""lm-evaluation-harness as a library: a task's name -> its results, and the rows that own benchmarks leave. Knows no Ray.

Prompts, stops, filters and metrics are the harness's own; what is kept is told apart from own figures by its folder.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vcrd_ray.config.evaluate import HarnessSection
from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation.answers import Answer, Graded
from vcrd_ray.models.checkpoint_files import resolve_model

if TYPE_CHECKING:
    import torch

VERSION = "0.4.13"
SUITE_TASKS: Mapping[str, tuple[str, ...]] = {"math": ("gsm8k", "hendrycks_math", "aime24")}
"""Tasks of a suite's name. Not its protocol: the harness asks and grades in its own ways."""

_INSTALL = f"python -m pip install lm_eval=={VERSION}"
_RIGHT_OR_WRONG = (0, 1)


@dataclass(frozen=True, kw_only=True)
class HarnessRows:
    """One task, of those that a group has, as own benchmarks are kept."""

    name: str
    questions: list[dict[str, str]]
    answers: list[Answer]
    graded: list[Graded]
    """Empty where no metric is right or wrong by question."""
    metrics: tuple[str, ...]
    """METRIC,FILTER as the harness names them."""


@dataclass(frozen=True, kw_only=True)
class HarnessTask:
    """What came of one task, or of a group of them."""

    results: dict[str, Any]
    """As `simple_evaluate` gives them, without samples and without what it says of the machine."""
    rows: list[HarnessRows]


def check_tasks(section: HarnessSection, tasks: Sequence[str]) -> None:
    """Refuse what cannot be evaluated, before a model is loaded.

    Raises:
        ConfigError: the library is missing, or a task is unknown to it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(f"--backend lm-eval needs lm-evaluation-harness {VERSION}: {_INSTALL}")
    known = set(_task_manager(section, tasks).all_tasks)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ConfigError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}: see lm-eval ls tasks, or give the folder of your own"
            " task files in evaluate.lm_eval.include_path"
        )


class Harness:
    """One model in this process, evaluated on one task after another."""

    def __init__(self, section: HarnessSection, path: str, *, dtype: str, device: torch.device) -> None:
        """
        Raises:
            ModelError: there is no such model.
        """
        from lm_eval.models.huggingface import HFLM

        self._section = section
        self._path = path
        self._model = HFLM(
            pretrained=str(resolve_model(path)),
            dtype=dtype,
            device=str(device),
            batch_size=section.batch_size,
            trust_remote_code=False,
        )

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def evaluate(self, task: str) -> HarnessTask:
        """All questions of a task or group.

        Raises:
            ConfigError: the task runs programs of the model.
        """
        from lm_eval import simple_evaluate

        section = self._section
        try:
            found = simple_evaluate(
                model=self._model,
                tasks=[task],
                task_manager=_task_manager(section, [task]),
                num_fewshot=section.num_fewshot,
                limit=section.limit,
                apply_chat_template=section.chat,
                bootstrap_iters=section.bootstrap_iters,
            )
        except ValueError as error:
            if "unsafe" not in str(error):
                raise
            raise ConfigError(
                f"lm-evaluation-harness task {task} runs programs of the model without a sandbox: use --suites code without"
                " --backend"
            ) from None
        samples = found.pop("samples")
        kept = {name: value for name, value in found.items() if not name.endswith(("_info", "_hash", "version"))}
        # It holds functions and data types.
        plain = json.loads(json.dumps(kept | {"model_name": self._path}, default=str))
        return HarnessTask(results=plain, rows=[self._rows(name, rows) for name, rows in samples.items()])

    def _rows(self, name: str, samples: Sequence[Mapping[str, Any]]) -> HarnessRows:
        by_question: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for sample in samples:
            by_question[str(sample["doc_id"])].append(sample)
        metrics = right_or_wrong(samples)
        questions, answers, graded = [], [], []
        for id, found in by_question.items():
            text = _text(found[0]["resps"])
            question = str(found[0]["arguments"][0][0])
            questions.append({"id": id, "question": question, "gold": str(found[0]["target"])})
            tokens = len(self._model.tok_encode(text))
            answers.append(Answer(id=id, sample=0, text=text, num_tokens=tokens, finish_reason="unknown"))
            if metrics:
                graded.append(_graded(id, found, metrics))
        return HarnessRows(name=name, questions=questions, answers=answers, graded=graded, metrics=metrics)


def right_or_wrong(samples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """METRIC,FILTER of the metrics that are 0 or 1 on every sample: only these have shares with intervals."""
    values: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            values[f"{metric},{sample['filter']}"].append(sample[metric])
    return tuple(name for name, found in values.items() if all(value in _RIGHT_OR_WRONG for value in found))


def _graded(id: str, samples: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Graded:
    correct = {
        f"{metric},{sample['filter']}": bool(sample[metric])
        for sample in samples
        for metric in sample["metrics"]
        if f"{metric},{sample['filter']}" in metrics
    }
    return Graded(
        id=id,
        sample=0,
        correct=correct,
        verdict={name: "correct" if right else "wrong" for name, right in correct.items()},
        prediction=_text(samples[0]["filtered_resps"]),
    )


def _text(responses: Any) -> str:
    """A generated text as it is; anything else, such as the likelihoods of choices, as JSON."""
    first = responses
    while isinstance(first, list | tuple) and len(first):
        first = first[0]
    return first if isinstance(first, str) else json.dumps(responses, default=str)


def _task_manager(section: HarnessSection, tasks: Sequence[str]) -> Any:
    from lm_eval.tasks import TaskManager

    if section.include_path is not None:
        # The harness's own thousands of files take long to read: without them where one's own are enough.
        folder = str(section.include_path.resolve())
        own = TaskManager(include_path=folder, include_defaults=False)
        return own if set(tasks) <= set(own.all_tasks) else TaskManager(include_path=folder)
    return TaskManager()
