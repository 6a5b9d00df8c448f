"""Expected outputs of tasks, computed once and kept on disk. Knows nothing of solutions.

What is kept was pickled in a sandbox by code from a data file: it is opened in a sandbox only, never here.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.code.jobs import Workbench
from vcrd_ray.evaluation.code.library import EVALPLUS_VERSION
from vcrd_ray.evaluation.code.tasks import CodeTask
from vcrd_ray.runs.files import written_aside


def keep_truth(task: CodeTask, *, bench: Workbench, cache_dir: Path) -> Path:
    """The file that holds the task's expected outputs; they are computed where it is not there yet.

    Raises:
        DataError: the task's own solution does not run.
    """
    path = cache_dir / f"{_key(task)}.pickle"
    if path.exists():
        return path
    outcome = bench.truth(task)
    if outcome.status != "exited" or outcome.code != 0:
        raise DataError(
            f"{task.id}: the canonical solution does not run ({outcome.status}, status {outcome.code}): {outcome.stderr}"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Several processes may compute the same one: each writes a file of its own, and any of them will do.
    with written_aside(path) as temporary:
        temporary.write_bytes(outcome.stdout)
    return path


def _key(task: CodeTask) -> str:
    """Hash of all that the expected outputs depend on."""
    made_by = f"{task.dataset} {EVALPLUS_VERSION} {platform.python_version()}\n"
    return hashlib.sha256(made_by.encode() + task.record).hexdigest()
