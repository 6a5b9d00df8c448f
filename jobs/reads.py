"""Which keys each job reads: one that is given on its command line and that it does not read is refused.

A file may hold keys of other jobs, because one file describes all stages. Knows nothing of what the jobs do with them.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence

from vcrd_ray.config import Config
from vcrd_ray.config.base import keys
from vcrd_ray.errors import ConfigError

_ALL = tuple(dict.fromkeys(key for key, _ in keys(Config)))


def _keys_of(*prefixes: str, but: Sequence[str] = ()) -> frozenset[str]:
    """All keys below some, and the sections that they stand in."""

    def below(key: str, tops: Sequence[str]) -> bool:
        return any(key == top or key.startswith(f"{top}.") for top in tops)

    unknown = {*prefixes, *but} - set(_ALL)
    assert not unknown, f"no such keys: {unknown}"
    return frozenset(key for key in _ALL if below(key, prefixes) and not below(key, but))


_PLACE = ("run.dir", "run.storage", "run.resume", "run.seed")
_CLUSTER = tuple(f"cluster.{key}" for key in ("address", "pools", "dashboard", "object_store_gib", "start_timeout_s"))
_ENGINE = tuple(
    f"teacher.{key}" for key in ("engine", "vllm", "dtype", "gpus_per_replica", "threads", "max_batch_tokens")
)
_HELD_OUT = tuple(f"evaluate.{key}" for key in ("prompts", "sampling", "batch_size", "replicas", "confidence"))

_SFT = _keys_of("run", *_CLUSTER, "world", "prompt", "student", "sft", but=("sft.skip",))
_ROLLOUTS = _keys_of(
    *(*_PLACE, *_CLUSTER, "world", "prompt", "student.path", "teacher", "rollouts"),
    but=("teacher.transport", "teacher.top_k", "teacher.min_replicas", "rollouts.refresh"),
)
_DISTILL = _keys_of(
    *("run", "cluster", "world", "prompt", "student", "teacher", "judge", "distill"),
    *("rollouts.refresh", "rollouts.sampling", "rollouts.batch_size"),
)
_PIPELINE = _SFT | _ROLLOUTS | _DISTILL | _keys_of(*_HELD_OUT, "sft.skip")

READS: Mapping[str, frozenset[str]] = {
    "sft": _SFT,
    "rollouts": _ROLLOUTS,
    "distill": _DISTILL,
    "evaluate": _keys_of(*_PLACE, *_CLUSTER, "world", "prompt", "student.path", *_ENGINE, "evaluate"),
    "pipeline": _PIPELINE,
    "demo": _PIPELINE,
    "calibrate": _keys_of(
        *("run.dir", "run.storage", "run.seed", "student.path", "judge", "distill.rollouts", "distill.max_length")
    ),
    "select": _keys_of(
        *(*_PLACE, "student.path", "student.dtype", "student.threads", "teacher.path", "teacher.dtype"),
        *("select", "distill.max_length"),
    ),
    "tables tiny": _keys_of(
        *("run.dir", "world", "student", "teacher", "judge", "prompt", "sft", "rollouts", "distill"), *_HELD_OUT
    ),
    # They look at a distillation before it is started, and take its command line as it is.
    "plan": _PIPELINE | _keys_of("plan"),
    "doctor": _PIPELINE | _keys_of("plan"),
}
"""By job."""


_WITH_MANY = ("demo", "doctor", "plan", "tables tiny")


def given_keys(options: Sequence[str]) -> list[str]:
    """The keys of a command line, in its order."""
    return [option[2:].partition("=")[0] for option in options if option.startswith("--") and len(option) > 2]


def refuse_unread(job: str, given: Sequence[str]) -> None:
    """Refuse the first key that a job does not read.

    Raises:
        ConfigError: there is one; names who reads it, and the nearest key that this job does.
    """
    read = READS[job]
    for key in given:
        # A section given whole is read if anything in it is.
        if key not in _ALL or key in read or any(other.startswith(f"{key}.") for other in read):
            continue
        readers = [name for name in READS if key in READS[name]]
        others = [name for name in readers if name not in _WITH_MANY] or readers
        cure = f"jobs.{' and jobs.'.join(others)} read{'s' * (len(others) == 1)} it"
        close = [other for other in read if other.rpartition(".")[2] == key.rpartition(".")[2]]
        near = difflib.get_close_matches(key, sorted(close), n=1, cutoff=0)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ConfigError(f"--{key}: jobs.{job} does not read it; {cure}{hint}")


def refuse_idle(flags: argparse.Namespace, section: str, when: str) -> None:
    """Refuse keys of a section that has no effect as the job was called.

    Args:
        when: how it was called.

    Raises:
        ConfigError: one of its keys stands on the command line.
    """
    for key in flags.given:
        if key == section or key.startswith(f"{section}."):
            raise ConfigError(f"--{key} has no effect {when}; leave it out")
