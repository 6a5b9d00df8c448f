"""What all jobs share: checks before anything is loaded, the dry run, and progress a person can follow. No torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vcrd_ray.config import Config
from vcrd_ray.config.data import Prompts
from vcrd_ray.config.models import ModelJudge
from vcrd_ray.report.live import wait_share
from vcrd_ray.runs.storage import Store

_PLAIN_INTERVAL_S = 5.0
_POLL_S = 0.5
CONSOLE = Console(stderr=True)


def check_prompts(section: Prompts, *, fetch: bool = True) -> None:
    """Refuse data sets that are not there.

    Without `fetch` nothing is downloaded: data sets of the hub are named on standard error and not checked.

    Raises:
        DataError: no such file, folder, split or column.
    """
    from vcrd_ray.data.problems import check_problems

    remote = check_problems(section, fetch=fetch)
    if remote:
        print(f"not checked, because a dry run fetches nothing from the hub: {', '.join(remote)}", file=sys.stderr)


def check_models(config: Config, *, teacher: bool, judge: bool, fetch: bool) -> None:
    """Resolve the models that a job will load and compare their tokenizers; no weights are read.

    Without `fetch` nothing is downloaded: models of the hub are named on standard error and not compared.

    Raises:
        ModelError: a model is missing, or its tokenizer does not fit the student's.
    """
    from vcrd_ray.judges.calibrated import read_calibration
    from vcrd_ray.judges.compatibility import check_same_vocabulary
    from vcrd_ray.judges.loading import check_judge_tokenizer
    from vcrd_ray.models.checkpoint_files import load_tokenizer, must_be_fetched, resolve_model

    judge_path = config.judge.path if isinstance(config.judge, ModelJudge) else ""
    judge = judge and config.distill.objective.needs_judge
    paths = [config.student.path, *[config.teacher.path] * teacher, *[judge_path] * bool(judge and judge_path)]
    remote = [] if fetch else [path for path in dict.fromkeys(paths) if must_be_fetched(path)]
    if remote:
        print(f"not checked, because a dry run fetches nothing: {', '.join(remote)}", file=sys.stderr)
    if config.student.path in remote:
        return
    student = load_tokenizer(resolve_model(config.student.path))
    if teacher and config.teacher.path not in remote:
        check_same_vocabulary(student, load_tokenizer(resolve_model(config.teacher.path)))
    if judge and judge_path and judge_path not in remote:
        check_judge_tokenizer(config.judge, policy=config.student.path)
    if judge and config.judge.calibration is not None:
        read_calibration(config.judge.calibration)


def model_location(config: Config, job: str) -> str:
    """Where a training of this run leaves its model: a directory, or a folder in storage."""
    if config.run.storage is not None:
        return Store(config.run.storage).within(job).within("model").uri
    return str((config.run.dir / job / "model").resolve())


def push_report(config: Config) -> None:
    """Bring what stands at the top of the run directory to storage, where there is one."""
    if config.run.storage is not None:
        for file in sorted(config.run.dir.glob("*.*")):
            if file.is_file() and not file.name.startswith("."):
                Store(config.run.storage).push(file, file.name)


def print_dry_run(config: Config, sections: tuple[str, ...], *, actors: bool) -> None:
    """The resolved config as YAML, and what would be asked of the cluster, to standard output."""
    resolved = {name: value for name, value in config.model_dump(mode="json").items() if name in sections}
    print(yaml.safe_dump(resolved, sort_keys=False).rstrip())
    if actors:
        from actors.placement import placement_table

        print("\nplacement:")
        for role, count, resources in placement_table(config):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
            print(f"  {count} x {role}: {asked} each")


class StageProgress:
    """A progress bar in a terminal, a line every few seconds in a log."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._done = 0
        self._said = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if CONSOLE.is_terminal:
            self._bar = Progress(
                TextColumn(f"{self._stage:<18}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=CONSOLE,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=self._total, note="")
        else:
            print(f"{self._stage}: starting", file=sys.stderr, flush=True)
        return self

    def set(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show that `done` units of work are finished."""
        self._done, self._total = done, total or self._total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, note=note)
        elif time.monotonic() - self._said > _PLAIN_INTERVAL_S or done == self._total:
            self._said = time.monotonic()
            print(f"{self._stage}: {done}/{self._total} {self._unit} {note}", file=sys.stderr, flush=True)

    def advance(self, count: int, note: str = "") -> None:
        """Show that `count` more units are finished."""
        self.set(self._done + count, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


STARTED = time.time()
"""When this job began; what run.must_save_by counts from."""


@contextmanager
def follow_training(stage: str, config: Config) -> Iterator[dict[str, Any]]:
    """Around a training: show its progress, and let SIGTERM and run.must_save_by end it with everything saved.

    Yields:
        What ranks must be told for that: keyword arguments of `RankJob`.
    """
    from actors.ranks.notes import ControlNotes
    from actors.ranks.stopping import stop_on_sigterm

    stop, notes = threading.Event(), ControlNotes()
    with StageProgress(stage, 0, "updates") as progress, stop_on_sigterm(notes):
        show = _progress_reader(partial(notes.read, "progress"), progress)

        def poll() -> None:
            while not stop.wait(_POLL_S):
                show()

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield {"notes": notes, "must_save_by": config.run.deadline(STARTED)}
        finally:
            stop.set()
            thread.join()
            show()
            notes.remove()


def _progress_reader(read: Callable[[], dict[str, float] | None], progress: StageProgress) -> Callable[[], None]:
    seen = -1

    def show() -> None:
        nonlocal seen
        last = read()
        if last is None or last["update"] == seen:
            return
        seen = int(last["update"])
        note = f"loss {last['loss']:.4f}  {last['time/update_s']:.2f} s/update"
        if waited := wait_share([last]):
            note += f"  waiting {100 * waited:.0f}%"
        progress.set(seen + 1, note, total=int(last["num_updates"]))

    return show
