"""Responses cut into steps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import STUDENT
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.selection.steps import StepSplitter

TOKENIZER = load_tokenizer(resolve_model(STUDENT))
KINDS = {kind: StepSplitter(TOKENIZER, kind) for kind in ("lines", "sentences")}


def steps(text: str, kind: str = "lines") -> list[str]:
    ids = np.array([*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id], dtype=np.int32)
    return [TOKENIZER.decode(ids[step]) for step in KINDS[kind].split(ids)]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("7+12=19\nso 19-5=14\n#### 14", "lines", ["7+12=19\n", "so 19-5=14\n", "#### 14"]),
        ("a.\n\n\nb. c\n", "lines", ["a.\n\n\n", "b. c\n"]),
        ("\n\na\n \nb", "lines", ["\n\na\n \n", "b"]),
        (
            "Ann has 2.5 pens. Bob has none! Why?\nOK",
            "sentences",
            ["Ann has 2.5 pens.", " Bob has none! ", "Why?\n", "OK"],
        ),
        ("no end", "sentences", ["no end"]),
        ("", "lines", []),
        ("\n \n", "lines", []),
    ],
)
def test_a_step_ends_at_a_line_break_or_at_the_end_of_a_sentence(text: str, kind: str, expected: list[str]) -> None:
    assert steps(text, kind) == expected


def test_steps_cover_the_text_once_and_leave_out_special_tokens_at_its_end() -> None:
    ids = np.array([*TOKENIZER("a\nb\nc", add_special_tokens=False)["input_ids"]] + [TOKENIZER.eos_token_id] * 2)
    found = KINDS["lines"].split(ids)
    assert np.concatenate([ids[step] for step in found]).tolist() == ids[:-2].tolist()
