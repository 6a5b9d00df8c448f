"""Sections, prompts and time for tests of the client."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from vcrd_ray.config.instruct import EndpointSection
from vcrd_ray.evaluation.instruct.client import ChatClient
from vcrd_ray.evaluation.instruct.prompts import Message, Messages
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply, ReplyCache


class JumpingClock:
    """Time that passes only by waiting, at once."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._now = 1000.0
        self._turn = threading.Lock()

    def now(self) -> float:
        with self._turn:
            return self._now

    def wait(self, seconds: float, stop: threading.Event) -> None:
        with self._turn:
            self.waits.append(seconds)
            self._now += seconds


def section(base_url: str, **changes: Any) -> EndpointSection:
    """An endpoint without key and with few tries."""
    limits = {"max_in_flight": 4, "attempts": 3, "timeout_s": 20, **changes.pop("limits", {})}
    return EndpointSection.model_validate(
        {"model": "judge-1", "base_url": base_url, "key_variable": None, "limits": limits, **changes}
    )


def user(*texts: str) -> list[Messages]:
    """A prompt for each text."""
    return [(Message(role="user", content=text),) for text in texts]


def ask(
    endpoint: EndpointSection, cache: Path, *texts: str, clock: JumpingClock | None = None
) -> tuple[list[Reply | Refusal], ChatClient]:
    """The answers in the order of the prompts, and the client that got them."""
    with ReplyCache(cache) as replies, ChatClient(endpoint, replies, clock=clock or JumpingClock()) as client:
        answers = dict(client.ask(user(*texts)))
    return [answers[index] for index in range(len(texts))], client
