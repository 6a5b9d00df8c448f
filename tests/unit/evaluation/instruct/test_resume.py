"""Evaluations that are killed, and several at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.unit.evaluation.instruct.chat_server import Asked, Said, chat_server, completion
from tests.unit.evaluation.instruct.endpoints import ask, section
from vcrd_ray.evaluation.instruct.replies import Reply, ReplyCache

_ROOT = Path(__file__).parents[4]
_TEXTS = [f"text {n}" for n in range(12)]
_CHILD = """
import sys
from pathlib import Path
from tests.unit.evaluation.instruct.endpoints import ask, section
ask(section(sys.argv[1], judge="j", limits={"max_in_flight": 2}), Path(sys.argv[2]), *sys.argv[3:])
"""


def _child(base_url: str, cache: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", _CHILD, base_url, str(cache), *_TEXTS], cwd=_ROOT)


def test_a_killed_evaluation_asks_only_what_is_missing(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    answered = set(_TEXTS[:5])
    enough = threading.Event()

    def partly(asked: Asked, before: int) -> Said:
        return completion(asked.text) if asked.text in answered else Said(hang=True)

    with chat_server(partly) as server:
        child = _child(server.base_url, cache)
        try:
            deadline = time.monotonic() + 60
            while not enough.is_set() and time.monotonic() < deadline and child.poll() is None:
                if cache.exists():
                    with ReplyCache(cache) as replies:
                        # The child waits for its sixth and seventh reply.
                        if len(replies) == 5 and len(server.asked) == 7:
                            enough.set()
                time.sleep(0.01)
            assert enough.is_set()
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    with chat_server(lambda asked, before: completion(asked.text)) as server:
        answers, client = ask(section(server.base_url, judge="j"), cache, *_TEXTS)
    assert [answer.text for answer in answers if isinstance(answer, Reply)] == _TEXTS
    assert {asked.text for asked in server.asked} == set(_TEXTS) - answered
    assert (client.usage.from_cache, client.usage.asked) == (5, 7)


def test_two_processes_share_a_cache_and_report_the_same(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    with chat_server(lambda asked, before: completion(f"{asked.text}, {before}")) as server:
        children = [_child(server.base_url, cache) for _ in range(2)]
        assert [child.wait(60) for child in children] == [0, 0]
        num_asked = len(server.asked)
        answers, client = ask(section(server.base_url, judge="j"), cache, *_TEXTS)
    assert len(_TEXTS) <= num_asked <= 2 * len(_TEXTS)
    assert len(answers) == client.usage.from_cache == len(_TEXTS)


def test_the_first_of_two_replies_to_one_request_stays(tmp_path: Path) -> None:
    one, other = (
        Reply(text=text, finish_reason=None, served_model=None, prompt_tokens=1, completion_tokens=1) for text in "ab"
    )
    with ReplyCache(tmp_path / "c") as first, ReplyCache(tmp_path / "c") as second:
        assert first.keep("k", one) == one
        assert second.keep("k", other) == one == second.get("k")
        assert second.get("l") is None
