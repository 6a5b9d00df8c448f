"""Scores that depend on no student weights, kept on disk: once judged, a fixed rollout is not judged again.

What the teacher proposes on a student's rollout is fixed, and so are both scores at each of its positions: they are looked
up across epochs, runs and methods by a hash of everything that they depend on. A SQLite file holds them; a killed process
leaves it whole, and what is damaged on disk is recomputed.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vcrd_ray.judges import JudgeProfile
from vcrd_ray.types import FloatArray, JudgeRequest, JudgeScores

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_HOUR = 3600
_PUTS_BETWEEN_CHECKS = 32
"""Adding up what is kept reads an index of all of it."""
_KEPT_SHARE = 0.9
"""What is left of the bound when the least recently used scores have been dropped."""


class ScoreStore:
    """Logits by key, at most `max_bytes` of them; the least recently used are dropped. Safe for several processes."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Open the file at `path`, or make it. One that is no such store is renamed and started afresh.

        Raises:
            sqlite3.OperationalError, OSError: the file is well or out of reach, but cannot be opened now.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._puts = 0
        self._turn = threading.Lock()  # for threads of one process; the file has locks of its own for processes
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.OperationalError:
            raise  # locked, unreachable, no space: nothing that says that the file is damaged
        except sqlite3.DatabaseError as error:
            damaged = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(damaged)
            for log in ("-wal", "-shm"):
                path.with_name(path.name + log).unlink(missing_ok=True)
            _LOG.warning("%s is no readable score cache (%s): kept as %s, started afresh", path, error, damaged.name)
            self._connection = self._open()

    def get(self, keys: Sequence[bytes]) -> list[tuple[FloatArray, FloatArray] | None]:
        """The two arrays kept under each key; None where there is nothing, or nothing whole."""
        with self._turn:
            return self._get(keys)

    def _get(self, keys: Sequence[bytes]) -> list[tuple[FloatArray, FloatArray] | None]:
        hour = int(time.time()) // _HOUR
        found: list[tuple[FloatArray, FloatArray] | None] = []
        stale: list[tuple[int, bytes]] = []
        for key in keys:
            row = self._connection.execute("SELECT value, checksum, used FROM scores WHERE key = ?", (key,)).fetchone()
            if row is None or zlib.crc32(row[0]) != row[1]:
                found.append(None)
                continue
            own, other = np.frombuffer(row[0], dtype=np.float32).reshape(2, -1)
            found.append((own.copy(), other.copy()))
            if row[2] != hour:
                stale.append((hour, key))
        if stale:
            with self._connection:
                self._connection.executemany("UPDATE scores SET used = ? WHERE key = ?", stale)
        return found

    def put(self, entries: Sequence[tuple[bytes, FloatArray, FloatArray]]) -> None:
        """Keep some scores: all of them or, where the process dies in between, none."""
        hour = int(time.time()) // _HOUR
        rows = []
        for key, own, other in entries:
            value = np.stack([own, other]).astype(np.float32).tobytes()
            rows.append((key, value, zlib.crc32(value), len(value), hour))
        with self._turn, self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", rows)
            due = self._puts % _PUTS_BETWEEN_CHECKS == 0
            self._puts += 1
            if due:
                (total,) = self._connection.execute("SELECT COALESCE(SUM(size), 0) FROM scores").fetchone()
                if total > self._max_bytes:
                    self._drop(total - int(_KEPT_SHARE * self._max_bytes))

    def __len__(self) -> int:
        (count,) = self._connection.execute("SELECT COUNT(*) FROM scores").fetchone()
        return int(count)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores"
                " (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER, size INTEGER, used INTEGER)"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS by_use ON scores (used, size)")
        return connection

    def _drop(self, size: int) -> None:
        keys = []
        for key, bytes_of_key in self._connection.execute("SELECT key, size FROM scores ORDER BY used, rowid"):
            keys.append((key,))
            size -= bytes_of_key
            if size <= 0:
                break
        self._connection.executemany("DELETE FROM scores WHERE key = ?", keys)


def open_score_cache(path: Path, *, max_bytes: int, profile: JudgeProfile) -> ScoreCache | None:
    """A judge's cache in the file at `path`; None, with a warning, where there can be none."""
    try:
        return ScoreCache(ScoreStore(path, max_bytes=max_bytes), profile)
    except (sqlite3.Error, OSError) as error:
        _LOG.warning(
            "no scores are kept: %s cannot be opened (%s); set judge.cache.path to a local directory", path, error
        )
        return None


def scores_key(fingerprint: str, request: JudgeRequest, trajectory: int) -> bytes:
    """A hash of all that the scores of one trajectory of a request depend on."""
    digest = hashlib.blake2b(f"{_FORMAT}:{fingerprint}:".encode(), digest_size=20)
    for part in (
        request.questions[trajectory].encode(),
        request.responses[trajectory].astype("<i4").tobytes(),
        request.proposals[trajectory].astype("<i4").tobytes(),
    ):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class ScoreCache:
    """One judge's scores in a store."""

    def __init__(self, store: ScoreStore, profile: JudgeProfile) -> None:
        """The profile's fingerprint is part of every key: another judge's scores are not found."""
        self._store = store
        self._profile = profile

    def score(self, request: JudgeRequest, ask: Callable[[JudgeRequest], JudgeScores]) -> JudgeScores:
        """The scores; the judge is asked for what is not kept.

        `num_tokens` counts what it read now. An answer of another size is passed on as it is; scores that are no numbers are
        not kept.
        """
        start = time.perf_counter()
        keys = [scores_key(self._profile.fingerprint, request, i) for i in range(len(request.questions))]
        try:
            found = self._store.get(keys)
        except sqlite3.Error as error:
            _LOG.warning("%s cannot be read: %s; scoring without it", self._store.path, error)
            return ask(request)
        lengths = [len(response) for response in request.responses]
        found = [
            pair if pair is not None and len(pair[0]) == n else None for pair, n in zip(found, lengths, strict=True)
        ]
        missing = [i for i, pair in enumerate(found) if pair is None]
        num_tokens = 0
        if missing:
            asked = JudgeRequest(
                questions=tuple(request.questions[i] for i in missing),
                responses=tuple(request.responses[i] for i in missing),
                proposals=tuple(request.proposals[i] for i in missing),
            )
            scores = ask(asked)
            size = sum(lengths[i] for i in missing)
            if not len(scores.trunk_logit) == len(scores.branch_logit) == size:
                return scores if len(missing) == len(lengths) else ask(request)
            num_tokens = scores.num_tokens
            cuts = np.cumsum([lengths[i] for i in missing])[:-1]
            parts = zip(np.split(scores.trunk_logit, cuts), np.split(scores.branch_logit, cuts), strict=True)
            scored = dict(zip(missing, parts, strict=True))
            self._keep([(keys[i], own, other) for i, (own, other) in scored.items()])
            found = [scored.get(i, pair) for i, pair in enumerate(found)]
        pairs = [pair for pair in found if pair is not None]
        nothing = np.zeros(0, dtype=np.float32)
        return JudgeScores(
            trunk_logit=np.concatenate([nothing, *(own for own, _ in pairs)]),
            branch_logit=np.concatenate([nothing, *(other for _, other in pairs)]),
            num_tokens=num_tokens,
            seconds=time.perf_counter() - start,
        )

    def _keep(self, entries: Sequence[tuple[bytes, FloatArray, FloatArray]]) -> None:
        # A judge of whole steps has no score for a token that the trajectory does not say.
        of_steps = self._profile.scores == "step"
        whole = [e for e in entries if np.isfinite(e[1]).all() and (of_steps or np.isfinite(e[2]).all())]
        try:
            self._store.put(whole)
        except sqlite3.Error as error:
            _LOG.warning("%s cannot be written: %s; %d trajectories not kept", self._store.path, error, len(whole))
