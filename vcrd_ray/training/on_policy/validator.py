"""Accuracy of the student on held-out problems while it trains, and the best version by it. Knows no Ray.

Rollout actors answer; the rank that asked grades when the answers are there and goes on training meanwhile. A version stays on
disk until it is graded, and the best one stays as RUN/best.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.config.base import CONFIDENCE, THINKING
from vcrd_ray.data.accuracy import Accuracy, accuracy
from vcrd_ray.grading.figures import cut_off_warning, grading_figures
from vcrd_ray.grading.responses import Response, ResponseGrader
from vcrd_ray.runs.files import read_jsonl, write_json, write_text, written_aside
from vcrd_ray.training.on_policy.policy_versions import read_version, version_directory
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.requests import Answers, AnswerSource, PolicyVersion
from vcrd_ray.types import IntArray, Prompt, Rollout

WATCHED = "watched.jsonl"
BEST = "best"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    version: PolicyVersion
    answers: Answers


class Validator:
    """Asks every so many updates. All ranks call it; only the one with a source asks."""

    def __init__(
        self,
        *,
        every: int,
        prompts: Sequence[Prompt],
        source: AnswerSource | None,
        publisher: Publisher,
        run_dir: Path,
        decode: Callable[[IntArray], str],
    ) -> None:
        """
        Args:
            prompts: with gold answers.
            source: None on ranks that only help to publish.

        Raises:
            DataError: no prompt has a gold answer that a response could meet.
            ConfigError: the golds need math-verify, which is not installed.
        """
        if source is not None:
            golds = [prompt.gold for prompt in prompts]
            key = "distill.watch.prompts"
            self._grader = ResponseGrader(golds, thinking=THINKING, source=key, cure=f"set {key}.answer_key")
        self._every = every
        self._prompts = tuple(prompts)
        self._source = source
        self._publisher = publisher
        self._run_dir = run_dir
        self._decode = decode
        self._asked: list[_Asked] = []
        self._best = -1.0

    def begin(self, first: int) -> None:
        """Start, or go on, before this update; what was asked and not graded is asked again."""
        if self._source is None:
            return
        log = self._run_dir / WATCHED
        rows = [row for row in read_jsonl(log) if row["update"] <= first] if log.exists() else []
        write_text(log, "".join(json.dumps(row) + "\n" for row in rows))
        self._best = max((row["pass_at_1"] for row in rows), default=-1.0)
        graded = {row["update"] for row in rows}
        for done in range(self._every, first + 1, self._every):
            if done not in graded and version_directory(self._publisher.root, done).is_dir():
                self._ask(self._publisher.find(done))

    def after(self, done: int) -> list[tuple[int, Accuracy]]:
        """`done` updates are done: publish and ask if it is time; the accuracies that have come in since."""
        if done % self._every == 0:
            version = self._publisher.publish(done)
            if self._source is not None:
                self._ask(version)
        return self._collect([asked for asked in self._asked if asked.answers.ready()])

    def finish(self) -> list[tuple[int, Accuracy]]:
        """Wait for what was asked."""
        return self._collect(list(self._asked))

    @property
    def kept(self) -> set[int]:
        """Versions that are not graded yet."""
        return {asked.version.number for asked in self._asked}

    def _ask(self, version: PolicyVersion) -> None:
        assert self._source is not None
        self._asked.append(_Asked(version=version, answers=self._source.answer(version, self._prompts)))

    def _collect(self, there: list[_Asked]) -> list[tuple[int, Accuracy]]:
        found = []
        for asked in there:
            self._asked.remove(asked)
            rollouts = asked.answers.result()
            figures, facts = self._graded(rollouts)
            row = {"update": asked.version.number, **figures.model_dump(), **facts}
            with (self._run_dir / WATCHED).open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            if figures.pass_at_1 > self._best:
                self._best = figures.pass_at_1
                self._keep(asked.version, row)
            found.append((asked.version.number, figures))
        return found

    def _graded(self, rollouts: Sequence[Rollout]) -> tuple[Accuracy, dict[str, Any]]:
        """Over the prompts whose gold a response could meet; and what belongs to it."""
        responses = [
            Response(
                gold=prompt.gold,
                text=self._decode(r.ids),
                opened=self._decode(prompt.ids).rstrip().endswith(THINKING[0]),
                cut_off=r.finish_reason == "length",
            )
            for r, prompt in zip(rollouts, self._prompts, strict=True)
        ]
        graded = grading_figures(self._grader.grade(responses), self._grader)
        for line in cut_off_warning("watched problems", graded.cut_off, graded.responses):
            _LOG.warning(line.removeprefix("warning: "))
        figures = accuracy(correct=graded.right, total=graded.graded, confidence=CONFIDENCE)
        return figures, {"grader": graded.grader, "cut_off": graded.cut_off, "timeouts": graded.timeouts}

    def _keep(self, version: PolicyVersion, row: dict[str, Any]) -> None:
        """The version as RUN/best: the adapter as PEFT reads it, or the whole model."""
        with written_aside(self._run_dir / BEST, one_writer=True) as temporary:
            shutil.copytree(version.directory, temporary / read_version(version.directory).kind)
            write_json(temporary / "accuracy.json", row)
