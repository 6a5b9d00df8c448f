"""The client against a server on loopback."""

import email.utils
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.unit.evaluation.instruct.chat_server import Asked, ChatServer, Respond, Said, chat_server, completion
from tests.unit.evaluation.instruct.endpoints import JumpingClock, ask, section, user
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.evaluation.instruct.client import ChatClient
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply, ReplyCache
from vcrd_ray.evaluation.instruct.wire import EndpointError

pytestmark = pytest.mark.slow


def _echo(asked: Asked, before: int) -> Said:
    return completion(f"You said {asked.text}.")


def _first(*fail: Said) -> Respond:
    """Say these to the first tries of each text, then answer."""
    return lambda asked, before: fail[before] if before < len(fail) else _echo(asked, before)


def test_each_prompt_gets_its_reply_and_the_server_the_request_as_configured(tmp_path: Path) -> None:
    with chat_server(_echo) as server:
        (one, two), client = ask(section(server.base_url, seed=5), tmp_path / "c", "a", "b")
    assert one == Reply(
        text="You said a.", finish_reason="stop", served_model="served-model", prompt_tokens=100, completion_tokens=10
    )
    assert isinstance(two, Reply) and two.text == "You said b."
    asked = next(asked for asked in server.asked if asked.text == "a")
    assert asked.body == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0.0,
        "max_tokens": 2048,
        "seed": 5,
    }
    assert (asked.path, asked.authorization) == ("/v1/chat/completions", None)
    assert client.usage.asked == 2


def test_what_is_not_set_is_not_sent(tmp_path: Path) -> None:
    with chat_server(_echo) as server:
        ask(section(server.base_url, temperature=None, max_tokens=None), tmp_path / "c", "a")
        ask(section(server.base_url, max_tokens=9, max_tokens_field="max_completion_tokens"), tmp_path / "c", "a")
    assert set(server.asked[0].body) == {"model", "messages"}
    assert server.asked[1].body["max_completion_tokens"] == 9 and "max_tokens" not in server.asked[1].body


def test_what_is_kept_is_not_asked_again(tmp_path: Path) -> None:
    with chat_server(_echo) as server:
        first, _ = ask(section(server.base_url), tmp_path / "c", "a", "b")
        second, client = ask(section(server.base_url), tmp_path / "c", "b", "c", "a")
    assert [second[2], second[0]] == first
    assert sorted(asked.text for asked in server.asked) == ["a", "b", "c"]
    assert (client.usage.asked, client.usage.from_cache) == (1, 2)


def test_equal_prompts_are_asked_once(tmp_path: Path) -> None:
    with chat_server(_echo) as server:
        answers, client = ask(section(server.base_url), tmp_path / "c", "a", "a", "a")
    assert len(server.asked) == client.usage.asked == 1 and len(set(map(str, answers))) == 1


@pytest.mark.parametrize(
    "changes",
    [{"model": "judge-2"}, {"temperature": 0.5}, {"max_tokens": 7}, {"seed": 1}, {"judge": "another"}],
)
def test_another_model_parameter_or_judge_is_asked_anew(tmp_path: Path, changes: dict[str, object]) -> None:
    with chat_server(_echo) as server:
        ask(section(server.base_url), tmp_path / "c", "a")
        ask(section(server.base_url, **changes), tmp_path / "c", "a")
        ask(section(server.base_url, **changes), tmp_path / "c", "a")
    assert len(server.asked) == 2


def test_a_named_judge_keeps_its_replies_when_it_moves(tmp_path: Path) -> None:
    with chat_server(_echo) as old, chat_server(_echo) as new:
        first, _ = ask(section(old.base_url, judge="mine"), tmp_path / "c", "a")
        second, _ = ask(section(new.base_url, judge="mine"), tmp_path / "c", "a")
        ask(section(new.base_url), tmp_path / "c", "a")
    assert first == second
    assert (len(old.asked), len(new.asked)) == (1, 1)


def test_tokens_and_cost_are_those_of_what_was_paid_for_now(tmp_path: Path) -> None:
    prices = {"judge-1": {"input_per_million": 2.5, "output_per_million": 10.0}}
    with chat_server(lambda asked, before: completion("x", tokens=(1000 * len(asked.text), 100))) as server:
        _, client = ask(section(server.base_url, prices=prices), tmp_path / "c", "a", "bb")
        _, again = ask(section(server.base_url, prices=prices), tmp_path / "c", "a", "bb", "ccc")
        _, unpriced = ask(section(server.base_url, model="free"), tmp_path / "c", "a")
    assert (client.usage.prompt_tokens, client.usage.completion_tokens) == (3000, 200)
    assert client.usage.cost == pytest.approx((3000 * 2.5 + 200 * 10) / 1e6)
    assert (again.usage.asked, again.usage.prompt_tokens, again.usage.from_cache) == (1, 3000, 2)
    assert again.usage.cost == pytest.approx((3000 * 2.5 + 100 * 10) / 1e6)
    assert unpriced.usage.cost is None


def test_replies_without_token_counts_are_counted(tmp_path: Path) -> None:
    with chat_server(lambda asked, before: completion("x", tokens=None)) as server:
        (reply,), client = ask(section(server.base_url), tmp_path / "c", "a")
    assert isinstance(reply, Reply) and reply.prompt_tokens is None
    assert (client.usage.uncounted, client.usage.prompt_tokens) == (1, 0)


def test_no_more_requests_are_under_way_than_allowed(tmp_path: Path) -> None:
    def slow(asked: Asked, before: int) -> Said:
        time.sleep(0.02)
        return _echo(asked, before)

    with chat_server(slow) as server:
        ask(section(server.base_url, limits={"max_in_flight": 3}), tmp_path / "c", *"abcdefghijkl")
    assert 1 < server.most_at_once <= 3


def test_a_429_waits_as_long_as_the_endpoint_says(tmp_path: Path) -> None:
    clock = JumpingClock()
    busy = Said(status=429, headers={"Retry-After": "17"}, body=b'{"error": {"message": "slow down"}}')
    with chat_server(_first(busy)) as server:
        (reply,), client = ask(section(server.base_url), tmp_path / "c", "a", clock=clock)
    assert isinstance(reply, Reply) and reply.text == "You said a."
    assert max(clock.waits) == 17 and client.usage.retries == 1


def test_a_wait_that_the_endpoint_asks_for_holds_other_requests_too(tmp_path: Path) -> None:
    class AsksMeanwhile(JumpingClock):
        def wait(self, seconds: float, stop: threading.Event) -> None:
            if not self.waits:
                self.waits.append(seconds)
                assert next(client.ask(user("b")))
            super().wait(seconds, stop)

    def busy_for_a(asked: Asked, before: int) -> Said:
        busy = Said(status=429, headers={"Retry-After": "17"})
        return busy if asked.text == "a" and before == 0 else _echo(asked, before)

    clock = AsksMeanwhile()
    with (
        chat_server(busy_for_a) as server,
        ReplyCache(tmp_path / "c") as cache,
        ChatClient(section(server.base_url), cache, clock=clock) as client,
    ):
        list(client.ask(user("a")))
    # For a; for b in the meantime; and a's own, which is then over.
    assert clock.waits == [17, 17, 17] and [asked.text for asked in server.asked] == ["a", "b", "a"]


def test_an_error_ends_the_waits_of_other_requests(tmp_path: Path) -> None:
    class WaitsForTheEnd(JumpingClock):
        def wait(self, seconds: float, stop: threading.Event) -> None:
            waiting.set()
            stop.wait(10)

    def a_waits_for_b(asked: Asked, before: int) -> Said:
        if asked.text == "a":
            return Said(status=500)
        waiting.wait(10)
        return Said(status=404)

    waiting = threading.Event()
    with chat_server(a_waits_for_b) as server, pytest.raises(EndpointError, match="HTTP 404"):
        ask(section(server.base_url), tmp_path / "c", "a", "b", clock=WaitsForTheEnd())
    assert sorted(asked.text for asked in server.asked) == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ({"retry-after-ms": "2500", "Retry-After": "3"}, 2.5, 2.5),
        ({"Retry-After": "in a minute"}, 20, 61),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.5, 1),
        ({"Retry-After": "soon"}, 0.5, 1),
        ({"Retry-After": "nan"}, 0.5, 1),
        ({}, 0.5, 1),
    ],
)
def test_the_wait_is_read_in_every_form_and_backs_off_without(
    tmp_path: Path, header: dict[str, str], least: float, most: float
) -> None:
    if header.get("Retry-After") == "in a minute":  # of the test's own start, not of its module's import
        header = {"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)}
    clock = JumpingClock()
    with chat_server(_first(Said(status=503, headers=header))) as server:
        ask(section(server.base_url), tmp_path / "c", "a", clock=clock)
    assert least <= max(clock.waits) <= most


def test_waits_double_up_to_their_limit(tmp_path: Path) -> None:
    clock = JumpingClock()
    limits = {"attempts": 6, "backoff_s": 2.0, "max_wait_s": 9.0}
    with chat_server(_first(*[Said(status=500)] * 5)) as server:
        ask(section(server.base_url, limits=limits), tmp_path / "c", "a", clock=clock)
    assert len(clock.waits) == 5
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(clock.waits, (2, 4, 8, 9, 9), strict=True))


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_the_evaluation(tmp_path: Path) -> None:
    with (
        chat_server(lambda asked, before: Said(status=429, headers={"Retry-After": "3600"})) as server,
        pytest.raises(EndpointError, match=r"asks to wait 3600 s, more than limits\.max_wait_s 120"),
    ):
        ask(section(server.base_url), tmp_path / "c", "a")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (Said(status=500, body=b"boom"), "HTTP 500: boom"),
        (Said(status=529), r"HTTP 529: \(no body\)"),
        (Said(body=b'{"choices": [{"mess'), "not of the form of a chat completion at the body"),
        (Said(body=b'{"choices": []}'), "not of the form of a chat completion at choices"),
        (Said(body=b'{"error": {"message": "upstream"}}'), ".* at choices: Field required: .*upstream"),
        (Said(body=b'{"choices": [{"message": {"content": 5}}]}'), r".* at choices\.0\.message\.content"),
        (Said(body=b"junk", headers={"Content-Encoding": "gzip"}), "DecodingError"),
    ],
)
def test_a_failure_is_tried_again_and_at_last_reported(tmp_path: Path, bad: Said, shown: str) -> None:
    with chat_server(_first(bad, bad)) as server:
        (reply,), client = ask(section(server.base_url), tmp_path / "c", "a")
        assert isinstance(reply, Reply) and client.usage.retries == 2
    with (
        chat_server(lambda asked, before: bad) as server,
        pytest.raises(EndpointError, match=f"failed 3 times in a row, at last: {shown}.*run again"),
    ):
        ask(section(server.base_url), tmp_path / "d", "a")
    assert len(server.asked) == 3


@pytest.mark.parametrize("slow", [Said(hang=True), Said(trickle=True)])
def test_a_server_that_hangs_or_trickles_is_given_up(tmp_path: Path, slow: Said) -> None:
    hung = {"timeout_s": 0.3}
    with chat_server(_first(slow)) as server:
        (reply,), client = ask(section(server.base_url, limits=hung), tmp_path / "c", "a")
    assert isinstance(reply, Reply) and client.usage.retries == 1
    with (
        chat_server(lambda asked, before: slow) as server,
        pytest.raises(EndpointError, match=r"at last: no whole reply within 0\.3 s"),
    ):
        ask(section(server.base_url, limits=hung), tmp_path / "d", "a")


def test_a_refused_connection_is_reported_with_the_address(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=f"judge-1 at {url} failed 3 times in a row, at last: ConnectError"):
            ask(section(url), tmp_path / "c", "a")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_as_it_is_does_not_stop_the_others(tmp_path: Path, status: int) -> None:
    def filtered(asked: Asked, before: int) -> Said:
        return Said(status=status, body=b"content filter") if asked.text == "b" else _echo(asked, before)

    with chat_server(filtered) as server:
        (one, two, three), client = ask(section(server.base_url), tmp_path / "c", "a", "b", "c")
    assert isinstance(one, Reply) and isinstance(three, Reply)
    assert two == Refusal(status=status, message=f"HTTP {status}: content filter")
    assert len(server.asked) == 3 and client.usage.refused == 1 and client.usage.asked == 2


def test_refusals_of_everything_end_the_evaluation(tmp_path: Path) -> None:
    limits = {"max_refused": 2, "max_in_flight": 1}
    with (
        chat_server(lambda asked, before: Said(status=400, body=b"unsupported max_tokens")) as server,
        pytest.raises(EndpointError, match=r"refuses request after request \(3\).*unsupported max_tokens"),
    ):
        ask(section(server.base_url, limits=limits), tmp_path / "c", *"abcdefghijkl")
    assert 3 <= len(server.asked) < 12


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (Said(status=401), "does not let us in: HTTP 401: .*check whether a key is needed"),
        (Said(status=404, body=b"no such model"), "HTTP 404: no such model; check base_url and model"),
        (Said(status=302, headers={"Location": "http://127.0.0.1:9/"}), "HTTP 302"),
        (Said(status=429, body=b'{"error": {"code": "insufficient_quota"}}'), "no funds left"),
    ],
)
def test_what_no_other_try_mends_is_tried_once(tmp_path: Path, said: Said, shown: str) -> None:
    with chat_server(lambda asked, before: said) as server, pytest.raises(EndpointError, match=shown):
        ask(section(server.base_url), tmp_path / "c", "a")
    assert len(server.asked) == 1


def test_an_error_leaves_what_was_answered_and_begins_nothing_more(tmp_path: Path) -> None:
    def broken(asked: Asked, before: int) -> Said:
        return Said(status=404) if asked.text == "d" else _echo(asked, before)

    limits = {"max_in_flight": 1}
    with chat_server(broken) as server:
        with pytest.raises(EndpointError):
            ask(section(server.base_url, limits=limits), tmp_path / "c", *"abcdefghijklmnop")
        asked_before = len(server.asked)
        assert asked_before < 16
        server.respond = _echo
        answers, client = ask(section(server.base_url, limits=limits), tmp_path / "c", *"abcdefghijklmnop")
    texts = [answer.text for answer in answers if isinstance(answer, Reply)]
    assert texts == [f"You said {c}." for c in "abcdefghijklmnop"]
    # All but the one that failed are kept.
    assert client.usage.from_cache == asked_before - 1


def test_a_caller_that_leaves_early_stops_the_requests(tmp_path: Path) -> None:
    with (
        chat_server(_echo) as server,
        ReplyCache(tmp_path / "c") as cache,
        ChatClient(section(server.base_url, limits={"max_in_flight": 1}), cache, clock=JumpingClock()) as client,
    ):
        replies = client.ask(user(*(str(n) for n in range(200))))
        next(replies)
        replies.close()
        num_asked = len(server.asked)
        assert num_asked == len(cache) < 200


def test_requests_are_spaced_below_both_rates(tmp_path: Path) -> None:
    clock = JumpingClock()
    limits = {"max_in_flight": 1, "requests_per_minute": 30, "tokens_per_minute": 6000}
    with chat_server(_echo) as server:
        # 110 tokens are counted for each reply: 1.1 s at 6000 a minute, less than the 2 s between requests.
        _, client = ask(section(server.base_url, limits=limits, max_tokens=1), tmp_path / "c", *"abcdef", clock=clock)
        start = clock.now()
        assert client.usage.asked == 6 and start - 1000 == pytest.approx(5 * 2.0)
        limits["tokens_per_minute"] = 1100
        ask(section(server.base_url, limits=limits, max_tokens=1), tmp_path / "d", *"abcdef", clock=clock)
    assert clock.now() - start == pytest.approx(5 * 6.0)


def test_a_proxy_is_not_asked_in_plain_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(_echo) as server, chat_server(_echo) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        ask(section(server.base_url), tmp_path / "c", "a")
    assert (len(server.asked), len(proxy.asked)) == (1, 0)


def test_an_endpoint_that_nobody_vouches_for_gets_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is absent; it makes the certificate")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([openssl, *made, *name], cwd=tmp_path, check=True, capture_output=True)
    certificate = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.setenv("JUDGE_TEST_KEY", "sk-test-0123456789abcdef")
    with chat_server(_echo, certificate=certificate) as server:
        with pytest.raises(EndpointError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(section(server.base_url, key_variable="JUDGE_TEST_KEY"), tmp_path / "c", "a")
        assert server.base_url.startswith("https:") and server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        ask(section(server.base_url, key_variable="JUDGE_TEST_KEY"), tmp_path / "c", "a")
        assert len(server.asked) == 1


def test_a_key_variable_without_a_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = section("https://judge.example/v1", key_variable="JUDGE_TEST_KEY")
    for content, message in (
        (None, "is not set"),
        ("  ", "is not set"),
        ("short", "holds no key"),
        ("with\nline 1", "holds no key"),
    ):
        if content is not None:
            monkeypatch.setenv("JUDGE_TEST_KEY", content)
        with (
            ReplyCache(tmp_path / "c") as cache,
            pytest.raises(ConfigError, match=f"JUDGE_TEST_KEY {message}") as error,
        ):
            ChatClient(endpoint, cache)
        assert "line 1" not in str(error.value) and "short" not in str(error.value)


def test_a_file_that_is_no_cache_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(DataError, match=r"judge replies: .*/c cannot be used \(file is not a database\)"):
        ReplyCache(path)


def test_the_server_of_these_tests_ends(tmp_path: Path) -> None:
    server = ChatServer(_echo)
    server.stop()
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", int(server.base_url.split(":")[2].split("/")[0])))
