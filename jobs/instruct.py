"""Instruction following on Ray: the model answers, a judge behind an endpoint compares, win rates with intervals.

<folder>/instruct/SET/answers/batch-00000.jsonl ...   responses
<folder>/instruct/SET/rulings.jsonl                  the judge's replies on each pair
<folder>/instruct.json                               win rates, and what the judge cost
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.common import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.runs import write_json, write_text

if TYPE_CHECKING:
    from actors.pools import Pool
    from vcrd_ray.evaluation.instruct.figures import PairwiseFigures
    from vcrd_ray.evaluation.instruct.pairwise import ChatJudge
    from vcrd_ray.evaluation.instruct.prompts import Messages
    from vcrd_ray.evaluation.instruct.replies import Refusal, Reply
    from vcrd_ray.evaluation.instruct.sets import InstructItem

_FILE = "distillm2_eval.jsonl"


def read_sets(config: Config) -> dict[str, list[InstructItem]]:
    """The items of each set.

    Raises:
        DataError: a file is missing or malformed.
    """
    from vcrd_ray.evaluation.instruct.sets import own_set, published_set, read_items

    section = config.evaluate.instruct
    found: dict[str, list[InstructItem]] = {}
    for name in section.sets:
        found[name] = read_items(section.data / name / _FILE, published_set(name))
    for own in section.own:
        made = own_set(own.name, prompt_key=own.prompt_key, reference_key=own.reference_key)
        found[own.name] = read_items(own.path, made)
    return {name: items[: section.limit] for name, items in found.items()}


def run_instruct(config: Config, model: str, folder: Path) -> dict[str, PairwiseFigures]:
    """Win rates of a checkpoint; answers and replies that are there are not asked for again."""
    from actors.cluster import ray_cluster
    from actors.pools import engine_pool
    from vcrd_ray.evaluation.instruct.client import ChatClient
    from vcrd_ray.evaluation.instruct.replies import ReplyCache
    from vcrd_ray.models import load_tokenizer, resolve_model

    section, sets = config.evaluate.instruct, read_sets(config)
    tokenizer = load_tokenizer(resolve_model(model))
    with ReplyCache(section.cache) as cache, ChatClient(section.endpoint, cache) as judge:
        # The judge is there before anything is generated: a missing key is not found out hours later.
        answers: dict[str, dict[str, tuple[str, ...]]] = {}
        with ray_cluster(config):
            pool = engine_pool(config, path=model, role="evaluation", replicas=config.evaluate.replicas)
            try:
                pool.wait_ready(config.cluster.start_timeout_s)
                for name, items in sets.items():
                    answers[name] = _answer(config, pool, name, items, tokenizer, folder / "instruct" / name)
            finally:
                pool.stop()
        figures = {
            name: _judge(config, judge, name, items, answers[name], folder / "instruct" / name)
            for name, items in sets.items()
        }
        cost = judge.usage.model_dump(mode="json")
    write_json(
        folder / "instruct.json",
        {"model": model, "judge": cost, "sets": {name: f.model_dump(mode="json") for name, f in figures.items()}},
    )
    return figures


def _answer(
    config: Config, pool: Pool, name: str, items: Sequence[InstructItem], tokenizer: Any, folder: Path
) -> dict[str, tuple[str, ...]]:
    """The model's answer to each item, asked as section `prompt` has it."""
    from actors.answers import answer_all
    from vcrd_ray.data.problems import prompt_ids
    from vcrd_ray.types import Prompt

    prompts = [
        Prompt(id=i.id, question=i.instruction, answer=None, ids=prompt_ids(i.instruction, tokenizer, config.prompt))
        for i in items
    ]
    found: dict[str, tuple[str, ...]] = {}
    with StageProgress(name, len(prompts), "answers") as progress:
        batches = answer_all(
            pool,
            prompts,
            samples=1,
            sampling=config.evaluate.instruct.sampling,
            tokenizer=tokenizer,
            batch_size=config.evaluate.batch_size,
            directory=folder / "answers",
        )
        for _, batch in batches:
            # Judges must not see the mark that ends a turn.
            found |= {a.id: (_without_marks(a.text, tokenizer),) for a in batch}
            progress.advance(len(batch))
    return found


def _without_marks(text: str, tokenizer: Any) -> str:
    for mark in tokenizer.all_special_tokens:
        text = text.replace(mark, "")
    return text.strip()


def _judge(
    config: Config,
    judge: ChatJudge,
    name: str,
    items: Sequence[InstructItem],
    answers: dict[str, tuple[str, ...]],
    folder: Path,
) -> PairwiseFigures:
    from vcrd_ray.evaluation.instruct.figures import figures
    from vcrd_ray.evaluation.instruct.pairwise import judge_pairs, pair_up

    section, pairs = config.evaluate.instruct, pair_up(items, answers)
    with StageProgress(f"{name} judged", len(pairs), "replies") as progress:
        records = judge_pairs(pairs, _Shown(judge, progress), order=section.order, parsing=section.parsing)
    write_text(folder / "rulings.jsonl", "".join(json.dumps(r.model_dump(mode="json")) + "\n" for r in records))
    return figures(records, scheme=section.scheme, confidence=section.confidence)


class _Shown:
    """A judge whose replies are counted where a person sees it."""

    def __init__(self, judge: ChatJudge, progress: StageProgress) -> None:
        self._judge = judge
        self._progress = progress

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply | Refusal]]:
        """See `ChatJudge`."""
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
