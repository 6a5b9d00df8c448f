"""Instruction following on Ray: the model answers, a judge behind an endpoint compares, win rates with intervals.

<folder>/instruct/SET/answers/batch-00000.jsonl ...          responses to first turns; answers-turn-2/ to second ones
<folder>/instruct/SET/model_answer.jsonl                    both, as FastChat has them
<folder>/instruct/SET/rulings.jsonl, rulings-turn-2.jsonl   the judge's replies on each pair; the second on whole dialogues
<folder>/instruct.json                                      win rates, and what the judge cost
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.evaluation.suites import num_positions
from vcrd_ray.runs.files import write_json

if TYPE_CHECKING:
    from actors.pools.pool import Pool
    from vcrd_ray.evaluation.instruct.figures import PairwiseFigures
    from vcrd_ray.evaluation.instruct.questions import Questions


def run_instruct(config: Config, model: str, folder: Path) -> dict[str, PairwiseFigures]:
    """Win rates of a checkpoint; answers and replies that are there are not asked for again."""
    from actors.cluster import ray_cluster
    from actors.pools.launch import engine_pool
    from vcrd_ray.evaluation.instruct.client import ChatClient
    from vcrd_ray.evaluation.instruct.questions import read_sets
    from vcrd_ray.evaluation.instruct.replies import ReplyCache
    from vcrd_ray.evaluation.instruct.tables import show_answers
    from vcrd_ray.evaluation.instruct.win_rates import win_rates
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
            figures |= win_rates(section, judge, one, folder / "instruct" / one.name, show_progress=StageProgress)
        cost = judge.usage.model_dump(mode="json")
    content = {
        "model": model,
        "judge": cost,
        "sets": {name: f.model_dump(mode="json") for name, f in figures.items()},
        "no_room": {one.name: one.no_room for one in sets},
        "answers": {one.name: dict(one.counts) for one in sets},
    }
    write_json(folder / "instruct.json", content)
    for one in sets:
        show_answers(one)
    return figures


def _answer(config: Config, model: str, pool: Pool, one: Questions, tokenizer: Any, folder: Path) -> None:
    """The model's answers to all turns, the first as section `prompt` has it, the next ones behind its own answers."""
    from actors.answers import answer_all

    section = config.evaluate.instruct
    room = num_positions(config, model) - section.sampling.max_new_tokens
    for turn in range(one.num_turns):
        prompts = one.ask(turn, tokenizer=tokenizer, prompt=config.prompt, room=room)
        items = {prompt.id: id for id, prompt in prompts.items()}
        with StageProgress(one.name + (f" turn {turn + 1}" if turn else ""), len(prompts), "answers") as progress:
            batches = answer_all(
                pool,
                list(prompts.values()),
                samples=1,
                sampling=section.sampling,
                tokenizer=tokenizer,
                batch_size=config.evaluate.batch_size,
                directory=folder / ("answers" if turn == 0 else f"answers-turn-{turn + 1}"),
            )
            for batch in batches:
                for answer in batch.answers:
                    one.take_response(items[answer.id], answer, tokenizer)
                progress.advance(len(batch.answers))
    one.write_answers(folder, model=model)
