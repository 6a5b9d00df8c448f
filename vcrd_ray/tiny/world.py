"""Word problems and all the valid ways to solve them. Knows nothing of tokens, models or judges.

A problem is one or two people who have some items and gain or lose some. A solution says one step a
line and ends with `#### answer`. A step may be said in several ways, operands of a sum in either
order, and the steps of two people may be mixed freely: often more than one token is right.

    Ann has 12 pens, gets 7. Bob has 20 pens, loses 5. How many in all?

    so 20-5=15
    7+12 is 19
    15+19=34
    #### 34
"""

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cached_property

from vcrd_ray.config.world import NUM_WAYS, WorldConfig

WAYS: tuple[tuple[str, str], ...] = (("", "="), ("so ", "="), ("", " is "), ("then ", " is "))
"""Ways to say a step: what stands before the operands, and what joins them to the result."""
assert len(WAYS) == NUM_WAYS

ANSWER_MARK = "#### "
NUM_SPLITS = 8
"""Seeds that differ modulo this number never share a question."""

PRETRAIN_SEED, SFT_SEED, DISTIL_SEED, TEST_SEED = 0, 1, 2, 7
"""Shipped checkpoints saw seed 0 only (the judge also a student tuned on seed 1); figures
are measured on `TEST_SEED`."""

NAMES = ("Ann", "Bob", "Eve", "Dan", "Mia", "Leo")
ITEMS = ("pens", "cups", "eggs", "hats", "keys", "maps")
GAINS = ("gets", "finds", "buys")
LOSSES = ("loses", "gives", "sells")

TOTAL = -1
"""Owner of the step that adds what two people have."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One gain or loss."""

    verb: str
    """One of `GAINS` or `LOSSES`."""
    amount: int

    @property
    def op(self) -> str:
        return "+" if self.verb in GAINS else "-"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who starts with how much, and what happens then."""

    name: str
    start: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its structure. Equal questions are equal problems."""

    item: str
    people: tuple[Person, ...]
    """One person, or two whose belongings are added at the end."""

    @cached_property
    def question(self) -> str:
        told = " ".join(
            f"{p.name} has {p.start} {self.item}" + "".join(f", {c.verb} {c.amount}" for c in p.changes) + "."
            for p in self.people
        )
        return f"{told} How many {'now' if len(self.people) == 1 else 'in all'}?"

    @cached_property
    def id(self) -> str:
        """Digest of the question."""
        return f"tiny-{_digest(self.question):016x}"

    @cached_property
    def answer(self) -> int:
        return Progress.at_start(self).answer(self)


@dataclass(frozen=True, kw_only=True)
class Step:
    """`left op right`, which gives what `owner` has (a person's index, or `TOTAL`)."""

    owner: int
    left: int
    op: str
    right: int

    @property
    def result(self) -> int:
        return compute(self.left, self.op, self.right)

    def operand_orders(self) -> tuple[tuple[int, int], ...]:
        """Both orders of a sum, the one order of a difference."""
        if self.op == "+" and self.left != self.right:
            return (self.left, self.right), (self.right, self.left)
        return ((self.left, self.right),)

    def lines(self, num_ways: int = NUM_WAYS) -> tuple[str, ...]:
        """Every valid line that says this step, line break included."""
        return tuple(
            f"{lead}{left}{self.op}{right}{joiner}{self.result}\n"
            for lead, joiner in WAYS[:num_ways]
            for left, right in self.operand_orders()
        )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a solution has stated so far; stated values count, right or wrong."""

    done: tuple[int, ...]
    """Steps stated for each person."""
    values: tuple[int, ...]
    """What each person has according to the last statement."""
    total: int | None
    """The stated sum over two people."""

    @staticmethod
    def at_start(problem: Problem) -> "Progress":
        starts = tuple(p.start for p in problem.people)
        return Progress(done=(0,) * len(starts), values=starts, total=None)

    def ready(self, problem: Problem) -> tuple[Step, ...]:
        """Steps that may be said next; none once only the answer is left."""
        steps = []
        for owner, person in enumerate(problem.people):
            if self.done[owner] < len(person.changes):
                change = person.changes[self.done[owner]]
                steps.append(Step(owner=owner, left=self.values[owner], op=change.op, right=change.amount))
        if not steps and len(self.values) == 2 and self.total is None:
            steps.append(Step(owner=TOTAL, left=self.values[0], op="+", right=self.values[1]))
        return tuple(steps)

    def after(self, step: Step, stated: int) -> "Progress":
        """Progress once `step` was said with the result `stated`."""
        if step.owner == TOTAL:
            return Progress(done=self.done, values=self.values, total=stated)
        done, values = list(self.done), list(self.values)
        done[step.owner] += 1
        values[step.owner] = stated
        return Progress(done=tuple(done), values=tuple(values), total=self.total)

    def answer(self, problem: Problem) -> int:
        """The answer that follows from what was stated, all remaining steps done right."""
        progress = self
        while steps := progress.ready(problem):
            progress = progress.after(steps[0], steps[0].result)
        return progress.values[0] if progress.total is None else progress.total


def compute(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _draw(config: WorldConfig, rng: random.Random) -> Problem | None:
    """One draw; None where a number left the allowed range."""
    num_steps = rng.randint(config.min_steps, config.max_steps)
    if num_steps >= 3 and rng.random() < config.share_two_people:
        first = rng.randint(1, num_steps - 2)
        lengths: tuple[int, ...] = (first, num_steps - 1 - first)
    else:
        lengths = (num_steps,)
    # Two people share the range, so that their sum is rarely out of it.
    largest_start = config.max_number // len(lengths)
    people = []
    for name, length in zip(rng.sample(NAMES, len(lengths)), lengths, strict=True):
        changes = tuple(
            Change(verb=rng.choice(GAINS + LOSSES), amount=rng.randint(1, config.max_change)) for _ in range(length)
        )
        people.append(Person(name=name, start=rng.randint(2, largest_start), changes=changes))
    problem = Problem(item=rng.choice(ITEMS), people=tuple(people))
    progress = Progress.at_start(problem)
    while steps := progress.ready(problem):
        if not 0 < steps[0].result <= config.max_number:
            return None
        progress = progress.after(steps[0], steps[0].result)
    return problem


def make_problem(config: WorldConfig, *, seed: int, index: int) -> Problem:
    """A seed's problem of this number. Seeds that differ modulo `NUM_SPLITS` share no question."""
    rng = random.Random(f"{seed}:{index}")
    while True:
        problem = _draw(config, rng)
        if problem and _digest(problem.question) % NUM_SPLITS == seed % NUM_SPLITS:
            return problem


def make_problems(config: WorldConfig, *, seed: int, count: int) -> list[Problem]:
    """The first `count` different problems of a seed."""
    problems: dict[str, Problem] = {}
    index = 0
    while len(problems) < count:
        problem = make_problem(config, seed=seed, index=index)
        problems.setdefault(problem.id, problem)
        index += 1
        if index > 10 * count + 1000:
            raise ValueError(f"this world has too few problems for count={count}: raise max_number or max_change")
    return list(problems.values())


def sample_solution(problem: Problem, rng: random.Random, *, num_ways: int = NUM_WAYS) -> str:
    """One valid solution: order of steps, way to say each and order of operands drawn uniformly."""
    progress = Progress.at_start(problem)
    lines = []
    while steps := progress.ready(problem):
        step = rng.choice(steps)
        lines.append(rng.choice(step.lines(num_ways)))
        progress = progress.after(step, step.result)
    return "".join(lines) + final_line(problem.answer)


def final_line(answer: int) -> str:
    return f"{ANSWER_MARK}{answer}"


_PERSON = re.compile(r"(\w+) has (\d+) (\w+)((?:, \w+ \d+)+)\. ")
_CHANGE = re.compile(r", (\w+) (\d+)")


def parse_question(text: str) -> Problem:
    """The problem that a question tells; the inverse of `Problem.question`."""
    people, items = [], set()
    for name, start, item, told in _PERSON.findall(text):
        changes = tuple(Change(verb=verb, amount=int(amount)) for verb, amount in _CHANGE.findall(told))
        people.append(Person(name=name, start=int(start), changes=changes))
        items.add(item)
    if people and len(people) <= 2 and len(items) == 1:
        problem = Problem(item=items.pop(), people=tuple(people))
        known = all(c.verb in GAINS + LOSSES for p in problem.people for c in p.changes)
        if known and problem.question == text:
            return problem
    raise ValueError(f"not a question of the tiny world: {text!r}")
