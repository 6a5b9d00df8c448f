"""What a judge is asked, and what its words mean."""

import json
from pathlib import Path

import pytest

from tests.unit.evaluation.instruct.instruct_data import instruct_file
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.instruct.prompts import (
    PAPER_PROMPT,
    JudgePrompt,
    Message,
    Pair,
    mt_bench_prompt,
    parse_verdict,
    read_judge_prompts,
    render,
)


def _pair(*, turns: int = 1, gold: tuple[str, ...] = ()) -> Pair:
    return Pair(
        id="q",
        category=None,
        turns=tuple(f"question {{x}} {i}" for i in range(turns)),
        answers=tuple(f"model's {i}" for i in range(turns)),
        references=tuple(f"reference's {i}" for i in range(turns)),
        gold=gold,
    )


def test_the_paper_s_prompt_is_one_user_message_with_both_answers_in_order() -> None:
    (message,) = render(PAPER_PROMPT, _pair(), "model_first")
    assert message.role == "user"
    assert message.content.startswith("[System]\nPlease act as an impartial judge")
    assert message.content.endswith(
        "for a tie.\n\n[User Question]\nquestion {x} 0\n\n"
        "[The Start of Assistant A’s Answer]\nmodel's 0\n[The End of Assistant A’s Answer]\n\n"
        "[The Start of Assistant B’s Answer]\nreference's 0\n[The End of Assistant B’s Answer]"
    )


def test_the_other_order_swaps_the_answers_alone() -> None:
    (one,), (other,) = (render(PAPER_PROMPT, _pair(), order) for order in ("model_first", "reference_first"))
    swapped = one.content.replace("model's", "X").replace("reference's", "model's").replace("X", "reference's")
    assert other.content == swapped != one.content


def test_the_paper_s_prompt_is_mt_bench_s_pair_v2_but_for_its_form() -> None:
    pair_v2 = read_judge_prompts(instruct_file("mt_bench/judge_prompts.jsonl"))["pair-v2"]
    plain = PAPER_PROMPT.template.replace("’", "'")
    assert plain == f"[System]\n{pair_v2.system}\n\n{pair_v2.template}"


@pytest.mark.parametrize(
    ("turns", "gold", "name"),
    [
        (1, (), "pair-v2"),
        (2, (), "pair-v2-multi-turn"),
        (1, ("4",), "pair-math-v1"),
        (2, ("4", "5"), "pair-math-v1-multi-turn"),
    ],
)
def test_mt_bench_asks_by_turns_and_gold(turns: int, gold: tuple[str, ...], name: str) -> None:
    prompts = read_judge_prompts(instruct_file("mt_bench/judge_prompts.jsonl"))
    pair = _pair(turns=turns, gold=gold)
    prompt = mt_bench_prompt(pair, prompts)
    assert prompt.name == name
    system, asked = render(prompt, pair, "reference_first")
    assert system == Message(role="system", content=prompt.system or "")
    at = [asked.content.index(text) for text in (*gold, *pair.references)]
    assert at[len(gold)] < asked.content.index(pair.answers[0])
    assert all(text in asked.content for text in (*pair.turns, *pair.answers))


def test_a_prompt_that_shows_what_the_pair_has_not_is_refused() -> None:
    prompt = JudgePrompt(name="p", system=None, template="{question} {ref_answer_1} {answer_a} {answer_b}")
    with pytest.raises(DataError, match="q: prompt p shows ref_answer_1, which the pair has not"):
        render(prompt, _pair(), "model_first")


def test_a_dialogue_in_a_prompt_of_one_turn_is_refused() -> None:
    with pytest.raises(DataError, match="q: prompt distillm2 shows"):
        render(PAPER_PROMPT, _pair(turns=2), "model_first")
    first_turn = JudgePrompt(name="p", system=None, template="{question_1} {answer_a_1} {answer_b_1}")
    with pytest.raises(DataError, match="shows fewer turns than 2"):
        render(first_turn, _pair(turns=2), "model_first")


def test_an_answer_for_each_turn_is_demanded() -> None:
    with pytest.raises(DataError, match="q: 1 answers to 2 turns"):
        Pair(id="q", category=None, turns=("a", "b"), answers=("x",), references=("y", "z"))


def test_a_prompt_file_without_pairwise_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"name": "s", "type": "single", "system_prompt": "", "prompt_template": ""}))
    with pytest.raises(DataError, match="no prompt of type pairwise"):
        read_judge_prompts(path)
    path.write_text('{"name": "s", "type": "pairwise"}')
    with pytest.raises(DataError, match="line 1: no key 'system_prompt'"):
        read_judge_prompts(path)


@pytest.mark.parametrize(
    ("reply", "reference", "strict"),
    [
        ("Good. [[A]]", "A", "A"),
        ("Good. [[B]]", "B", "B"),
        ("Good. [[C]]\n", "C", "C"),
        ("Not [[A]]: [[B]]", "A", "B"),
        ("[[C]] at first sight, yet [[B]]", "B", "B"),
        ("First I leaned to [[B]], now [[A]].", "A", "A"),
        ("[[B]], then a tie: [[C]]", "B", "C"),
        ("[A] is better", "unparsable", "unparsable"),
        ("[[a]] [[D]] [[AB]]", "unparsable", "unparsable"),
        ("", "unparsable", "unparsable"),
    ],
)
def test_verdicts_are_read_by_priority_or_by_place(reply: str, reference: str, strict: str) -> None:
    assert parse_verdict(reply, "reference", cut_off=False) == reference
    assert parse_verdict(reply, "strict", cut_off=False) == strict


def test_a_reply_that_was_cut_off_has_no_strict_verdict() -> None:
    assert parse_verdict("To say [[A]] one would", "strict", cut_off=True) == "unparsable"
    assert parse_verdict("To say [[A]] one would", "reference", cut_off=True) == "A"
