"""Kept scores: asked once, the same as asked again, bounded, and never wrong because of a damaged file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcrd_ray.judges import JudgeProfile
from vcrd_ray.judges.cache import ScoreCache, ScoreStore, open_score_cache, scores_key
from vcrd_ray.types import JudgeRequest, JudgeScores

MIB = 1024**2


class CountingJudge:
    """Scores are a hash of what they depend on; remembers what it was asked."""

    def __init__(self, fingerprint: str = "a", *, broken: bool = False) -> None:
        self.profile = JudgeProfile(fingerprint=fingerprint, family="test", scores="token", reads="", trained_on="")
        self.asked: list[str] = []
        self.broken = broken

    def score(self, request: JudgeRequest) -> JudgeScores:
        self.asked += request.questions
        own = [np.sin(r + len(q)) for q, r in zip(request.questions, request.responses, strict=True)]
        other = [np.cos(c + len(q)) for q, c in zip(request.questions, request.proposals, strict=True)]
        nothing = np.zeros(0)
        logits = [np.concatenate([nothing, *side]).astype(np.float32) for side in (own, other)]
        if self.broken:
            logits[1][-1:] = np.nan
        size = sum(len(r) for r in request.responses)
        return JudgeScores(trunk_logit=logits[0], branch_logit=logits[1], num_tokens=size, seconds=0.0)


class CachedJudge:
    def __init__(self, judge: CountingJudge, store: ScoreStore) -> None:
        self.judge, self.cache = judge, ScoreCache(store, judge.profile)

    def score(self, request: JudgeRequest) -> JudgeScores:
        return self.cache.score(request, self.judge.score)


def request(*lengths: int, first: int = 0) -> JudgeRequest:
    responses = tuple(np.arange(first, first + n, dtype=np.int32) for n in lengths)
    return JudgeRequest(
        questions=tuple(f"q{n}" for n in lengths), responses=responses, proposals=tuple(r + 1 for r in responses)
    )


def assert_same(left: JudgeScores, right: JudgeScores) -> None:
    assert np.array_equal(left.trunk_logit, right.trunk_logit)
    assert np.array_equal(left.branch_logit, right.branch_logit)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "scores.sqlite"


def test_what_was_judged_is_not_judged_again_not_even_by_another_process(path: Path) -> None:
    judge, plain = CountingJudge(), CountingJudge()
    cached = CachedJudge(judge, ScoreStore(path, max_bytes=MIB))
    assert_same(cached.score(request(3, 5)), plain.score(request(3, 5)))
    # Others together with known ones: only they are asked, and all come back in order.
    mixed = cached.score(request(7, 5, 0, 3))
    assert_same(mixed, plain.score(request(7, 5, 0, 3)))
    assert judge.asked == ["q3", "q5", "q7", "q0"] and mixed.num_tokens == 7
    later = CountingJudge()
    again = CachedJudge(later, ScoreStore(path, max_bytes=MIB)).score(request(5, 7))
    assert_same(again, plain.score(request(5, 7)))
    assert later.asked == [] and again.num_tokens == 0


def test_a_key_changes_with_all_that_scores_depend_on() -> None:
    one = request(4)
    other_candidate = JudgeRequest(questions=one.questions, responses=one.responses, proposals=one.responses)
    other_question = JudgeRequest(questions=("q",), responses=one.responses, proposals=one.proposals)
    keys = {
        scores_key("a", one, 0),
        scores_key("b", one, 0),
        scores_key("a", request(4, first=1), 0),
        scores_key("a", other_candidate, 0),
        scores_key("a", other_question, 0),
    }
    assert len(keys) == 5
    assert scores_key("a", request(2, 4), 1) == scores_key("a", one, 0)


def test_scores_of_another_judge_are_not_mistaken(path: Path) -> None:
    CachedJudge(CountingJudge("a"), ScoreStore(path, max_bytes=MIB)).score(request(3))
    other = CountingJudge("b")
    CachedJudge(other, ScoreStore(path, max_bytes=MIB)).score(request(3))
    assert other.asked == ["q3"]


def test_the_least_recently_used_are_dropped_beyond_the_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vcrd_ray.judges.cache.time.time", lambda: now[0])
    monkeypatch.setattr("vcrd_ray.judges.cache._PUTS_BETWEEN_CHECKS", 1)
    judge = CountingJudge()
    store = ScoreStore(path, max_bytes=10 * 8 * 100)  # ten trajectories of 100 positions
    cached = CachedJudge(judge, store)
    for i in range(10):
        now[0] += 3600
        cached.score(request(100, first=i))
    now[0] += 3600
    cached.score(request(100, first=0))  # used again: it stays
    now[0] += 3600
    cached.score(request(100, first=10))
    assert len(store) == 9
    judge.asked.clear()
    cached.score(request(100, first=0))
    assert judge.asked == []
    cached.score(request(100, first=1))
    assert judge.asked == ["q100"]


def test_scores_that_are_no_numbers_are_not_kept(path: Path) -> None:
    judge = CountingJudge(broken=True)
    cached = CachedJudge(judge, ScoreStore(path, max_bytes=MIB))
    assert np.isnan(cached.score(request(3, 4)).branch_logit[-1])
    cached.score(request(3, 4))
    assert judge.asked == ["q3", "q4", "q4"]


def test_an_answer_of_another_size_is_passed_on_and_not_kept(path: Path) -> None:
    class ShortJudge(CountingJudge):
        def score(self, request: JudgeRequest) -> JudgeScores:
            whole = super().score(request)
            return replace(whole, trunk_logit=whole.trunk_logit[:-1])

    store = ScoreStore(path, max_bytes=MIB)
    assert len(CachedJudge(ShortJudge(), store).score(request(3, 4)).trunk_logit) == 6
    assert len(store) == 0
    CachedJudge(CountingJudge(), store).score(request(3))
    assert len(CachedJudge(ShortJudge(), store).score(request(3, 4)).trunk_logit) == 6


def test_a_damaged_value_is_judged_again(path: Path) -> None:
    judge, plain = CountingJudge(), CountingJudge()
    CachedJudge(judge, ScoreStore(path, max_bytes=MIB)).score(request(3, 4))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE scores SET value = zeroblob(length(value)) WHERE size = 24")
    connection.close()
    scores = CachedJudge(judge, ScoreStore(path, max_bytes=MIB)).score(request(3, 4))
    assert_same(scores, plain.score(request(3, 4)))
    assert judge.asked == ["q3", "q4", "q3"]


def test_a_file_that_is_no_store_is_renamed_and_begun_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    cached = CachedJudge(CountingJudge(), ScoreStore(path, max_bytes=MIB))
    assert_same(cached.score(request(3)), CountingJudge().score(request(3)))
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    assert "is no readable score cache" in caplog.text


def test_a_file_that_is_only_out_of_reach_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ScoreStore(path, max_bytes=MIB)
    CachedJudge(CountingJudge(), store).score(request(3))

    def locked(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr("vcrd_ray.judges.cache.sqlite3.connect", locked)
        assert open_score_cache(path, max_bytes=MIB, profile=CountingJudge().profile) is None
    assert "no scores are kept" in caplog.text and not list(path.parent.glob("*.damaged-*"))
    CachedJudge(CountingJudge(), store).score(request(4))
    assert len(ScoreStore(path, max_bytes=MIB)) == 2
    # A directory that cannot be made.
    (path.parent / "file").write_text("")
    assert open_score_cache(path.parent / "file" / "x.sqlite", max_bytes=MIB, profile=CountingJudge().profile) is None


def test_a_judge_of_whole_steps_is_kept_without_scores_of_other_tokens(path: Path) -> None:
    class StepJudge(CountingJudge):
        def score(self, request: JudgeRequest) -> JudgeScores:
            whole = super().score(request)
            return replace(whole, branch_logit=np.full_like(whole.branch_logit, np.nan))

    judge = StepJudge()
    judge.profile = replace(judge.profile, scores="step")
    cached = CachedJudge(judge, ScoreStore(path, max_bytes=MIB))
    first, second = cached.score(request(3, 4)), cached.score(request(3, 4))
    assert judge.asked == ["q3", "q4"] and np.isnan(second.branch_logit).all()
    assert np.array_equal(first.trunk_logit, second.trunk_logit)


def test_a_store_that_fails_later_costs_only_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ScoreStore(path, max_bytes=MIB)
    cached = CachedJudge(CountingJudge(), store)
    store.close()
    assert_same(cached.score(request(3)), CountingJudge().score(request(3)))
    assert "scoring without it" in caplog.text


def test_a_killed_writer_leaves_a_whole_store(path: Path) -> None:
    """Killed while it writes: what is there can be read, and every entry is whole."""
    writer = textwrap.dedent(f"""
        import numpy as np
        from pathlib import Path
        from vcrd_ray.judges.cache import ScoreStore
        store = ScoreStore(Path({str(path)!r}), max_bytes=1 << 30)
        for i in range(10**9):
            value = np.full(500, i, dtype=np.float32)
            store.put([(b"%d-%d" % (i, j), value, value + j) for j in range(20)])
            print(i, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(30):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = ScoreStore(path, max_bytes=1 << 30)
    assert len(store) >= 30 * 20 and len(store) % 20 == 0
    for i in range(len(store) // 20):
        for j, pair in enumerate(store.get([b"%d-%d" % (i, j) for j in range(20)])):
            assert pair is not None and (pair[0] == i).all() and (pair[1] == i + j).all()


def test_several_processes_write_at_once(path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, numpy as np
        from pathlib import Path
        from vcrd_ray.judges.cache import ScoreStore
        store = ScoreStore(Path({str(path)!r}), max_bytes=1 << 30)
        for i in range(50):
            store.put([(f"{{sys.argv[1]}}-{{i}}".encode(), np.ones(5), np.ones(5))])
    """)
    processes = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(ScoreStore(path, max_bytes=1 << 30)) == 100
