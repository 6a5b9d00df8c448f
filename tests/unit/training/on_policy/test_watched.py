"""Held-out problems answered while the student trains: graded by the grader that their golds ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from vcrd_ray.errors import DataError
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.requests import PolicyVersion
from vcrd_ray.training.on_policy.validator import WATCHED, Validator
from vcrd_ray.types import IntArray, Prompt, Rollout


def ids(text: str) -> IntArray:
    return np.asarray([ord(c) for c in text], dtype=np.int32)


class Publishes:
    root = Path("nowhere")

    def publish(self, done: int) -> PolicyVersion:
        return PolicyVersion(number=done, directory=self.root, digest="")


class Answers:
    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def ready(self) -> bool:
        return True

    def result(self) -> list[Rollout]:
        return [
            Rollout(prompt_id="", ids=ids(t), logprobs=np.zeros(len(t), dtype=np.float32), finish_reason="length")
            for t in self._texts
        ]


class Source:
    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def answer(self, version: PolicyVersion, prompts: tuple[Prompt, ...]) -> Answers:
        return Answers(self._texts)


def watched(run_dir: Path, *rows: tuple[str, str | None, str]) -> dict[str, Any]:
    """What is kept of one look, of prompts with golds and responses."""
    # Nothing is better than what is there, so that no version is copied.
    (run_dir / WATCHED).write_text(json.dumps({"update": 0, "pass_at_1": 1.0}) + "\n")
    validator = Validator(
        every=1,
        prompts=[Prompt(id=str(i), question="?", gold=gold, ids=ids(p)) for i, (p, gold, _) in enumerate(rows)],
        source=cast(Any, Source([response for *_, response in rows])),
        publisher=cast(Publisher, Publishes()),
        run_dir=run_dir,
        decode=lambda found: "".join(map(chr, found)),
    )
    validator.begin(0)
    validator.after(1)
    return dict(read_jsonl(run_dir / WATCHED)[-1])


def test_numbers_are_graded_by_the_last_one_and_thinking_is_taken_off(tmp_path: Path) -> None:
    row = watched(
        tmp_path,
        ("?", "#### 18", "so 18"),
        ("?", "18", "<think>18"),
        ("?<think>\n", "18", "18"),
        ("?<think>\n", "18", "7</think>18"),
        ("?", None, "18"),
    )
    assert (row["grader"], row["correct"], row["total"], row["cut_off"]) == ("last_number", 2, 4, 5)


@pytest.mark.slow
def test_fractions_are_graded_as_such(tmp_path: Path) -> None:
    row = watched(tmp_path, ("?", "1/4", "#### 3/4"), ("?", "3/4", "#### 0.75"), ("?", "who knows", "#### 1"))
    assert (row["grader"], row["correct"], row["total"], row["timeouts"]) == ("math_verify", 1, 2, 0)


def test_problems_without_golds_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"distill\.watch\.prompts: no prompt has a gold answer"):
        watched(tmp_path, ("?", None, "18"), ("?", "####", "18"))
