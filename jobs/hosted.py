"""An engine in a process of its own, because vLLM allows one a process and changes the process that imports it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.engines import Engine, VersionedEngine
from vcrd_ray.errors import ScheduleError
from vcrd_ray.types import FloatArray, IntArray, PairBatch, Prompt, Rollout, TeacherRequest, TeacherSignals

_START_S = 240.0


class HostedEngine(Engine, VersionedEngine):
    """`Engine` and `VersionedEngine` that pass calls on; an exception there is raised here."""

    fingerprint: str

    def __init__(self, load: Callable[[], Engine | VersionedEngine]) -> None:
        """Begin to start what `load` makes there; `wait_ready` ends that, so that several can start side by side."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, load), daemon=True)
        self._process.start()
        theirs.close()

    def wait_ready(self) -> HostedEngine:
        """Itself, once the model is loaded.

        Raises:
            ScheduleError: it did not start in time.
        """
        if not self._connection.poll(_START_S):
            raise ScheduleError(f"an engine process did not start in {_START_S:g} s")
        self.fingerprint = self._answer()
        return self

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection, *, seed: int) -> list[Rollout]:
        answer: list[Rollout] = self._ask("generate", prompts, sampling, seed=seed)
        return answer

    def annotate(self, batch: PairBatch, request: TeacherRequest) -> TeacherSignals:
        answer: TeacherSignals = self._ask("annotate", batch, request)
        return answer

    def load_version(self, directory: Path, kind: Literal["adapter", "weights"]) -> None:
        self._ask("load_version", directory, kind)

    def logprobs(self, prompt: IntArray, response: IntArray) -> FloatArray:
        answer: FloatArray = self._ask("logprobs", prompt, response)
        return answer

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, name: str, *args: Any, **named: Any) -> Any:
        self._connection.send((name, args, named))
        return self._answer()

    def _answer(self) -> Any:
        ok, value = self._connection.recv()
        if not ok:
            raise value
        return value


def _serve(connection: Connection, load: Callable[[], Engine | VersionedEngine]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        engine = load()
    except Exception as error:
        connection.send((False, error))
        return
    connection.send((True, engine.fingerprint))
    while True:
        try:
            name, args, named = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(engine, name)(*args, **named)))
        except Exception as error:
            connection.send((False, error))
