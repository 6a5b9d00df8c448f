"""What a person may set about judged comparisons. Knows nothing of how they are made."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from vcrd_ray.config.base import CONFIDENCE, Section

AskedOrder = Literal["both", "model_first", "reference_first", "drawn"]
Scheme = Literal["mean", "disagreement_is_tie"]
Parsing = Literal["reference", "strict"]


class _Section(Section):
    # What is refused may be a misplaced key.
    model_config = ConfigDict(hide_input_in_errors=True)


class PriceSection(_Section):
    """What a model costs, in one currency throughout."""

    input_per_million: float = Field(ge=0, description="A million prompt tokens")
    output_per_million: float = Field(ge=0, description="A million completion tokens")


class EndpointLimits(_Section):
    """How hard an endpoint may be pressed, and for how long."""

    max_in_flight: int = Field(default=8, ge=1, description="Requests at a time")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="Requests begun a minute, retries included, by one process; none: no limit"
    )
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="Prompt and completion tokens a minute, by one process; none: no limit"
    )
    timeout_s: float = Field(
        default=120, gt=0, description="Longest time to connect, to wait for more of a reply, and for its whole body"
    )
    attempts: int = Field(default=6, ge=1, description="Tries of one request, the first included")
    backoff_s: float = Field(default=1.0, gt=0, description="Wait before the second try at most; doubles with each")
    max_wait_s: float = Field(
        default=120, gt=0, description="Longest wait between tries; an endpoint that asks for more ends the evaluation"
    )
    max_refused: int = Field(
        default=20, ge=0, description="Requests that the endpoint may refuse as they are before the evaluation ends"
    )


class EndpointSection(_Section):
    """An OpenAI-compatible chat endpoint and the model behind it."""

    model: str = Field(default="gpt-4o", min_length=1, description="What the endpoint calls the model")
    base_url: str = Field(default="https://api.openai.com/v1", description="What /chat/completions is appended to")
    allow_http: bool = Field(default=False, description="Accept http to other hosts than this one: the key is readable")
    key_variable: str | None = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key; none: an endpoint without key",
    )
    judge: str | None = Field(
        default=None,
        min_length=1,
        description="What replies are kept under, for one model at changing addresses; none: base_url",
    )
    temperature: float | None = Field(
        default=0.0, ge=0, le=2, description="none: the endpoint's own, as the jobs of DistiLLM-2 leave it"
    )
    max_tokens: int | None = Field(default=2048, ge=1, description="Tokens of a reply; none: the endpoint's own limit")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="How the endpoint calls that limit; OpenAI's reasoning models know the second"
    )
    seed: int | None = Field(default=None, description="Sent to the endpoint; another seed asks again; none: not sent")
    prices: dict[str, PriceSection] = Field(
        default={}, description="Price of each model by its name; cost is unknown where there is none"
    )
    limits: EndpointLimits = EndpointLimits()

    @model_validator(mode="after")
    def _address_is_safe(self) -> Self:
        # The address stands in messages and cache keys: nothing secret may be part of it. It is not repeated here.
        try:
            url = urlsplit(self.base_url)
            host, _ = url.hostname, url.port
        except ValueError:
            raise ValueError("base_url is no address: write it like https://host/v1") from None
        if url.scheme not in ("http", "https") or not host or any(c.isspace() for c in self.base_url):
            raise ValueError("base_url is no address: write it like https://host/v1")
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise ValueError(
                "base_url has a user name, a query or a fragment: leave them out and put the key into the environment"
                " variable that key_variable names"
            )
        if url.scheme == "http" and not (self.allow_http or _is_loopback(host)):
            raise ValueError(
                f"base_url goes to {host} over http, where anybody on the way reads key and prompts: use https, or set"
                " allow_http true"
            )
        return self

    @model_validator(mode="after")
    def _options_have_effect(self) -> Self:
        if self.max_tokens is None and self.max_tokens_field == "max_completion_tokens":
            raise ValueError(
                "max_tokens_field has no effect without max_tokens: set max_tokens, or leave the field out"
            )
        return self


class InstructSection(_Section):
    """Win rates of a model against reference answers."""

    endpoint: EndpointSection = EndpointSection()
    cache: Path = Field(
        default=Path("~/.cache/vcrd_ray/judge-replies.sqlite"), description="Replies, each paid for once"
    )
    order: AskedOrder = Field(
        default="both",
        description="Whose answer stands first. drawn: one order for each question, drawn from its text as AlpacaEval 1 does",
    )
    scheme: Scheme = Field(
        default="mean",
        description="mean: of both orders' win rates, as DistiLLM-2; disagreement_is_tie: between orders, as MT-Bench",
    )
    parsing: Parsing = Field(
        default="reference",
        description="reference: the first of [[A]], [[B]], [[C]] that stands anywhere, as published; strict: the last verdict",
    )
    confidence: float = Field(default=CONFIDENCE, gt=0, lt=1, description="Level of the intervals")

    @model_validator(mode="after")
    def _scheme_has_its_orders(self) -> Self:
        if self.scheme == "disagreement_is_tie" and self.order != "both":
            raise ValueError(f"scheme disagreement_is_tie compares both orders: set order to both, not {self.order}")
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
