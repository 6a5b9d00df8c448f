from __future__ import annotations

import pickle
import sys
from collections import Counter

import pytest

from tests.unit.evaluation.math.benchmark_data import benchmark_file, extract_answer, json_lines, make_item
from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation.math.equality import math_equal
from vcrd_ray.evaluation.math.extract import AnswerKind
from vcrd_ray.evaluation.math.grader import Grade, Grader, Pending, QwenGrader, Verdict, VerifyGrader
from vcrd_ray.evaluation.math.normalize import strip_string
from vcrd_ray.evaluation.math.sets import MathItem, published_set, read_items

REFERENCE, STRICT = QwenGrader(mode="reference"), QwenGrader(mode="strict")
BOTH = pytest.mark.parametrize("grader", [REFERENCE, STRICT], ids=["reference", "strict"])

# As the original program judges them, whatever their authors expected.
AGREEMENT = {
    "hendrycks_math": (7, 7),
    "slime": (4, 4),
    "verifiers": (1, 1),
    "tinker": (4, 4),
    "nemo_skills": (12, 12),
    "symeval": (6, 9),
    "math_verify": (62, 121),
    "lighteval": (6, 22),
}


def _grade(grader: Grader, item: MathItem, reply: str) -> Grade:
    settled = grader.settle(item, reply)
    return grader.decide(settled) if isinstance(settled, Pending) else settled


def _passes(grader: Grader, raw_gold: str, reply: str, kind: AnswerKind = "open") -> bool:
    return _grade(grader, make_item(raw_gold, kind=kind), reply).correct


@BOTH
def test_answers_and_verdicts_are_those_shipped_with_the_original(grader: QwenGrader) -> None:
    for row in json_lines(benchmark_file("grader_cases/responses_qwen_math.open.jsonl")):
        grade = _grade(grader, make_item(row["gold"]), row["response"])
        assert grade.prediction == row["pred_upstream"]
        assert grade.correct == row["expected"], row["id"]


def test_gsm8k_verdicts_differ_from_the_authors_in_percentages_and_tolerance_only() -> None:
    rows = json_lines(benchmark_file("grader_cases/responses_gsm8k.open.jsonl"))
    grades = [_grade(REFERENCE, make_item(row["gold"]), row["response"]) for row in rows]
    different = [
        (row["idx"], row["gold"], grade.prediction)
        for row, grade in zip(rows, grades, strict=True)
        if grade.correct != row["expected"]
    ]
    assert sorted(different) == [
        (313, "120000", "120006"),
        (413, "25", "2500"),
        (466, "1", "100"),
        (466, "1", "100"),
        (594, "42", "4200"),
        (688, "100", "1"),
        (914, "3", "300"),
        (1182, "1800", "18"),
        (1182, "1800", "18"),
    ]


@pytest.mark.slow
def test_other_libraries_cases_are_judged_as_the_original_judges_them() -> None:
    found: dict[str, Counter[bool]] = {}
    for row in json_lines(benchmark_file("grader_cases/answer_pairs.open.jsonl")):
        reply = row["pred"] if "boxed" in row["pred"] else rf"\boxed{{{row['pred']}}}"
        equal = math_equal(strip_string(extract_answer(reply, "open")), strip_string(row["gold"]))
        found.setdefault(row["set"], Counter())[equal == row["expected"]] += 1
    assert {name: (counts[True], counts.total()) for name, counts in found.items()} == AGREEMENT


@pytest.mark.parametrize(("name", "idx"), [("math", 3526), ("math", 3607), ("gaokao2023en", 83), ("gaokao2023en", 167)])
def test_an_empty_gold_is_passed_by_no_answer_in_reference_mode_only(name: str, idx: int) -> None:
    items = read_items(benchmark_file(f"{name}/test.jsonl"), published_set(name))
    (item,) = (item for item in items if item.idx == idx)
    assert item.gold == ""
    assert _grade(REFERENCE, item, "I do not know.").correct
    assert not _grade(STRICT, item, "I do not know.").correct
    assert not _grade(STRICT, item, r"\boxed{}").correct


def test_a_gold_without_text_is_passed_by_nothing_in_strict_mode() -> None:
    for reply in ("", "none", r"\boxed{}", r"\boxed{\text{}}", r"\boxed{x}"):
        assert not _passes(STRICT, "", reply)


def test_an_empty_gold_is_passed_by_its_own_text_in_strict_mode() -> None:
    assert _passes(STRICT, r"\mbox{Saturday}", r"\boxed{\text{Saturday}}")
    assert not _passes(STRICT, r"\mbox{Saturday}", r"\boxed{\text{Sunday}}")
    assert _passes(STRICT, r"\text{east}", r"\boxed{\text{east}}")
    assert _passes(STRICT, r"\text{east}", r"\boxed{East}")
    assert not _passes(STRICT, r"\text{east}", r"\boxed{\text{west}}")
    assert _passes(STRICT, "b > a > c", r"\boxed{b>a>c}")


def test_any_answer_without_letters_passes_an_empty_gold_in_reference_mode() -> None:
    assert _passes(REFERENCE, r"\text{east}", r"\boxed{\text{west}}")
    assert _passes(REFERENCE, r"\text{east}", r"\boxed{north}")
    assert not _passes(REFERENCE, r"\text{east}", r"\boxed{A}")


def test_golds_are_normalised_like_predictions_in_strict_mode() -> None:
    item = make_item(r"x \in [-2,7]")
    once = MathItem(
        **{name: getattr(item, name) for name in MathItem.__slots__} | {"graded_gold": strip_string(item.raw_gold)}
    )
    assert not _grade(REFERENCE, once, r"\boxed{x \in [-2,7]}").correct
    assert _grade(STRICT, once, r"\boxed{x \in [-2,7]}").correct


@BOTH
def test_an_empty_reply_is_wrong(grader: QwenGrader) -> None:
    for reply in ("", "  \n", "<|im_end|>"):
        assert _grade(grader, make_item("5"), reply) == Grade(verdict=Verdict.WRONG, prediction=None)


@BOTH
def test_what_follows_a_stop_mark_is_not_read(grader: QwenGrader) -> None:
    assert _passes(grader, "5", r"\boxed{5}<|im_end|> \boxed{6}")


@BOTH
def test_a_letter_is_sought_in_the_whole_reply(grader: QwenGrader) -> None:
    assert _passes(grader, "B", r"The answer is B. \boxed{17}")
    assert _passes(grader, "B", "Thus the choice is (B) 17.", kind="choice")
    assert not _passes(grader, "B", "Thus the choice is (C) 17.", kind="choice")


@BOTH
def test_letters_are_kept_of_an_answer_to_several_choices(grader: QwenGrader) -> None:
    assert _passes(grader, "ACD", r"\boxed{A, C, D}")


@BOTH
def test_units_are_kept_where_the_set_keeps_them(grader: QwenGrader) -> None:
    assert _passes(grader, "4.5", r"\boxed{4.5 m}")
    assert not _passes(grader, "4.5", r"\boxed{4.5 q}", kind="open_with_units")


@BOTH
def test_long_answers_are_left_to_a_process_that_may_be_killed(grader: QwenGrader) -> None:
    item, reply = make_item("5"), rf"\boxed{{{'0' * 2000}5}}"
    assert isinstance(grader.settle(item, reply), Pending)
    assert _grade(grader, item, reply).correct


def test_graders_travel_between_processes() -> None:
    assert pickle.loads(pickle.dumps(REFERENCE)) == REFERENCE
    assert pickle.loads(pickle.dumps(STRICT)) == STRICT


def test_a_missing_math_verify_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"math_verify.*install vcrd-ray\[math\] or take the grader qwen"):
        VerifyGrader()


@pytest.mark.parametrize(
    ("raw_gold", "reply", "verdict"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", True),
        (r"\{1,2,3\}", r"so \boxed{\{3,2,1\}}", True),
        ("(0,9)", r"so \boxed{[0,9)}", False),
        ("B", "The answer is B.", True),
        ("B", "The answer is C.", False),
        ("5", "", False),
        ("5", "nothing", False),
    ],
)
def test_math_verify_judges(raw_gold: str, reply: str, verdict: bool) -> None:
    pytest.importorskip("math_verify")
    assert _passes(VerifyGrader(), raw_gold, reply) is verdict


def test_graders_differ_on_brackets_order_and_percentages() -> None:
    pytest.importorskip("math_verify")
    for raw_gold, reply in (("(0,9)", r"\boxed{[0,9)}"), ("1", r"\boxed{100}")):
        assert _passes(REFERENCE, raw_gold, reply)
        assert not _passes(VerifyGrader(), raw_gold, reply)
    assert not _passes(REFERENCE, "1,2,3", r"\boxed{3,2,1}")
    assert _passes(VerifyGrader(), "1,2,3", r"\boxed{3,2,1}")


def test_the_answer_is_read_before_it_is_judged() -> None:
    assert _grade(REFERENCE, make_item("5"), r"\boxed{\frac12}").prediction == extract_answer(
        r"\boxed{\frac12}", "open"
    )
