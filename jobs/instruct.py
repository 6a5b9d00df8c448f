"""Instruction following on Ray: the model answers, a judge behind an endpoint compares, win rates with intervals.

<folder>/instruct/SET/answers/batch-00000.jsonl ...          responses to first turns; answers-turn-2/ to second ones
<folder>/instruct/SET/model_answer.jsonl                    both, as FastChat has them
<folder>/instruct/SET/rulings.jsonl, rulings-turn-2.jsonl   the judge's replies on each pair; the second on whole dialogues
<folder>/instruct.json                                      win rates, and what the judge cost
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.common import StageProgress
from jobs.suites import num_positions
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.runs.files import write_json, write_text

if TYPE_CHECKING:
    from actors.pools.pool import Pool
    from vcrd_ray.evaluation.instruct.figures import PairwiseFigures
    from vcrd_ray.evaluation.instruct.pairwise import ChatJudge
    from vcrd_ray.evaluation.instruct.prompts import JudgePrompt, Messages, Pair
    from vcrd_ray.evaluation.instruct.replies import Refusal, Reply
    from vcrd_ray.evaluation.instruct.sets import InstructItem

_FILES = {"mt_bench": "question.jsonl"}
_FILE = "distillm2_eval.jsonl"
_JUDGE_PROMPTS = Path("mt_bench") / "judge_prompts.jsonl"


@dataclass(kw_only=True)
class Questions:
    """A set, and what its answers are compared with."""

    name: str
    items: list[InstructItem]
    against: Mapping[str, tuple[str, ...]] | None
    """Another model's answers; None: the items' own references."""
    judge_prompts: Mapping[str, JudgePrompt] | None
    """MT-Bench's; None: the paper's one prompt."""
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The model's, one a turn."""
    no_room: int = 0
    """Turns that could not be asked, because they and the longest answer do not fit the model: answered by nothing."""

    @property
    def num_turns(self) -> int:
        """Of the longest dialogue."""
        return max(len(item.turns) for item in self.items)


def read_sets(config: Config) -> list[Questions]:
    """The items of each set.

    Raises:
        DataError: a file is missing or malformed, or lacks answers to compare with.
        ConfigError: a second turn is asked of a model without chat template.
    """
    from vcrd_ray.evaluation.instruct.prompts import read_judge_prompts
    from vcrd_ray.evaluation.instruct.sets import own_set, published_set, read_items, read_model_answers

    section = config.evaluate.instruct
    items: dict[str, list[InstructItem]] = {}
    for published in section.sets:
        path = section.data / published / _FILES.get(published, _FILE)
        items[published] = read_items(path, published_set(published))
    for own in section.own:
        made = own_set(own.name, prompt_key=own.prompt_key, reference_key=own.reference_key)
        items[own.name] = read_items(own.path, made)
    found = []
    for name, whole in items.items():
        chosen, against, prompts = whole[: section.limit], None, None
        if name == "mt_bench" or any(len(item.turns) > 1 for item in chosen):
            prompts = read_judge_prompts(section.data / _JUDGE_PROMPTS)
        if name == "mt_bench" and section.rival is not None:
            ids = {item.id for item in chosen}
            against = {id: texts for id, texts in read_model_answers(section.rival).items() if id in ids}
            if ids - against.keys():
                raise DataError(
                    f"{section.rival}: no answers to {len(ids - against.keys())} of {len(ids)} questions of {name}; give"
                    " those of a model that answered all"
                )
        found.append(Questions(name=name, items=chosen, against=against, judge_prompts=prompts))
        if found[-1].num_turns > 2:
            raise DataError(f"{name}: judges are asked about two turns at most; cut the questions to their first two")
        if found[-1].num_turns > 1 and config.prompt.template == "raw":
            raise ConfigError(f"prompt.template raw has no second turn, which {name} asks: set it to chat")
    return found


def run_instruct(config: Config, model: str, folder: Path) -> dict[str, PairwiseFigures]:
    """Win rates of a checkpoint; answers and replies that are there are not asked for again."""
    from actors.cluster import ray_cluster
    from actors.pools.launch import engine_pool
    from vcrd_ray.evaluation.instruct.client import ChatClient
    from vcrd_ray.evaluation.instruct.replies import ReplyCache
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

    section, sets = config.evaluate.instruct, read_sets(config)
    tokenizer = load_tokenizer(resolve_model(model))
    with ReplyCache(section.cache) as cache, ChatClient(section.endpoint, cache) as judge:
        # The judge is there before anything is generated: a missing key is not found out hours later.
        with ray_cluster(config):
            pool = engine_pool(config, path=model, role="evaluation", replicas=config.evaluate.replicas)
            try:
                pool.wait_ready(config.cluster.start_timeout_s)
                for one in sets:
                    _answer(config, model, pool, one, tokenizer, folder / "instruct" / one.name)
            finally:
                pool.stop()
        figures: dict[str, PairwiseFigures] = {}
        for one in sets:
            figures |= _judge(config, judge, one, folder / "instruct" / one.name)
        cost = judge.usage.model_dump(mode="json")
    content = {
        "model": model,
        "judge": cost,
        "sets": {name: f.model_dump(mode="json") for name, f in figures.items()},
        "no_room": {one.name: one.no_room for one in sets},
    }
    write_json(folder / "instruct.json", content)
    return figures


def _answer(config: Config, model: str, pool: Pool, one: Questions, tokenizer: Any, folder: Path) -> None:
    """The model's answers to all turns, the first as section `prompt` has it, the next ones behind its own answers."""
    from actors.answers import answer_all
    from vcrd_ray.evaluation.instruct.dialogue import shown_answer, turn_ids
    from vcrd_ray.types import Prompt

    section = config.evaluate.instruct
    room = num_positions(config, model) - section.sampling.max_new_tokens
    one.answers = {item.id: () for item in one.items}
    for turn in range(one.num_turns):
        asked: dict[str, str] = {}
        prompts = []
        for item in one.items:
            if len(item.turns) <= turn:
                continue
            ids = turn_ids(item.turns, one.answers[item.id], tokenizer, config.prompt)
            if len(ids) > room:
                one.answers[item.id] += ("",)
                one.no_room += 1
                continue
            # Turns of one question are drawn apart by their names.
            name = item.id if turn == 0 else f"{item.id}@turn-{turn + 1}"
            asked[name] = item.id
            prompts.append(Prompt(id=name, question=item.turns[turn], answer=None, ids=ids))
        with StageProgress(one.name + (f" turn {turn + 1}" if turn else ""), len(prompts), "answers") as progress:
            batches = answer_all(
                pool,
                prompts,
                samples=1,
                sampling=section.sampling,
                tokenizer=tokenizer,
                batch_size=config.evaluate.batch_size,
                directory=folder / ("answers" if turn == 0 else f"answers-turn-{turn + 1}"),
            )
            for batch in batches:
                for answer in batch.answers:
                    # Judges must not see the mark that ends a turn, nor what comes behind it.
                    one.answers[asked[answer.id]] += (shown_answer(answer.text, tokenizer),)
                progress.advance(len(batch.answers))
    rows = (
        {"question_id": id, "model_id": model, "choices": [{"index": 0, "turns": texts}]}
        for id, texts in one.answers.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "model_answer.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _judge(config: Config, judge: ChatJudge, one: Questions, folder: Path) -> dict[str, PairwiseFigures]:
    """Figures of a set by its name; where it has several turns, of first turns alone and of whole dialogues."""
    from vcrd_ray.evaluation.instruct.figures import figures
    from vcrd_ray.evaluation.instruct.pairwise import judge_pairs, pair_up
    from vcrd_ray.evaluation.instruct.prompts import PAPER_PROMPT, mt_bench_prompt

    section, pairs = config.evaluate.instruct, pair_up(one.items, one.answers, against=one.against)

    def prompt_of(pair: Pair) -> JudgePrompt:
        return PAPER_PROMPT if one.judge_prompts is None else mt_bench_prompt(pair, one.judge_prompts)

    matches = {one.name: ([_first_turn(pair) for pair in pairs], "rulings.jsonl")}
    if one.num_turns > 1:
        dialogues = [pair for pair in pairs if len(pair.turns) > 1]
        matches[f"{one.name}-turn-2"] = (dialogues, "rulings-turn-2.jsonl")
    found = {}
    for name, (chosen, file) in matches.items():
        with StageProgress(f"{name} judged", len(chosen), "replies") as progress:
            records = judge_pairs(
                chosen,
                _Shown(judge, progress),
                order=section.order,
                parsing=section.parsing,
                prompt_of=prompt_of,
            )
        write_text(folder / file, "".join(json.dumps(r.model_dump(mode="json")) + "\n" for r in records))
        found[name] = figures(records, scheme=section.scheme, confidence=section.confidence)
    return found


def _first_turn(pair: Pair) -> Pair:
    return replace(pair, turns=pair.turns[:1], answers=pair.answers[:1], references=pair.references[:1])


class _Shown:
    """A judge whose replies are counted where a person sees it."""

    def __init__(self, judge: ChatJudge, progress: StageProgress) -> None:
        self._judge = judge
        self._progress = progress

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply | Refusal]]:
        for done, answer in enumerate(self._judge.ask(prompts), 1):
            self._progress.set(done, total=len(prompts))
            yield answer


def show_instruct(found: dict[str, PairwiseFigures]) -> None:
    """A table of win rates."""
    table = Table(title="win rate against reference answers")
    for heading in ("set", "win rate", "interval", "pairs", "unparsable", "refused", "order changes it"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, one in found.items():
        rate = one.win_rate
        table.add_row(
            name,
            f"{100 * rate.value:.1f}%",
            f"{100 * rate.low:.1f} to {100 * rate.high:.1f}%",
            str(one.num_pairs),
            str(one.unparsable),
            str(one.refused),
            f"{one.inconsistent} of {one.compared}",
        )
    Console(width=110).print(table)
