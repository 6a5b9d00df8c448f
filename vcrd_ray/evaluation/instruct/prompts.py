"""Two answers -> what a judge is asked, and a judge's words -> a verdict. Knows no endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal

from vcrd_ray.config.instruct import Parsing
from vcrd_ray.data.json_rows import BadRow, objects, text_of
from vcrd_ray.errors import DataError

Order = Literal["model_first", "reference_first"]
Verdict = Literal["A", "B", "C", "unparsable"]
"""Better is what stood first, what stood second, neither; or the reply does not say."""

_VERDICT = re.compile(r"\[\[([ABC])\]\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user"]
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers to one question."""

    id: str
    category: str | None
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    """The model's, one a turn."""
    references: tuple[str, ...]
    """What they are compared with, one a turn."""
    gold: tuple[str, ...] = ()
    """Right answers that the judge is shown; empty: none."""

    def __post_init__(self) -> None:
        for name, texts in (("answers", self.answers), ("references", self.references)):
            if len(texts) != len(self.turns):
                raise DataError(f"{self.id}: {len(texts)} {name} to {len(self.turns)} turns; give one each")

    @property
    def identical(self) -> bool:
        """Whether there is nothing to compare."""
        return self.answers == self.references


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgePrompt:
    """How a judge is asked, in MT-Bench's placeholders."""

    name: str
    system: str | None
    """A message of its own; None: all stands in the user's."""
    template: str
    """`{question}`, `{answer_a}`, `{answer_b}`, `{ref_answer_1}`; in dialogues `{question_1}`, `{answer_a_1}` and so on."""


PAPER_PROMPT = JudgePrompt(
    name="distillm2",
    system=None,
    # The published protocol's words, its typographic apostrophes included: other words give other scores.
    template=(
        "[System]\nPlease act as an impartial judge and evaluate the quality of the responses provided by two AI assistants"
        " to the user question displayed below. You should choose the assistant that follows the user’s instructions and"
        " answers the user’s question better. Your evaluation should consider factors such as the helpfulness, relevance,"
        " accuracy, depth, creativity, and level of detail of their responses. Begin your evaluation by comparing the two"
        " responses and provide a short explanation. Avoid any position biases and ensure that the order in which the"
        " responses were presented does not influence your decision. Do not allow the length of the responses to influence"
        " your evaluation. Do not favor certain names of the assistants. Be as objective as possible. After providing your"
        ' explanation, output your final verdict by strictly following this format: "[[A]]" if assistant A is better,'
        ' "[[B]]" if assistant B is better, and "[[C]]" for a tie.\n\n'
        "[User Question]\n{question}\n\n"
        "[The Start of Assistant A’s Answer]\n{answer_a}\n[The End of Assistant A’s Answer]\n\n"
        "[The Start of Assistant B’s Answer]\n{answer_b}\n[The End of Assistant B’s Answer]"
    ),
)
"""MT-Bench's pair-v2 in one message, as DistiLLM-2 asks it."""


def read_judge_prompts(path: Path) -> dict[str, JudgePrompt]:
    """The pairwise prompts of MT-Bench's `judge_prompts.jsonl` by name.

    Raises:
        DataError: the file is missing or malformed, or has no pairwise prompt.
    """
    found: dict[str, JudgePrompt] = {}
    for where, row in objects(path, what="judge prompts"):
        try:
            name, kind = text_of(row, "name"), text_of(row, "type")
            system, template = text_of(row, "system_prompt", blank=True), text_of(row, "prompt_template", blank=True)
        except BadRow as error:
            raise DataError(f"{where}: {error}; give MT-Bench's judge_prompts.jsonl") from None
        if kind == "pairwise":
            found[name] = JudgePrompt(name=name, system=system, template=template)
    if not found:
        raise DataError(f"{path}: no prompt of type pairwise; give MT-Bench's judge_prompts.jsonl")
    return found


def mt_bench_prompt(pair: Pair, prompts: Mapping[str, JudgePrompt]) -> JudgePrompt:
    """The prompt that MT-Bench judges such a pair with: by whether gold is shown, and by its turns."""
    kind = "pair-math-v1" if pair.gold else "pair-v2"
    return prompts[kind if len(pair.turns) == 1 else f"{kind}-multi-turn"]


def render(prompt: JudgePrompt, pair: Pair, order: Order) -> Messages:
    """What the judge is asked when the model's answer, or the reference, is shown as assistant A's.

    Raises:
        DataError: the prompt shows something that the pair does not have, or the pair has turns that it does not show.
    """
    first, second = pair.answers, pair.references
    if order == "reference_first":
        first, second = second, first
    values: dict[str, str] = {}
    for name, texts in (
        ("question", pair.turns),
        ("answer_a", first),
        ("answer_b", second),
        ("ref_answer", pair.gold),
    ):
        values |= {f"{name}_{turn}": text for turn, text in enumerate(texts, 1)}
    if len(pair.turns) == 1:
        values |= {"question": pair.turns[0], "answer_a": first[0], "answer_b": second[0]}
    shown = {field for _, field, _, _ in Formatter().parse(prompt.template) if field is not None}
    if not shown <= values.keys():
        lacking = ", ".join(sorted(shown - values.keys()))
        raise DataError(f"{pair.id}: prompt {prompt.name} shows {lacking}, which the pair has not; take another prompt")
    if len(pair.turns) > 1 and f"answer_a_{len(pair.turns)}" not in shown:
        raise DataError(
            f"{pair.id}: prompt {prompt.name} shows fewer turns than {len(pair.turns)}; take another prompt"
        )
    asked = Message(role="user", content=prompt.template.format_map(values))
    return (asked,) if prompt.system is None else (Message(role="system", content=prompt.system), asked)


def parse_verdict(reply: str, parsing: Parsing, *, cut_off: bool) -> Verdict:
    """What a judge decided.

    `reference`: A if `[[A]]` stands anywhere in the reply, else B, else C: as scores were published. A judge that writes
    "not [[A]]: [[B]]" is read as A, so that quoting favours whoever stands first.

    `strict`: the last verdict stated, because judges are told to explain first and to end with the verdict: what they
    quote, weigh or take back stands before it. A reply that was cut off has no end, hence no verdict.
    """
    if parsing == "reference":
        for verdict in ("A", "B", "C"):
            if f"[[{verdict}]]" in reply:
                return verdict
        return "unparsable"
    stated = [] if cut_off else _VERDICT.findall(reply)
    return stated[-1] if stated else "unparsable"
