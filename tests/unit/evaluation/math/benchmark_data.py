"""Where the public benchmark files are: `VCRD_DATA`, else `shared/data` beside the repository. Tests of them skip without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vcrd_ray.evaluation.math.extract import AnswerKind, raw_answer
from vcrd_ray.evaluation.math.normalize import strip_string
from vcrd_ray.evaluation.math.sets import MathItem

_ROOT = Path(__file__).parents[4]


def benchmark_file(name: str) -> Path:
    """The file of this name below the data directory; the test is skipped where it is absent."""
    path = Path(os.environ.get("VCRD_DATA") or _ROOT.parent / "shared" / "data") / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; VCRD_DATA names the directory of the benchmark files")
    return path


def json_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def extract_answer(reply: str, kind: AnswerKind) -> str:
    """The answer that a reply states, in normal form."""
    answer = raw_answer(reply, kind)
    return answer if kind == "choice" else strip_string(answer, keep_units=kind == "open_with_units")


def make_item(raw_gold: str, *, kind: AnswerKind = "open") -> MathItem:
    """An item of no benchmark."""
    gold = strip_string(raw_gold, keep_units=kind == "open_with_units")
    return MathItem(
        set="made",
        idx=0,
        question="?",
        gold=gold,
        graded_gold=strip_string(gold, keep_units=kind == "open_with_units"),
        raw_gold=raw_gold,
        kind=kind,
    )
