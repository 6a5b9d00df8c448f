"""Command line and YAML -> one checked Config. Knows nothing of torch or Ray, so that `--help` answers at once.

    python -m jobs.NAME --config FILE [--section.key value ...] [--dry-run]

The command line wins over the file, the file over the defaults.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, get_args

from jobs.mistakes import suggest_option
from jobs.reads import given_keys, refuse_unread
from jobs.settings import read_sections, read_settings
from vcrd_ray.config import Config
from vcrd_ray.config.run import Resume
from vcrd_ray.errors import ConfigError, StoppedError, VcrdError

EXIT_USAGE = 2
EXIT_CAN_GO_ON = 75
"""Stopped early with everything saved (EX_TEMPFAIL): the same command goes on."""


def load_config(
    job: str, summary: str, argv: list[str], *, extra: argparse.ArgumentParser | None = None, any_key: bool = True
) -> tuple[Config, argparse.Namespace]:
    """Config of one invocation, and the flags of the job itself (`config`, `dry_run`, those of `extra`, `given` keys).

    Args:
        any_key: take keys that the job does not read (`jobs.reads`) from the command line too.

    Raises:
        ConfigError: no such file, no YAML, unknown key, wrong type or impossible combination; names key and cure.
    """
    flags = _common_flags(extra)
    own, rest = flags.parse_known_args(argv)
    if own.resume is not None:
        if "run.resume" in given_keys(rest):
            raise ConfigError("command line: --resume is short for --run.resume; give one of the two")
        rest += ["--run.resume", own.resume]
    own.given = given_keys(rest)
    content = {} if own.config is None else read_sections(own.config)
    if own.config is None and not rest:
        return Config(), own
    prog = f"python -m jobs.{job}"
    usage = f"{prog} [--config FILE] [--section.key VALUE ...] [--dry-run]"
    parser = _Parser(prog=prog, usage=usage, description=summary, parents=[flags], allow_abbrev=False)
    config = read_settings(content, rest, parser, file=own.config)
    if not any_key:
        refuse_unread(job, own.given)
    return config, own


class _Parser(argparse.ArgumentParser):
    """Refuses unknown options the way a wrong key in a file is refused."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}{suggest_option(message)}")


def _common_flags(extra: argparse.ArgumentParser | None) -> argparse.ArgumentParser:
    flags = _Parser(add_help=False, allow_abbrev=False, parents=[extra] if extra else [])
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
    return flags


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
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"config error: {error.filename}: no file system takes so long a name", file=sys.stderr)
        code = EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        code = 130
    except SystemExit as exit_:
        if exit_.code != signal.SIGTERM:
            raise
        print("told to end (SIGTERM); run the same command again to go on with what is finished", file=sys.stderr)
        code = EXIT_CAN_GO_ON
    sys.exit(code)
