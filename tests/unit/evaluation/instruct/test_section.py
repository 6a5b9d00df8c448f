"""What may be configured, and what is refused."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from vcrd_ray.config.instruct import EndpointSection, InstructSection


@pytest.mark.parametrize(
    "base_url",
    ["https://api.openai.com/v1", "http://localhost:8000/v1", "http://127.0.0.5:1/v1", "http://[::1]:8000/v1"],
)
def test_https_and_loopback_are_accepted(base_url: str) -> None:
    assert EndpointSection(base_url=base_url).base_url == base_url


@pytest.mark.parametrize(
    "host", ["10.0.0.1:8000", "judge.example", "localhost.example", "0.0.0.0:80", "127.0.0.1.example"]
)
def test_http_elsewhere_is_refused_unless_allowed(host: str) -> None:
    with pytest.raises(ValidationError, match="over http, where anybody on the way reads key"):
        EndpointSection(base_url=f"http://{host}/v1")
    assert EndpointSection(base_url=f"http://{host}/v1", allow_http=True).allow_http


@pytest.mark.parametrize(
    "base_url", ["ftp://host/v1", "host/v1", "https:///v1", "https://host:port/v1", "https://a b/v1", ""]
)
def test_what_is_no_address_is_refused(base_url: str) -> None:
    with pytest.raises(ValidationError, match="base_url is no address"):
        EndpointSection(base_url=base_url)


@pytest.mark.parametrize(
    "base_url", ["https://me:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret"]
)
def test_an_address_cannot_hold_a_key(base_url: str) -> None:
    with pytest.raises(ValidationError, match="user name, a query or a fragment") as error:
        EndpointSection(base_url=base_url)
    assert "secret" not in str(error.value)


def test_an_option_without_effect_is_refused() -> None:
    with pytest.raises(ValidationError, match="no effect without max_tokens"):
        EndpointSection(max_tokens=None, max_tokens_field="max_completion_tokens")
    with pytest.raises(ValidationError, match="compares both orders: set order to both, not drawn"):
        InstructSection(scheme="disagreement_is_tie", order="drawn")


def test_a_key_in_place_of_its_variable_s_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="key_variable") as error:
        EndpointSection(key_variable="sk-proj-1234")
    assert "sk-proj" not in str(error.value)


def test_sections_come_back_from_what_they_are_written_as() -> None:
    section = InstructSection(
        endpoint=EndpointSection.model_validate(
            {"max_tokens": None, "prices": {"gpt-4o": {"input_per_million": 2.5, "output_per_million": 10}}}
        )
    )
    assert InstructSection.model_validate_json(section.model_dump_json()) == section


def test_the_section_is_there_without_torch_ray_or_network_libraries() -> None:
    code = (
        "import sys, vcrd_ray.config.instruct\n"
        "print([m for m in ('torch', 'ray', 'transformers', 'httpx2', 'openai') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_whole_part_is_there_without_torch_or_ray() -> None:
    code = (
        "import sys, vcrd_ray.evaluation.instruct.client, vcrd_ray.evaluation.instruct.figures\n"
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
