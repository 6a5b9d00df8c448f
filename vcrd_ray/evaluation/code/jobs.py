"""A job for EvalPlus -> its answer, from a worker inside the sandbox. Knows nothing of files of tasks or of caches."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

from vcrd_ray.evaluation.code import worker
from vcrd_ray.evaluation.code.library import interpreter_paths, library_paths
from vcrd_ray.evaluation.code.sandbox import Isolation, Limits, Outcome, SandboxError, check_isolation, run
from vcrd_ray.evaluation.code.tasks import CodeTask

MIN_TIME_LIMIT_S = 4.0
"""For one input, or the following times the canonical solution's time where that is more. EvalPlus's repository has this value;
its released package has 1.0, at which a loaded machine fails right programs."""
TIME_LIMIT_FACTOR = 4.0

_SET_LIMIT_S = 65.0
"""What EvalPlus gives one set of inputs at most, its own waits included."""
_START_S = 30.0
_TRUTH_S = 600.0
_MEMORY_BYTES = 4 << 30
"""EvalPlus's own limit, so that programs fail here where they fail there."""
_PROBE = CodeTask(
    id="HumanEval/probe",
    dataset="humaneval",
    prompt="def same(x):\n",
    entry_point="same",
    record=json.dumps(
        {
            "task_id": "HumanEval/probe",
            "prompt": "def same(x):\n",
            "entry_point": "same",
            "canonical_solution": "    return x\n",
            "base_input": [[1]],
            "plus_input": [[2]],
            "atol": 0,
        }
    ).encode(),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workbench:
    """Where jobs are run: what the sandbox is made of here."""

    isolation: Isolation
    readable: tuple[Path, ...]
    library: tuple[Path, ...]

    def truth(self, task: CodeTask) -> Outcome:
        """The expected outputs of a task, pickled: to be opened in a sandbox only."""
        job = worker.TruthJob(kind="truth", dataset=task.dataset, record=task.record)
        return self._run([pickle.dumps(job)], wall_s=_TRUTH_S, file_bytes=2 << 30)

    def check(
        self, code: str, task: CodeTask, truth: bytes | Path, *, raw: bool, with_plus: bool, sanitize_s: float
    ) -> Outcome:
        """The worker's answer on a solution, as JSON. `truth` is what `truth` printed, or the file that holds it."""
        job = worker.CheckJob(
            kind="check",
            dataset=task.dataset,
            record=task.record,
            code=code,
            raw=raw,
            sanitize_s=sanitize_s,
            with_plus=with_plus,
            min_time_limit_s=MIN_TIME_LIMIT_S,
            time_limit_factor=TIME_LIMIT_FACTOR,
        )
        wall_s = _START_S + (sanitize_s if raw else 0) + _SET_LIMIT_S * (1 + with_plus)
        return self._run([pickle.dumps(job), truth], wall_s=wall_s, file_bytes=16 << 20)

    def _run(self, stdin: list[bytes | Path], *, wall_s: float, file_bytes: int) -> Outcome:
        limits = Limits(
            wall_s=wall_s,
            cpu_s=int(wall_s),
            memory_bytes=_MEMORY_BYTES,
            processes=16,
            file_bytes=file_bytes,
            disk_bytes=64 << 20,
        )
        environment = {
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(str(path) for path in self.library),
            # Expected outputs and a program's must meet sets in the same order, as in one run of EvalPlus.
            "PYTHONHASHSEED": "0",
            # A thread for each core would count as so many processes.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "EVALPLUS_MAX_MEMORY_BYTES": str(_MEMORY_BYTES),
        }
        return run(
            [sys.executable, "-s", "-P", "-B", str(Path(worker.__file__))],
            stdin=stdin,
            env=environment,
            readable=self.readable,
            limits=limits,
            isolation=self.isolation,
        )


def open_workbench(*, allow_network: bool) -> Workbench:
    """What is needed to judge on this machine, tried out.

    Raises:
        ConfigError: EvalPlus is not installed.
        SandboxError: untrusted code cannot be isolated here, or EvalPlus does not run inside the sandbox.
    """
    library = library_paths()
    bench = Workbench(
        isolation=check_isolation(allow_network=allow_network),
        readable=(*interpreter_paths(), *library, Path(worker.__file__).parent),
        library=library,
    )
    truth = bench.truth(_PROBE)
    tried = truth
    if truth.code == 0:
        program = "def same(x):\n    return x"
        tried = bench.check(program, _PROBE, truth.stdout, raw=True, with_plus=True, sanitize_s=_START_S)
    if tried.code or json.loads(tried.stdout)["plus"] != {"status": "pass", "failed_input": None}:
        raise SandboxError(
            f"evalplus does not judge a right program as right inside the sandbox: {tried.status}, exit status {tried.code},"
            f" {tried.stdout[-500:]!r}: {tried.stderr}"
        )
    return bench
