"""Holds one version of the student at a time and writes responses with it. Knows nothing of Ray or training.

A request names its version, so a writer that was just started, or that missed some, becomes the right one before it
answers: there is no way to be asked with the wrong weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import Empty, Queue
from threading import Thread

import numpy as np

from vcrd_ray.config import Config
from vcrd_ray.config.base import ROUNDING
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.engines import VersionedEngine
from vcrd_ray.errors import SyncError
from vcrd_ray.training.on_policy.policy_versions import check_arrived, check_canary, read_version
from vcrd_ray.training.on_policy.requests import (
    Answers,
    AnswerSource,
    PolicyVersion,
    ResponseRequest,
    ResponseSource,
    Written,
)
from vcrd_ray.training.signals import Deferred, Future
from vcrd_ray.types import PairBatch, Prompt, Rollout, RolloutPair


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterSettings:
    """What a run wants of its writers."""

    sampling: SamplingSection
    watched: SamplingSection
    """Of answers to held-out problems."""
    seed: int
    max_length: int
    """Longest prompt plus response; responses are cut there."""
    batch_size: int
    """Responses written in one generate call."""
    canary_tolerance: float
    sync_timeout_s: float

    @classmethod
    def of(cls, config: Config) -> WriterSettings:
        """Those of a run."""
        refresh = config.rollouts.refresh
        return cls(
            sampling=config.rollouts.sampling,
            watched=config.distill.watch.sampling,
            seed=config.run.seed,
            max_length=config.distill.max_length,
            batch_size=config.rollouts.batch_size,
            canary_tolerance=refresh.canary_tolerance or ROUNDING[config.student.dtype],
            sync_timeout_s=refresh.sync_timeout_s,
        )


class ResponseWriter:
    """An engine and the version that it holds."""

    def __init__(self, engine: VersionedEngine, settings: WriterSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._version: PolicyVersion | None = None
        self._canary_difference = 0.0

    def write(self, request: ResponseRequest) -> tuple[list[PairBatch], Written]:
        """The request's batches with their new responses.

        Raises:
            SyncError: the version did not arrive in time, not as it was sent, or is not what answers.
        """
        started = time.perf_counter()
        fresh = self._version != request.version
        if fresh:
            self._become(request.version)
        synced = time.perf_counter()
        wanted = [
            (batch.update, pair)
            for batch, renewed in zip(request.batches, request.renewed, strict=True)
            for pair, new in zip(batch.pairs, renewed, strict=True)
            if new
        ]
        rollouts = iter(self._generate(wanted))
        written: list[Rollout] = []

        def renew(pair: RolloutPair) -> RolloutPair:
            written.append(next(rollouts))
            return replace(pair, student_ids=written[-1].ids, student_version=request.version.number)

        batches = [
            replace(batch, pairs=tuple(renew(p) if new else p for p, new in zip(batch.pairs, renewed, strict=True)))
            for batch, renewed in zip(request.batches, request.renewed, strict=True)
        ]
        return batches, Written(
            version=request.version.number,
            rollouts=tuple(written),
            seconds=time.perf_counter() - synced,
            sync_s=synced - started if fresh else 0.0,
            canary_difference=self._canary_difference,
        )

    def answer(self, version: PolicyVersion, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Answers of a version to held-out problems.

        Raises:
            SyncError: as for `write`.
        """
        if self._version != version:
            self._become(version)
        made: list[Rollout] = []
        for start in range(0, len(prompts), self._settings.batch_size):
            batch = prompts[start : start + self._settings.batch_size]
            made += self._engine.generate(batch, self._settings.watched, seed=self._settings.seed)
        return made

    def _become(self, ref: PolicyVersion) -> None:
        """Load a version and compare its log-probabilities of the canary; this writer holds no version until both succeeded."""
        self._version = None

        def load() -> float:
            record = read_version(ref.directory)
            check_arrived(ref, record)
            self._engine.load_version(ref.directory, record.kind)
            canary = record.canary
            answered = self._engine.logprobs(
                np.asarray(canary.prompt_ids, dtype=np.int32), np.asarray(canary.response_ids, dtype=np.int32)
            )
            return check_canary(record, answered, tolerance=self._settings.canary_tolerance)

        self._canary_difference = _within(
            load,
            self._settings.sync_timeout_s,
            f"version {ref.number} of the student was not loaded from {ref.directory} within"
            f" {self._settings.sync_timeout_s:g} s (rollouts.refresh.sync_timeout_s): look at the rollout actor's log and the"
            " storage, or allow more time",
        )
        self._version = ref

    def _generate(self, wanted: list[tuple[int, RolloutPair]]) -> list[Rollout]:
        made: list[Rollout] = []
        size = self._settings.batch_size
        for start in range(0, len(wanted), size):
            made += self._generate_batch(wanted[start : start + size])
        return made

    def _generate_batch(self, wanted: list[tuple[int, RolloutPair]]) -> list[Rollout]:
        settings = self._settings
        # Random numbers are drawn by the prompt's id: a pair that comes again in another update is sampled apart.
        prompts = [
            Prompt(id=f"{pair.id}@{update}", question=pair.question, gold=None, ids=pair.prompt_ids)
            for update, pair in wanted
        ]
        room = settings.max_length - min(len(prompt.ids) for prompt in prompts)
        sampling = settings.sampling.model_copy(update={"max_new_tokens": min(settings.sampling.max_new_tokens, room)})
        rollouts = self._engine.generate(prompts, sampling, seed=settings.seed)
        return [
            replace(_cut(rollout, settings.max_length - len(pair.prompt_ids)), prompt_id=pair.id)
            for rollout, (_, pair) in zip(rollouts, wanted, strict=True)
        ]


def _cut(rollout: Rollout, length: int) -> Rollout:
    if len(rollout.ids) <= length:
        return rollout
    return replace(rollout, ids=rollout.ids[:length], logprobs=rollout.logprobs[:length], finish_reason="length")


def _within(work: Callable[[], float], timeout_s: float, otherwise: str) -> float:
    """The result of some work, or an error in words when it hangs. A hanging thread ends with the process."""
    outcome: Queue[float | BaseException] = Queue()

    def run() -> None:
        try:
            outcome.put(work())
        except BaseException as error:
            outcome.put(error)

    Thread(target=run, daemon=True).start()
    try:
        found = outcome.get(timeout=timeout_s)
    except Empty:
        raise SyncError(otherwise) from None
    if isinstance(found, BaseException):
        raise found
    return found


class LocalAnswers(Deferred[list[Rollout]], Answers):
    """`Answers` in this process: there when they are asked after."""

    def ready(self) -> bool:
        """Always: asking makes them."""
        return True


class LocalResponses(ResponseSource, AnswerSource):
    """`ResponseSource` and `AnswerSource` in this process: written when they are waited for."""

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer

    def request(self, request: ResponseRequest) -> tuple[list[Future[PairBatch]], Future[Written]]:
        work = Deferred(lambda: self._writer.write(request))
        batches = [Deferred(lambda i=i: work.result()[0][i]) for i in range(len(request.batches))]  # type: ignore[misc]
        return list(batches), Deferred(lambda: work.result()[1])

    def answer(self, version: PolicyVersion, prompts: tuple[Prompt, ...]) -> LocalAnswers:
        return LocalAnswers(lambda: self._writer.answer(version, prompts))
