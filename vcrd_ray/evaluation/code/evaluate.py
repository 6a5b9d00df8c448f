"""Solutions -> verdicts by EvalPlus's oracles, as they come. Knows nothing of models or of where solutions come from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.code.jobs import Workbench, open_workbench
from vcrd_ray.evaluation.code.solutions import Solution
from vcrd_ray.evaluation.code.tasks import CodeTask
from vcrd_ray.evaluation.code.truth import keep_truth
from vcrd_ray.evaluation.code.verdicts import Verdict, judged, unjudged


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How solutions are judged."""

    with_plus: bool
    """Also on the plus inputs."""
    sanitize_s: float
    """For the sanitizing of one text."""
    max_chars: int
    """Of a text that is to be sanitized."""


def evaluate_solutions(
    solutions: Sequence[Solution],
    tasks: Sequence[CodeTask],
    *,
    rules: Rules,
    cache_dir: Path,
    workers: int,
    allow_network: bool,
) -> Iterator[Verdict]:
    """Judge solutions, `workers` at a time; a verdict comes as soon as it is known, in no order.

    A caller that was interrupted passes the solutions that it has no verdict on. Each is judged in a sandbox of its own; one
    that hangs is ended there and counted. Expected outputs of the tasks are kept under `cache_dir`.

    Raises:
        ConfigError: EvalPlus is not installed.
        SandboxError: untrusted code cannot be isolated here; with `allow_network` it is run without isolation instead.
        DataError: a solution to no task, two with one id, or a task whose own solution does not run.
    """
    by_id = {task.id: task for task in tasks}
    strangers = sorted({solution.task_id for solution in solutions} - by_id.keys())
    if strangers:
        raise DataError(
            f"solutions to tasks that are not given: {', '.join(strangers[:5])}; read the file that has them"
        )
    twice = [id for id, count in Counter(solution.id for solution in solutions).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} solution ids are used twice, such as {twice[0]!r}; give each solution its own")
    if not solutions:
        return
    bench = open_workbench(allow_network=allow_network)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="code-check")
    try:
        # Expected outputs first, each once: no thread then computes what another is computing.
        needed = [by_id[id] for id in dict.fromkeys(solution.task_id for solution in solutions)]
        kept = pool.map(lambda task: keep_truth(task, bench=bench, cache_dir=cache_dir), needed)
        truths = {task.id: truth for task, truth in zip(needed, kept, strict=True)}

        def judge(solution: Solution) -> Verdict:
            return _judge(solution, by_id[solution.task_id], truths[solution.task_id], rules=rules, bench=bench)

        for future in as_completed([pool.submit(judge, solution) for solution in solutions]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _judge(solution: Solution, task: CodeTask, truth: Path, *, rules: Rules, bench: Workbench) -> Verdict:
    if solution.raw and len(solution.code) > rules.max_chars:
        reason = f"not sanitized: {len(solution.code)} characters, more than {rules.max_chars}"
        return unjudged(solution, "unsanitized", reason, with_plus=rules.with_plus, seconds=0.0)
    start = time.perf_counter()
    outcome = bench.check(
        solution.code, task, truth, raw=solution.raw, with_plus=rules.with_plus, sanitize_s=rules.sanitize_s
    )
    return judged(solution, outcome, with_plus=rules.with_plus, seconds=time.perf_counter() - start)
