"""A YAML file and the options of a command line -> one checked Config. Knows nothing of torch or Ray."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from jobs.mistakes import explain
from jobs.reads import given_keys
from vcrd_ray.config import Config
from vcrd_ray.config.yaml_files import read_yaml
from vcrd_ray.errors import ConfigError


def read_sections(path: Path) -> dict[str, Any]:
    """The sections of a file, as they are written.

    Raises:
        ConfigError: no such file, no YAML, or no sections in it.
    """
    content = read_yaml(path, what="--config")
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected sections with keys, found a {type(content).__name__}")
    _check_texts(content, path, frozenset(), set())
    return content or {}


def _check_texts(content: object, path: Path, above: frozenset[int], done: set[int]) -> None:
    """Refuse keys that are no text, and anchors that hold themselves."""
    if id(content) in above:
        raise ConfigError(f"--config {path}: an anchor holds itself; write out what is meant")
    if id(content) in done or not isinstance(content, dict | list):
        return
    done.add(id(content))
    for key in content if isinstance(content, dict) else ():
        if not isinstance(key, str):
            raise ConfigError(f"--config {path}: the key {key!r} is no text; write it in quotes")
    for value in content.values() if isinstance(content, dict) else content:
        _check_texts(value, path, above | {id(content)}, done)


def read_settings(
    content: dict[str, Any], options: list[str], parser: argparse.ArgumentParser, *, file: Path | None
) -> Config:
    """The options first, the file's content second, the defaults last.

    Args:
        parser: shows the help and refuses unknown options.

    Raises:
        ConfigError: unknown key, wrong type or impossible combination; names key and cure.
    """

    class Settings(Config, BaseSettings):
        """Config, filled from the command line and the file."""

        model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=True, cli_prog_name=parser.prog)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            command_line: Any = CliSettingsSource(
                settings_cls, cli_parse_args=options, root_parser=parser, cli_hide_none_type=True, cli_avoid_json=True
            )
            return (command_line, InitSettingsSource(settings_cls, content))

    given = set(given_keys(options))

    def place(loc: Sequence[str]) -> str:
        return f"{file}: " if file is not None and _written(content, loc) not in (None, *given) else ""

    try:
        if not options:
            return Config.model_validate(content)
        settings = Settings()
    except ValidationError as error:
        raise ConfigError(explain(error, place)) from None
    except RecursionError:
        raise ConfigError("command line: a value is nested too deeply") from None
    except SettingsError as error:
        raise ConfigError(f"command line: {error}") from None
    return Config.model_validate(settings.model_dump(round_trip=True))


def _written(content: Any, loc: Sequence[str]) -> str | None:
    """The key of an error as it is written in a file; None where it is not. What is missing stands where its section does."""
    key: list[str] = []
    for number, part in enumerate(loc):
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdecimal() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part == content.get("type"):
            continue  # a union's tag, which stands in the error's path alone
        elif number != len(loc) - 1 or not key:
            return None
        key.append(part)
    return ".".join(key) or None
