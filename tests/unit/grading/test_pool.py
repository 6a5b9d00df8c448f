from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.evaluation.math.benchmark_data import make_item
from vcrd_ray.evaluation.math.grader import QwenGrader, VerifyGrader
from vcrd_ray.evaluation.math.sets import MathItem
from vcrd_ray.grading.pool import GradingPool, PoolLimits
from vcrd_ray.grading.protocol import Grade, Grader, Pending, Verdict

pytestmark = pytest.mark.slow

LIMITS = PoolLimits(workers=1, timeout_s=0.5, memory_mib=512)

ADVERSARIAL = {
    "tower of powers": r"\boxed{10^{10^{10}}}",
    "tower with a symbol": r"\boxed{9^{9^{9^{9}}}+x}",
    "factorials": r"\boxed{(((9!)!)!)!}",
    "huge binomial": r"\boxed{\binom{10^{12}}{10^{11}}}",
    "long sum": r"\boxed{\sum_{n=1}^{10000000000}\frac{1}{n}}",
    "large expansion": r"\boxed{(a+b+c+d+e+f)^{200}(x+y)^{300}}",
    "deep parentheses": rf"\boxed{{{'(' * 3000}x{')' * 3000}}}",
    "open brackets": rf"\boxed{{{'[' * 900}}}",
    "deep fractions": r"\boxed{" + r"\frac{1}{" * 400 + "x" + "}" * 401,
    "a megabyte of digits": rf"\boxed{{{'1' * 1_000_000}}}",
    "a megabyte of zeros": rf"\boxed{{{'1.0' * 300_000}x}}",
    "a megabyte of text": "a " * 500_000,
    "open arrays": r"\boxed{" + r"\begin{array}{" * 20_000,
    "open texts": r"\boxed{" + r"\text{" * 50_000,
    "control characters": "\\boxed{\x00\x01\ud800x}",
}


@dataclass(frozen=True)
class ObedientGrader:
    """Does in the worker what the reply says, and is right about "fine"."""

    def settle(self, item: MathItem, reply: str) -> Grade | Pending:
        if reply.startswith("settled"):
            return Grade(verdict=Verdict.WRONG, prediction=reply)
        return Pending(text=reply, gold=item.gold)

    def decide(self, pending: Pending) -> Grade:
        what, _, argument = pending.text.partition(" ")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "spin":
            while True:
                pass
        elif what == "power":
            print(10**10**10)
        elif what == "eat":
            bytearray(1 << 40)
        elif what == "nest":
            raise RecursionError
        elif what == "fail":
            raise KeyError("a mistake of the grader")
        elif what == "count":
            with Path(argument).open("a") as log:
                log.write("once\n")
        return Grade(verdict=Verdict.CORRECT, prediction=pending.text)

    def warm_up(self) -> None:
        pass


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    with GradingPool(ObedientGrader(), LIMITS) as made:
        yield made


def _verdicts(pool: GradingPool, *replies: str) -> list[str]:
    return [grade.verdict.value for grade in pool.grade([(make_item("5"), reply) for reply in replies])]


def test_each_fate_has_its_verdict_in_order_and_the_next_is_graded(pool: GradingPool) -> None:
    replies = ("fine", "die", "spin", "settled", "power", "eat", "nest", "fine again")
    assert _verdicts(pool, *replies) == [
        "correct",
        "crashed",
        "timeout",
        "wrong",
        "timeout",
        "crashed",
        "crashed",
        "correct",
    ]


def test_no_process_is_started_for_what_is_settled(pool: GradingPool) -> None:
    assert _verdicts(pool, "settled", "settled too") == ["wrong", "wrong"]
    assert pool._processes is None


def test_equal_answers_are_decided_once(pool: GradingPool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert _verdicts(pool, f"count {log}", f"count {log}") == ["correct"] * 2
    assert _verdicts(pool, f"count {log}") == ["correct"]
    assert log.read_text() == "once\n"


def test_a_mistake_of_the_grader_is_no_verdict(pool: GradingPool) -> None:
    with pytest.raises(KeyError, match="a mistake of the grader"):
        _verdicts(pool, "fail")


def test_no_process_outlives_the_pool() -> None:
    with GradingPool(ObedientGrader(), LIMITS) as pool:
        _verdicts(pool, "fine")
        assert pool._processes is not None
        workers = list(pool._processes._pool_manager.worker_manager.workers)
        pool.grade([])
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.05)
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen", "math_verify"])
def test_no_adversarial_answer_hangs_or_crashes_the_program(name: str) -> None:
    if name == "math_verify":
        pytest.importorskip("math_verify")
    grader: Grader = QwenGrader(mode="reference") if name == "qwen" else VerifyGrader()
    item = make_item("x+1")
    with GradingPool(grader, PoolLimits(workers=2, timeout_s=0.5, memory_mib=512)) as pool:
        for attack, reply in ADVERSARIAL.items():
            (grade,) = pool.grade([(item, reply)])
            assert not grade.correct, attack
        assert pool.grade([(item, r"\boxed{1+x}")])[0].correct


def test_an_expression_without_end_times_out_and_the_next_is_graded() -> None:
    with GradingPool(QwenGrader(mode="reference"), LIMITS) as pool:
        grades = pool.grade(
            [(make_item("x+1"), reply) for reply in (ADVERSARIAL["tower with a symbol"], r"\boxed{1+x}")]
        )
    assert [grade.verdict.value for grade in grades] == ["timeout", "correct"]


@pytest.mark.parametrize("name", ["workers", "timeout_s", "memory_mib"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        PoolLimits(**{"workers": 1, name: 0})
