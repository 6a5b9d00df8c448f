"""The training side of a version: what the student is now -> a described directory that rollout actors load.

All ranks call it together. Knows no Ray and no rollout actors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from vcrd_ray.method.fused import head_logits
from vcrd_ray.models.backend import Backend
from vcrd_ray.models.batching import response_batch
from vcrd_ray.models.checkpoint_files import pad_id
from vcrd_ray.runs.files import written_aside
from vcrd_ray.runs.storage import Store
from vcrd_ray.training.on_policy.policy_versions import (
    Canary,
    Kind,
    VersionRecord,
    bring_version,
    check_changed,
    describe_version,
    prune_versions,
    read_version,
    version_directory,
)
from vcrd_ray.training.on_policy.requests import PolicyVersion
from vcrd_ray.types import RolloutPair

_CANARY_TOKENS = 64
"""Longest response of a canary: enough to tell versions apart, little to compute."""
VERSIONS = "student_versions"
VERSIONS_LOG = "student_versions.jsonl"


class Publisher:
    """Writes the versions of one run's student. Must be made before a checkpoint is loaded into the student."""

    def __init__(
        self,
        *,
        backend: Backend,
        run_dir: Path,
        pairs: Sequence[RolloutPair],
        merged: bool,
        store: Store | None = None,
    ) -> None:
        """`pairs`: those of the run; the first student response is the canary. All ranks have the same.

        With a store, the run's folder in storage, versions are pushed there: rollout actors of other nodes find them.
        """
        self._backend = backend
        self._store = None if store is None else store.within(VERSIONS)
        self.root = run_dir / VERSIONS
        self._log = run_dir / VERSIONS_LOG
        self._kind: Kind = "adapter" if backend.student.has_adapter and not merged else "weights"
        first = next(pair for pair in pairs if len(pair.student_ids))
        self._canary = replace(first.only("student"), student_ids=first.student_ids[:_CANARY_TOKENS])
        self._base_logprobs = self._canary_logprobs()
        self._last: VersionRecord | None = None
        self._published: PolicyVersion | None = None
        self._learnt = False

    def note(self, *, learnt: bool) -> None:
        """An update is done; `learnt`: it had a learning rate and a gradient."""
        self._learnt |= learnt

    def publish(self, number: int) -> PolicyVersion:
        """Write the student as it is as a version, once.

        Raises:
            SyncError: nothing changed although something was learnt.
            CheckpointError: the disk refused.
        """
        if self._published is not None and self._published.number == number:
            return self._published
        started = time.perf_counter()
        canary = Canary(
            prompt_ids=tuple(self._canary.prompt_ids.tolist()),
            response_ids=tuple(self._canary.student_ids.tolist()),
            logprobs=self._canary_logprobs(),
            base_logprobs=self._base_logprobs,
        )
        final = version_directory(self.root, number)
        # All ranks gather, rank 0 writes.
        with written_aside(final, one_writer=True) if self._backend.rank == 0 else nullcontext(final) as directory:
            if self._backend.rank == 0:
                directory.mkdir(parents=True)
            self._backend.write_version(directory, merged=self._kind == "weights")
            if self._backend.rank == 0:
                record = describe_version(directory, number, kind=self._kind, canary=canary)
        if self._backend.rank == 0:
            check_changed(record, self._last, learnt=self._learnt)
            if self._store is not None:
                self._store.push(final, final.name)
            self._last = record
            facts = record.model_dump(include={"number", "kind", "digest", "num_bytes"})
            moved = max(abs(a - b) for a, b in zip(canary.logprobs, canary.base_logprobs, strict=True))
            seconds = time.perf_counter() - started
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(facts | {"canary_from_base": moved, "seconds": seconds}) + "\n")
        self._barrier()
        self._learnt = False
        self._published = self.find(number)
        return self._published

    def find(self, number: int) -> PolicyVersion:
        """A version that was published before.

        Raises:
            SyncError: it is not there any more.
        """
        directory = version_directory(self.root, number)
        bring_version(directory, self._store)
        return PolicyVersion(number=number, directory=directory, digest=read_version(directory).digest)

    def prune(self, kept: Iterable[int]) -> None:
        """Remove all versions but these."""
        if self._backend.rank == 0:
            for name in prune_versions(self.root, set(kept)):
                if self._store is not None:
                    self._store.remove(name)

    def _barrier(self) -> None:
        # No rank may name a version in a request before it has its name on disk.
        self._backend.sum_over_ranks(torch.zeros(1, device=self._backend.student.device))

    @torch.no_grad()
    def _canary_logprobs(self) -> tuple[float, ...]:
        """Of each canary token over all rows of the head, as an engine gives them."""
        student = self._backend.student
        student.eval()
        hidden = self._backend.forward(response_batch([self._canary], pad_id(student.tokenizer), student.device))
        logits = head_logits(hidden, student.head, vocab_size=len(student.head), dtype=torch.float32)
        student.train()
        tokens = torch.from_numpy(self._canary.student_ids).long().to(student.device)
        return tuple(torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0].tolist())
