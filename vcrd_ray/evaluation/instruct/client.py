"""Many prompts -> a chat model's replies: paced, retried, each asked once and kept. Knows nothing of judging."""

from __future__ import annotations

import logging
import random
import threading
from collections import defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict

from vcrd_ray.config.instruct import EndpointSection
from vcrd_ray.evaluation.instruct.pace import Clock, Pace, WallClock
from vcrd_ray.evaluation.instruct.prompts import Messages
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply, ReplyCache, reply_key
from vcrd_ray.evaluation.instruct.wire import ChatConnection, EndpointError, RefusedRequest, TransientFailure

_LOG = logging.getLogger(__name__)
_BYTES_PER_TOKEN = 4
"""Of English text; what a reply counts corrects it."""
_MILLION = 1e6


class Usage(BaseModel):
    """What replies cost. Tries that came to nothing are not in it: endpoints do not say what they took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: int
    """Replies that were paid for now."""
    from_cache: int
    """Replies that had been paid for before."""
    refused: int
    retries: int
    uncounted: int
    """Replies paid for now whose tokens the endpoint did not count: cost leaves them out."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """Of what was paid for now; None: the model has no price."""


class ChatClient:
    """Asks one model at one endpoint. The limits hold for each client: several processes share them out beforehand."""

    def __init__(self, section: EndpointSection, cache: ReplyCache, *, clock: Clock | None = None) -> None:
        """
        Raises:
            ConfigError: there is no key.
        """
        self._section = section
        self._limits = section.limits
        self._cache = cache
        self._clock = clock or WallClock()
        self._connection = ChatConnection(section)
        self._pace = Pace(
            requests_per_minute=section.limits.requests_per_minute,
            tokens_per_minute=section.limits.tokens_per_minute,
            clock=self._clock,
        )
        self._jitter = random.Random()
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._turn = threading.Lock()  # for the counts

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all connections; the cache is the caller's."""
        self._connection.close()

    @property
    def usage(self) -> Usage:
        """So far."""
        with self._turn:
            counts = defaultdict(int, self._counts)
        price = self._section.prices.get(self._section.model)
        cost = None
        if price is not None:
            cost = (
                counts["prompt_tokens"] * price.input_per_million
                + counts["completion_tokens"] * price.output_per_million
            ) / _MILLION
        return Usage(**{name: counts[name] for name in Usage.model_fields if name != "cost"}, cost=cost)

    def ask(self, prompts: Sequence[Messages]) -> Generator[tuple[int, Reply | Refusal], None, None]:
        """The reply to each prompt with its index: kept ones first, then as they come.

        Equal prompts are asked once. A caller that was interrupted passes all of them again: what was answered is kept. On
        an error, or when the caller leaves, requests under way still end and are kept, and no other begins.

        Raises:
            EndpointError: the endpoint does not serve, or refuses more than `max_refused` requests.
            DataError: the cache cannot be used.
        """
        indices: defaultdict[str, list[int]] = defaultdict(list)
        bodies: dict[str, dict[str, Any]] = {}
        for index, messages in enumerate(prompts):
            body = self._body(messages)
            key = reply_key(judge=self._section.judge or self._section.base_url, body=body)
            indices[key].append(index)
            bodies[key] = body
        missing = []
        for key in bodies:
            kept = self._cache.get(key)
            if kept is None:
                missing.append(key)
                continue
            self._count(from_cache=1)
            yield from ((index, kept) for index in indices[key])
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._limits.max_in_flight, thread_name_prefix="judge-endpoint")
        try:
            keys = {pool.submit(self._answer, key, bodies[key], stop): key for key in missing}
            for future in as_completed(keys):
                answer = future.result()
                yield from ((index, answer) for index in indices[keys[future]])
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _body(self, messages: Messages) -> dict[str, Any]:
        section = self._section
        options = {
            "temperature": section.temperature,
            section.max_tokens_field: section.max_tokens,
            "seed": section.seed,
        }
        return {
            "model": section.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            **{name: value for name, value in options.items() if value is not None},
        }

    def _answer(self, key: str, body: dict[str, Any], stop: threading.Event) -> Reply | Refusal:
        try:
            reply = self._reply(body, stop)
        except RefusedRequest as refused:
            return self._refusal(refused)
        tokens = (reply.prompt_tokens, reply.completion_tokens)
        self._count(
            asked=1,
            uncounted=int(None in tokens),
            prompt_tokens=reply.prompt_tokens or 0,
            completion_tokens=reply.completion_tokens or 0,
        )
        return self._cache.keep(key, reply)

    def _reply(self, body: dict[str, Any], stop: threading.Event) -> Reply:
        size = sum(len(message["content"].encode()) for message in body["messages"]) // _BYTES_PER_TOKEN
        expected = size + (self._section.max_tokens or 0)
        for attempt in range(1, self._limits.attempts + 1):
            self._pace.admit(expected, stop)
            if stop.is_set():
                raise EndpointError(f"{self._section.model}: another request failed; run again for what is missing")
            try:
                reply = self._connection.post(body)
            except TransientFailure as failure:
                self._wait(failure, attempt, stop)
                continue
            if reply.prompt_tokens is not None and reply.completion_tokens is not None:
                self._pace.correct(expected=expected, counted=reply.prompt_tokens + reply.completion_tokens)
            return reply
        raise AssertionError("the last try returns or raises")

    def _wait(self, failure: TransientFailure, attempt: int, stop: threading.Event) -> None:
        """Before the next try; no next try where there was the last one."""
        limits = self._limits
        name = f"{self._section.model} at {self._section.base_url}"
        asked_s = failure.retry_after_s
        if asked_s is not None and asked_s > limits.max_wait_s:
            raise EndpointError(
                f"{name} asks to wait {asked_s:g} s, more than limits.max_wait_s {limits.max_wait_s:g} ({failure}); run again"
                " then: what was answered is kept"
            ) from None
        if attempt == limits.attempts:
            raise EndpointError(
                f"{name} failed {attempt} times in a row, at last: {failure}; see whether it serves, then run again: what was"
                " answered is kept"
            ) from None
        ceiling_s = min(limits.max_wait_s, limits.backoff_s * 2 ** (attempt - 1))
        # Between half and all of it, so that requests that failed together do not come back together.
        wait_s = max(asked_s or 0.0, ceiling_s * self._jitter.uniform(0.5, 1.0))
        if asked_s is not None:
            self._pace.pause(asked_s)
        self._count(retries=1)
        _LOG.warning("%s: try %d of %d: %s; again in %.1f s", name, attempt, limits.attempts, failure, wait_s)
        self._clock.wait(wait_s, stop)

    def _refusal(self, refused: RefusedRequest) -> Refusal:
        num_refused = self._count(refused=1)["refused"]
        if num_refused > self._limits.max_refused:
            raise EndpointError(
                f"{self._section.model} at {self._section.base_url} refuses request after request ({num_refused}), at last:"
                f" {refused}; check max_tokens_field, temperature and the length of prompts, or raise limits.max_refused"
            ) from None
        _LOG.warning("%s refuses a request: %s", self._section.model, refused)
        return Refusal(status=refused.status, message=str(refused))

    def _count(self, **more: int) -> dict[str, int]:
        with self._turn:
            for name, number in more.items():
                self._counts[name] += number
            return dict(self._counts)
