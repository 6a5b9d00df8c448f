"""A YAML file and the options of a command line -> one checked Config. Knows nothing of torch or Ray."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from jobs.mistakes import explain
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError


def check_file(path: Path) -> None:
    """Refuse what is no file of sections.

    Raises:
        ConfigError: no such file, no YAML, or no sections in it.
    """
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file; shipped configs are in jobs/configs")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected sections with keys, found a {type(content).__name__}")


def read_settings(file: Path | None, options: list[str], parser: argparse.ArgumentParser) -> Config:
    """The options first, the file second, the defaults last.

    Args:
        parser: shows the help and refuses unknown options.

    Raises:
        ConfigError: unknown key, wrong type or impossible combination; names key and cure.
    """

    class Settings(Config, BaseSettings):
        """Config, filled from the command line and the file."""

        model_config = SettingsConfigDict(frozen=True, extra="forbid", cli_prog_name=parser.prog)

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
            if file is None:
                return (command_line,)
            return (command_line, YamlConfigSettingsSource(settings_cls, yaml_file=file))

    try:
        settings = Settings()
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    except SettingsError as error:
        raise ConfigError(f"command line: {error}") from None
    return Config.model_validate(settings.model_dump(round_trip=True))
