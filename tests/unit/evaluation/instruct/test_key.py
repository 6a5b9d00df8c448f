"""The key goes to the endpoint and nowhere else."""

import json
import logging
import traceback
from pathlib import Path

import pytest

from tests.unit.evaluation.instruct.chat_server import Asked, Said, chat_server, completion
from tests.unit.evaluation.instruct.endpoints import JumpingClock, section, user
from vcrd_ray.evaluation.instruct.client import ChatClient
from vcrd_ray.evaluation.instruct.figures import figures
from vcrd_ray.evaluation.instruct.pairwise import judge_pairs
from vcrd_ray.evaluation.instruct.prompts import Pair
from vcrd_ray.evaluation.instruct.replies import ReplyCache
from vcrd_ray.evaluation.instruct.wire import EndpointError

_KEY = "sk-test-0123456789abcdef"


def _indiscreet(asked: Asked, before: int) -> Said:
    """Repeats the key wherever it can: in failures, refusals and replies."""
    said = str(asked.authorization)
    if "refuse" in asked.text:
        return Said(status=400, body=said.encode() * 50)
    if "forbid" in asked.text:
        return Said(status=401, body=json.dumps({"error": {"message": f"Incorrect API key: {said}"}}).encode())
    if before == 0:
        return Said(status=500, body=("x" * 290 + said).encode())
    if before == 1:
        return Said(body=json.dumps({"choices": said, said: said}).encode())
    return completion(f"{said} [[A]]", finish_reason=said)


@pytest.mark.filterwarnings("error")
def test_the_key_is_in_no_file_log_error_or_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", _KEY)
    shown: list[str] = []
    log = logging.FileHandler(tmp_path / "log")
    root = logging.getLogger()
    level = root.level
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    try:
        with chat_server(_indiscreet) as server, ReplyCache(tmp_path / "cache") as cache:
            endpoint = section(server.base_url, key_variable="JUDGE_TEST_KEY")
            with ChatClient(endpoint, cache, clock=JumpingClock()) as client:
                pairs = [
                    Pair(id=text, category=None, turns=(text,), answers=("a",), references=("b",))
                    for text in ("good", "refuse")
                ]
                records = judge_pairs(pairs, client, order="both", parsing="strict")
                result = figures(records, scheme="mean", confidence=0.95)
                with pytest.raises(EndpointError) as forbidden:
                    list(client.ask(user("forbid")))
                shown += [repr(client), str(vars(client)), str(vars(client._connection)), repr(client.usage)]
            assert {asked.authorization for asked in server.asked} == {f"Bearer {_KEY}"}
    finally:
        root.removeHandler(log)
        root.setLevel(level)
        log.close()
    error = forbidden.value
    shown += [str(error), repr(error), "".join(traceback.format_exception(error)), repr(endpoint)]
    (tmp_path / "records").write_text("".join(record.model_dump_json() for record in records))
    (tmp_path / "result").write_text(result.model_dump_json())
    (tmp_path / "section").write_text(endpoint.model_dump_json())
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) >= {"log", "cache", "records", "result", "section"}
    assert all(_KEY.encode() not in content for content in files.values())
    assert all(_KEY not in text for text in shown)
    # What was blotted out was there, also where the text is cut after it.
    assert b"[key]" in files["cache"] and b"[key]" in files["records"] and "[key]" in str(error)
    assert b"HTTP 500" in files["log"] and _KEY[:12].encode() not in files["log"]
