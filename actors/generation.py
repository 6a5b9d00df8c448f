"""Offline rollouts through Ray Data. Knows no training."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch

from actors.failures import raised_on_purpose
from actors.placement import role_resources
from vcrd_ray.config import Config
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.models import TeacherSection
from vcrd_ray.data.manifest import PartTotals
from vcrd_ray.data.rollouts import part_path, write_block
from vcrd_ray.engines.loading import load_engine
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.runs.storage import Store
from vcrd_ray.types import Prompt, Rollout


class _GenerateStage:
    """A Ray Data stage that adds one model's responses to a block of prompts.

    A block is one row: an index, and the pickled prompts with the responses and seconds of each model so far.
    """

    def __init__(
        self, section: TeacherSection, path: str, *, sampling: SamplingSection, batch_size: int, seed: int
    ) -> None:
        torch.set_num_threads(section.threads)
        self._engine = load_engine(section, path, use="generate")
        self._tokenizer = load_tokenizer(resolve_model(path))
        self._sampling = sampling
        self._batch_size = batch_size
        self._seed = seed

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        prompts, *made = pickle.loads(row["content"])
        responses: list[tuple[Rollout, str]] = []
        seconds = 0.0
        for start in range(0, len(prompts), self._batch_size):
            started = time.perf_counter()
            rollouts = self._engine.generate(prompts[start : start + self._batch_size], self._sampling, seed=self._seed)
            seconds += time.perf_counter() - started
            responses += [(r, self._tokenizer.decode(r.ids, skip_special_tokens=True)) for r in rollouts]
        return {"block": row["block"], "content": pickle.dumps([prompts, *made, (responses, seconds)])}


def generate_rollouts(
    config: Config,
    directory: Path,
    blocks: Sequence[tuple[int, list[Prompt]]],
    *,
    on_block: Callable[[PartTotals], None],
) -> None:
    """Respond to each block of prompts with teacher and student, and write it. Blocks may finish in any order.

    Args:
        blocks: indices, and a prompt for each pair under the pair's id.
        on_block: called with the totals of each block when it is on disk.

    Raises:
        VcrdError: what a task raised on purpose: a full disk, logits that are no numbers. Blocks on disk stay.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    def write(row: dict[str, Any]) -> dict[str, Any]:
        prompts, (teacher, teacher_s), (student, student_s) = pickle.loads(row["content"])
        totals = write_block(directory, int(row["block"]), prompts, teacher, student, seconds=(teacher_s, student_s))
        if storage is not None:
            # This task's node may be any; the driver takes the parts over at the end.
            store, part = Store(storage).within(directory.name), part_path(directory, int(row["block"]))
            store.push(part, part.relative_to(directory).as_posix())
        return {"totals": totals.model_dump_json()}

    storage = config.run.storage
    rows = [{"block": block, "content": pickle.dumps([prompts])} for block, prompts in blocks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    resources = role_resources(config, "teacher")
    section, rollouts = config.teacher, config.rollouts
    # The second model samples from a stream of its own: with one seed, equal models would give equal responses.
    for path, seed in ((config.teacher.path, 2 * config.run.seed), (config.student.path, 2 * config.run.seed + 1)):
        dataset = dataset.map(
            _GenerateStage,
            fn_constructor_args=(section, path),
            fn_constructor_kwargs={
                "sampling": rollouts.sampling,
                "batch_size": rollouts.batch_size,
                "seed": seed,
            },
            compute=ray.data.ActorPoolStrategy(size=section.replicas),
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            resources={name: 1.0 for name in resources if name not in ("CPU", "GPU")},
        )
    try:
        for done in dataset.map(write).iter_rows():
            on_block(PartTotals.model_validate_json(done["totals"]))
    except Exception as error:  # Ray Data wraps what tasks raise in several ways
        if (cause := raised_on_purpose(error)) is not None:
            raise cause from None
        raise
