"""Answers to a set -> a judge's rulings on each pair, kept on disk, and win rates. Knows no endpoint.

<folder>/rulings.jsonl, rulings-turn-2.jsonl   the judge's replies on each pair; the second on whole dialogues
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vcrd_ray.config.instruct import InstructSection
from vcrd_ray.evaluation.instruct.figures import PairwiseFigures, figures
from vcrd_ray.evaluation.instruct.pairwise import ChatJudge, judge_pairs, pair_up
from vcrd_ray.evaluation.instruct.prompts import PAPER_PROMPT, JudgePrompt, Messages, Pair, mt_bench_prompt
from vcrd_ray.evaluation.instruct.questions import Questions
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply
from vcrd_ray.runs.files import write_text
from vcrd_ray.runs.progress import ShowProgress


def win_rates(
    section: InstructSection, judge: ChatJudge, questions: Questions, folder: Path, *, show_progress: ShowProgress
) -> dict[str, PairwiseFigures]:
    """Figures of a set by its name; where it has several turns, of first turns alone and of whole dialogues.

    Raises:
        DataError: two items have one id, or a prompt does not fit a pair.
    """
    thinking = questions.thinking
    pairs = pair_up(questions.items, questions.answers, against=questions.against, thinking=thinking)

    def prompt_of(pair: Pair) -> JudgePrompt:
        return PAPER_PROMPT if questions.judge_prompts is None else mt_bench_prompt(pair, questions.judge_prompts)

    matches = {questions.name: ([_first_turn(pair) for pair in pairs], "rulings.jsonl")}
    if questions.num_turns > 1:
        dialogues = [pair for pair in pairs if len(pair.turns) > 1]
        matches[f"{questions.name}-turn-2"] = (dialogues, "rulings-turn-2.jsonl")
    found = {}
    for name, (chosen, file) in matches.items():
        records = judge_pairs(
            chosen,
            _ShownJudge(judge, f"{name} judged", show_progress),
            order=section.order,
            parsing=section.parsing,
            prompt_of=prompt_of,
            thinking=thinking,
        )
        write_text(folder / file, "".join(json.dumps(r.model_dump(mode="json")) + "\n" for r in records))
        found[name] = figures(records, scheme=section.scheme, confidence=section.confidence)
    return found


def _first_turn(pair: Pair) -> Pair:
    return replace(pair, turns=pair.turns[:1], answers=pair.answers[:1], references=pair.references[:1])


class _ShownJudge(ChatJudge):
    """A judge whose replies are counted where a person sees it."""

    def __init__(self, judge: ChatJudge, stage: str, show_progress: ShowProgress) -> None:
        self._judge = judge
        self._stage = stage
        self._show_progress = show_progress

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply | Refusal]]:
        with self._show_progress(self._stage, len(prompts), "replies") as progress:
            for answer in self._judge.ask(prompts):
                progress.advance(1)
                yield answer
