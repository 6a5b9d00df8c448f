"""One request to an OpenAI-compatible chat endpoint -> a reply, or what went wrong. Knows nothing of retries or of judging."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Mapping
from typing import Any

import httpx2
from pydantic import BaseModel, Field, SecretStr, ValidationError

from vcrd_ray.config.instruct import EndpointSection
from vcrd_ray.errors import ConfigError, VcrdError
from vcrd_ray.evaluation.instruct.replies import Reply

_MAX_BODY = 16 << 20  # bytes; a reply of a hundred thousand tokens has less than one million
_SHOWN = 300  # characters of what an endpoint says that errors repeat
_MIN_KEY = 8
"""A shorter key would also be found in ordinary words when it is blotted out of what the endpoint says."""
_TRANSIENT = frozenset({408, 409, 425, 429})
_OWN_FAULT = frozenset({400, 413, 422})
"""The request as it is does not suit the endpoint: too long, filtered."""


class EndpointError(VcrdError):
    """A chat endpoint that does not serve: not there, not allowed, out of funds, or failing again and again."""


class TransientFailure(Exception):
    """One try came to nothing; the next may not."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class RefusedRequest(Exception):
    """The endpoint does not take this request, nor will it later."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)


class _Completion(BaseModel):
    """What is read of an endpoint's answer."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    model: str | None = None


class ChatConnection:
    """Posts bodies to one endpoint. Safe for several threads."""

    def __init__(self, section: EndpointSection) -> None:
        """
        Raises:
            ConfigError: the environment variable of the key is not set, or holds no key.
        """
        self._name = f"{section.model} at {section.base_url}"
        self._key_variable = section.key_variable
        self._key = None if section.key_variable is None else _read_key(section.key_variable)
        self._timeout_s = section.limits.timeout_s
        self._url = section.base_url.rstrip("/") + "/chat/completions"
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key.get_secret_value()}"}
        encrypted = self._url.startswith("https:")
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(section.limits.timeout_s),
            limits=httpx2.Limits(max_connections=section.limits.max_in_flight),
            # A redirect would carry the key elsewhere; so would a proxy that is asked in plain http.
            follow_redirects=False,
            trust_env=encrypted,
            # Plain http shows no certificates, and loading those to check them with takes long.
            verify=encrypted,
        )

    def close(self) -> None:
        """Let go of all connections."""
        self._http.close()

    def post(self, body: Mapping[str, Any]) -> Reply:
        """One try.

        Raises:
            TransientFailure: another try may help.
            RefusedRequest: no other try of this request will.
            EndpointError: no request at all will.
        """
        try:
            status, headers, content = self._exchange(body)
        except httpx2.TimeoutException:
            raise TransientFailure(f"no whole reply within {self._timeout_s:g} s") from None
        except httpx2.HTTPError as error:
            raise TransientFailure(self._blot(f"{type(error).__name__}: {error}")) from None
        if status != 200:
            raise self._failure(status, headers, content)
        try:
            completion = _Completion.model_validate_json(content)
        except ValidationError as error:
            at = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the body"
            raise TransientFailure(
                f"not of the form of a chat completion at {at}: {error.errors()[0]['msg']}: {self._shown(content)}"
            ) from None
        usage = completion.usage or _Usage()
        return Reply(
            text=self._blot(completion.choices[0].message.content or ""),
            finish_reason=self._blot_optional(completion.choices[0].finish_reason),
            served_model=self._blot_optional(completion.model),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, httpx2.Headers, bytes]:
        content = bytearray()
        with self._http.stream("POST", self._url, json=body) as response:
            # The client's own timeout is for each wait: a body that trickles would take for ever.
            end = time.monotonic() + self._timeout_s
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise TransientFailure(f"no whole reply within {self._timeout_s:g} s")
                if len(content) > _MAX_BODY:
                    raise TransientFailure(f"a reply of more than {_MAX_BODY} bytes")
            return response.status_code, response.headers, bytes(content)

    def _failure(self, status: int, headers: httpx2.Headers, content: bytes) -> Exception:
        said = f"HTTP {status}: {self._shown(content)}"
        if status == 429 and b"insufficient_quota" in content:
            return EndpointError(f"{self._name}: the account has no funds left: {said}; add some and run again")
        if status in _TRANSIENT or status >= 500:
            return TransientFailure(said, _retry_after(headers))
        if status in _OWN_FAULT:
            return RefusedRequest(status, said)
        if status in (401, 403):
            where = (
                f"the key in {self._key_variable}" if self._key_variable else "whether a key is needed (key_variable)"
            )
            return EndpointError(f"{self._name} does not let us in: {said}; check {where}")
        return EndpointError(f"{self._name}: {said}; check base_url and model")

    def _shown(self, content: bytes) -> str:
        # Blotted before it is cut: half a key is no key that could be found.
        text = self._blot(content.decode(errors="replace")).strip()
        return text[:_SHOWN] or "(no body)"

    def _blot(self, text: str) -> str:
        """Endpoints repeat keys in their errors; nothing that they say goes further with one."""
        return text if self._key is None else text.replace(self._key.get_secret_value(), "[key]")

    def _blot_optional(self, text: str | None) -> str | None:
        return None if text is None else self._blot(text)


def _read_key(variable: str) -> SecretStr:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"environment variable {variable} is not set: put the endpoint's key into it, or set key_variable to null"
            " for an endpoint without key"
        )
    # Headers with other characters are refused by the HTTP library, in words that repeat them.
    if len(key) < _MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"environment variable {variable} holds no key: {_MIN_KEY} or more printable ASCII characters without spaces"
            " are needed; set key_variable to null for an endpoint without key"
        )
    return SecretStr(key)


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds that the endpoint asks to wait, as a number or until a date; None: it does not say."""
    milliseconds = headers.get("retry-after-ms")
    stated = headers.get("retry-after")
    try:
        if milliseconds is not None:
            return _sensible(float(milliseconds) / 1000)
        return None if stated is None else _sensible(float(stated))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(stated or "")
    except ValueError:
        return None
    return _sensible(until.timestamp() - time.time())


def _sensible(seconds: float) -> float | None:
    return max(0.0, seconds) if seconds == seconds else None
