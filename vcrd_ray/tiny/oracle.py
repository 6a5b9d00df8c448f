"""Response tokens -> whether each is locally valid. Knows nothing of models or judge protocols.

*Local*: a token is valid if, given what precedes it, the response is still a prefix of some valid
continuation. What was stated stands, right or wrong: after `12+7=18` the next line must go on from
18. After text that cannot be read as a step nothing is valid any more.

The walk keeps one small state a character: the progress stated so far, the current line, and the
lines that may still come out of it. Nothing enumerates solutions.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from vcrd_ray.tiny.world import (
    ANSWER_MARK,
    WAYS,
    Problem,
    Progress,
    Step,
    compute,
    final_line,
)

END = "\x03"
"""Stands for EOS in the walk: the last character of a finished response."""
_UNREADABLE = "\ufffd"
"""Stands for every other special token and for broken UTF-8."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a walk stands. Invariant: every candidate starts with `line`."""

    progress: Progress
    line: str
    """The current line so far."""
    candidates: tuple[str, ...]
    """Complete lines, break or END included, that `line` may become; none: the rest is invalid."""

    @staticmethod
    def at_start(problem: Problem) -> "State":
        return _line_start(problem, Progress.at_start(problem))

    def step(self, problem: Problem, char: str) -> tuple[bool, "State"]:
        """Whether `char` is valid here, and the state behind it."""
        if not self.candidates:
            return False, self
        line = self.line + char
        going_on = tuple(c for c in self.candidates if c.startswith(line))
        valid = bool(going_on)
        if char == END:
            return valid, State(progress=self.progress, line=line, candidates=())
        if char == "\n":
            progress = _progress_after(problem, self.progress, line)
            if progress is None:
                return False, State(progress=self.progress, line=line, candidates=())
            return valid, _line_start(problem, progress)
        if not valid:
            going_on = _repaired_lines(problem, self.progress, line)
        return valid, State(progress=self.progress, line=line, candidates=going_on)


def token_validity(problem: Problem, response_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """For each response token whether it is valid given the problem and the tokens before it."""
    _, valid = _walk(problem, _pieces(response_ids, tokenizer))
    return list(valid)


def branch_validity(
    problem: Problem,
    response_ids: Sequence[int],
    position: int,
    candidate_id: int,
    tokenizer: PreTrainedTokenizerBase,
) -> bool:
    """Whether `candidate_id` would be valid in place of the token at `position`.

    `position` may equal the response's length: the candidate then follows the whole response.
    """
    if not 0 <= position <= len(response_ids):
        raise ValueError(f"position {position} is outside a response of {len(response_ids)} tokens")
    states, _ = _walk(problem, _pieces(response_ids, tokenizer))
    (piece,) = _pieces([candidate_id], tokenizer)
    return _step_piece(problem, states[position], piece)[0]


@lru_cache(maxsize=4096)
def _walk(problem: Problem, pieces: tuple[str, ...]) -> tuple[tuple[State, ...], tuple[bool, ...]]:
    """The state before each piece and behind the last, and each piece's validity."""
    states, valid = [State.at_start(problem)], []
    for piece in pieces:
        is_valid, state = _step_piece(problem, states[-1], piece)
        states.append(state)
        valid.append(is_valid)
    return tuple(states), tuple(valid)


def _step_piece(problem: Problem, state: State, piece: str) -> tuple[bool, State]:
    """A token is valid if all its characters are."""
    all_valid = bool(piece)
    for char in piece:
        valid, state = state.step(problem, char)
        all_valid = all_valid and valid
    return all_valid, state


def _line_start(problem: Problem, progress: Progress) -> State:
    lines = [line for step in progress.ready(problem) for line in step.lines()]
    if not lines:
        lines = [final_line(progress.answer(problem)) + END]
    return State(progress=progress, line="", candidates=tuple(lines))


# --- what a wrong token leaves possible -----------------------------------------------------------

_OPERANDS = re.compile(r"(-?\d+)(?:([+-])(?:(-?\d+)(.*))?)?")
_STEP_LINES = tuple(
    re.compile(rf"{re.escape(lead)}(-?\d+)([+-])(-?\d+){re.escape(joiner)}(-?\d+)\n") for lead, joiner in WAYS
)


def _progress_after(problem: Problem, progress: Progress, line: str) -> Progress | None:
    """Progress once a complete line was said; None if it is no step, or no step is left to say."""
    steps = progress.ready(problem)
    for pattern in _STEP_LINES:
        if steps and (match := pattern.fullmatch(line)):
            left, op, right, stated = match.groups()
            said = (int(left), op, int(right))
            return progress.after(max(steps, key=lambda step: _likeness(step, *said)), int(stated))
    return None


def _likeness(step: Step, left: int, op: str, right: int) -> int:
    """How much of what was said belongs to `step`; the better order of operands counts."""
    orders = step.operand_orders()
    return (op == step.op) + max((left == a) + (right == b) for a, b in orders)


def _repaired_lines(problem: Problem, progress: Progress, line: str) -> tuple[str, ...]:
    """Lines that start with one gone wrong: what it states stands, the rest is done right."""
    if ANSWER_MARK.startswith(line):
        return (final_line(progress.answer(problem)) + END,)
    if line.startswith(ANSWER_MARK):
        said = line.removeprefix(ANSWER_MARK)
        numbers = _number_endings(said, progress.answer(problem))
        return tuple(f"{ANSWER_MARK}{number}{END}" for number in numbers)
    lines: dict[str, None] = {}
    for lead, joiner in WAYS:
        if line.startswith(lead) and (match := _OPERANDS.fullmatch(line.removeprefix(lead))):
            for step in progress.ready(problem):
                for rest in _repaired_steps(step, joiner, *match.groups()):
                    lines[lead + rest] = None
    return tuple(lines)


def _repaired_steps(
    step: Step, joiner: str, left: str, op: str | None, right: str | None, tail: str | None
) -> list[str]:
    """`left op right joiner result` completed; the last part that was said may be unfinished."""
    lines = []
    for first, second in step.operand_orders():
        lefts = _number_endings(left, first) if op is None else [left]
        rights = [str(second)] if right is None else [right]
        if right is not None and not tail:
            rights = _number_endings(right, second)
        for a in lefts:
            for b in rights:
                operation = f"{a}{op or step.op}{b}"
                result = compute(int(a), op or step.op, int(b))
                if joiner.startswith(tail or ""):
                    lines.append(f"{operation}{joiner}{result}\n")
                elif tail and tail.startswith(joiner):
                    said = tail.removeprefix(joiner)
                    lines += [f"{operation}{joiner}{n}\n" for n in _number_endings(said, result)]
    return lines


def _number_endings(said: str, expected: int) -> list[str]:
    """Numbers that start with `said`: as it stands, and grown into what was expected."""
    numbers = [said] if re.fullmatch(r"-?\d{1,9}", said) else []
    if str(expected).startswith(said) and str(expected) != said:
        numbers.append(str(expected))
    return numbers


# --- tokens to text -------------------------------------------------------------------------------

_PIECES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, str]] = WeakKeyDictionary()


def _pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The text of each token, decoded alone; END for EOS."""
    known = _PIECES.setdefault(tokenizer, {tokenizer.eos_token_id: END})
    for token_id in ids:
        if token_id not in known:
            special = token_id in tokenizer.all_special_ids
            text = _UNREADABLE if special else tokenizer.decode([token_id])
            known[token_id] = text.replace(END, _UNREADABLE)
    return tuple(known[token_id] for token_id in ids)
