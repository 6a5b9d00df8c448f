"""Command line and YAML -> one checked Config. Knows nothing of torch or Ray, so that `--help` answers at once.

    python -m jobs.NAME --config FILE [--section.key value ...] [--dry-run]

The command line wins over the file, the file over the defaults.
"""

from __future__ import annotations

import argparse
import difflib
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from vcrd_ray.config import Config
from vcrd_ray.config.base import keys, leaf_types
from vcrd_ray.config.run import Resume
from vcrd_ray.errors import ConfigError, StoppedError, VcrdError

EXIT_USAGE = 2
EXIT_CAN_GO_ON = 75
"""Stopped early with everything saved (EX_TEMPFAIL): the same command goes on."""


def load_config(
    job: str, summary: str, argv: list[str], *, extra: argparse.ArgumentParser | None = None
) -> tuple[Config, argparse.Namespace]:
    """Config of one invocation, and the flags of the job itself (`config`, `dry_run` and those of `extra`).

    Raises:
        ConfigError: no such file, no YAML, unknown key, wrong type or impossible combination; names key and cure.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, parents=[extra] if extra else [])
    flags.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="YAML file with any part of the options below"
    )
    flags.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved config and the placement, stop"
    )
    flags.add_argument(
        "--resume",
        choices=get_args(Resume),
        default=None,
        help="short for --run.resume (default: auto, go on or begin)",
    )
    own, rest = flags.parse_known_args(argv)
    if own.resume is not None:
        rest += ["--run.resume", own.resume]
    if own.config is not None:
        _check_file(own.config)
    if own.config is None and not rest:
        return Config(), own

    prog = f"python -m jobs.{job}"

    class _Parser(argparse.ArgumentParser):
        """Refuses unknown options the way a wrong key in a file is refused."""

        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}{_suggest_option(message)}")

    class _Settings(Config, BaseSettings):
        """Config, filled from the command line first and the file second."""

        model_config = SettingsConfigDict(frozen=True, extra="forbid", cli_prog_name=prog)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            usage = f"{prog} [--config FILE] [--section.key VALUE ...] [--dry-run]"
            parser = _Parser(prog=prog, usage=usage, description=summary, parents=[flags], allow_abbrev=False)
            command_line: Any = CliSettingsSource(
                settings_cls, cli_parse_args=rest, root_parser=parser, cli_hide_none_type=True, cli_avoid_json=True
            )
            if own.config is None:
                return (command_line,)
            return (command_line, YamlConfigSettingsSource(settings_cls, yaml_file=own.config))

    try:
        settings = _Settings()
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except SettingsError as error:
        raise ConfigError(f"command line: {error}") from None
    return Config.model_validate(settings.model_dump(round_trip=True)), own


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file; shipped configs are in jobs/configs")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected sections with keys, found a {type(content).__name__}")


def _explain(error: ValidationError) -> str:
    """One line for each mistake: the key as a person writes it, what is wrong, the nearest right key."""
    lines = []
    for item in error.errors(include_url=False):
        loc = [str(part) for part in item["loc"]]
        key = ".".join(loc) or "config"
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_suggest_key(loc)}")
        elif item["type"] == "value_error":
            prefix = f"{'.'.join(loc)}: " if loc else ""
            lines.append(prefix + item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key}: {item['msg']} (got {item['input']!r})")
    return "\n".join(dict.fromkeys(lines))


def all_keys() -> list[str]:
    """Every dotted key a person may set."""
    return list(dict.fromkeys(key for key, _ in keys(Config)))


def _suggest_key(loc: list[str]) -> str:
    # A union's tag stands in the path that pydantic reports but not in the file: match with and without it.
    known = all_keys()
    written = ".".join(loc)
    tags = _tags()
    without_tags = ".".join(part for i, part in enumerate(loc) if i == len(loc) - 1 or part not in tags)
    if without_tags in known:
        return f": {loc[-1]} belongs to another type of {'.'.join(loc[:-2])}"
    for attempt in (written, without_tags):
        close = difflib.get_close_matches(attempt, known, n=1, cutoff=0.75)
        if close:
            return f"; did you mean {close[0]}?"
    return "; see --help for all keys"


def _tags(model: type[BaseModel] = Config) -> set[str]:
    """Every value of a union's `type`."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        if name == "type":
            found.add(field.default)
        for leaf in leaf_types(field.annotation):
            if isinstance(leaf, type) and issubclass(leaf, BaseModel):
                found |= _tags(leaf)
    return found


def _suggest_option(message: str) -> str:
    for word in message.split():
        if word.startswith("--"):
            close = difflib.get_close_matches(word.lstrip("-").split("=")[0], all_keys(), n=1, cutoff=0.75)
            if close:
                return f"; did you mean --{close[0]}?"
    return "; see --help for all options"


def run_main(main: Any) -> NoReturn:
    """Call a job's `main(argv) -> int` and turn the errors that people cause into one clear message and exit code."""
    try:
        code = main(sys.argv[1:])
    except ConfigError as error:
        print(f"config error: {error}", file=sys.stderr)
        code = EXIT_USAGE
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        code = EXIT_CAN_GO_ON
    except VcrdError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        code = 130
    except SystemExit as exit_:
        if exit_.code != signal.SIGTERM:
            raise
        print("told to end (SIGTERM); run the same command again to go on with what is finished", file=sys.stderr)
        code = EXIT_CAN_GO_ON
    sys.exit(code)
