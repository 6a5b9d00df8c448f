"""What made a rollouts directory, what its parts hold, and how its pairs are told apart. Knows nothing of the parts' files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vcrd_ray.config.data import PromptSection, SamplingSection
from vcrd_ray.errors import DataError
from vcrd_ray.types import Prompt

MANIFEST = "manifest.json"
_SAMPLE_MARK = re.compile(r"(.*)#(\d+)", re.DOTALL)


class Manifest(BaseModel):
    """What made a rollouts directory. Two runs with equal manifests make equal rollouts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    student: str
    tokenizer: str
    template: str
    """Fingerprint of `prompt` and of the chat template it is put through."""
    prompt: PromptSection
    seeds: tuple[int, ...]
    """One, but for merged directories."""
    sampling: SamplingSection
    stop_ids: dict[Literal["teacher", "student"], tuple[int, ...]] | None = None
    """After which a response of each has ended. None: made before they were recorded."""
    samples: int
    """Most pairs of one prompt."""
    num_prompts: int
    rejects: dict[str, int]
    """How many rows and prompts were rejected, by kind."""
    blocks: tuple[int, ...]
    """Pairs in each part."""
    prompts: str
    """Digest of the prompts in order, token ids included; of merged directories: of their digests."""
    pairs: str
    """Digest of the pair ids in order: what the parts must hold, no more and no less."""

    @property
    def num_blocks(self) -> int:
        """Number of parts."""
        return len(self.blocks)

    @property
    def num_pairs(self) -> int:
        """Over all parts."""
        return sum(self.blocks)


class SideTotals(BaseModel):
    """What one model made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = 0
    seconds: float = 0.0
    """Spent generating, summed over replicas."""
    finish_reasons: dict[str, int] = {}

    def __add__(self, other: SideTotals) -> SideTotals:
        reasons = Counter(self.finish_reasons) + Counter(other.finish_reasons)
        return SideTotals(
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
            finish_reasons=dict(sorted(reasons.items())),
        )

    @property
    def tokens_per_s(self) -> float:
        """Of one replica; 0 where no time was measured."""
        return self.tokens / self.seconds if self.seconds else 0.0


class PartTotals(BaseModel):
    """What a part holds, or several."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int = 0
    teacher: SideTotals = SideTotals()
    student: SideTotals = SideTotals()

    def __add__(self, other: PartTotals) -> PartTotals:
        return PartTotals(
            pairs=self.pairs + other.pairs,
            teacher=self.teacher + other.teacher,
            student=self.student + other.student,
        )


def pair_id(prompt_id: str, sample: int) -> str:
    """Id of one pair of a prompt: the prompt's own for the first, so that one pair a prompt needs no other name."""
    return f"{prompt_id}#{sample}" if sample else prompt_id


def split_pair_id(pair: str) -> tuple[str, int]:
    """The prompt's id and the sample."""
    match = _SAMPLE_MARK.fullmatch(pair)
    return (match[1], int(match[2])) if match else (pair, 0)


def with_samples(prompts: Sequence[Prompt], samples: int) -> list[Prompt]:
    """Each prompt `samples` times under its pair ids, which is what engines draw random numbers by."""
    return [replace(prompt, id=pair_id(prompt.id, i)) for prompt in prompts for i in range(samples)]


def ids_digest(ids: Iterable[str]) -> str:
    """Short hash of pair ids in order."""
    digest = hashlib.sha256()
    for text in ids:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Short hash of prompts in order, token ids included."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.id.encode() + b"\0" + prompt.ids.tobytes() + b"\0")
    return digest.hexdigest()[:16]


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a rollouts directory.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        return Manifest.model_validate_json((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{directory}: no rollouts here (no {MANIFEST}); run jobs.rollouts first") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise DataError(
            f"{directory / MANIFEST} is damaged: {error.error_count()} wrong fields ({where}: {first['msg']}); make it again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{directory / MANIFEST} cannot be read: {error}; make it again") from None


def check_manifest(directory: Path, *, teacher: str, tokenizer: str, student: str | None = None) -> Manifest:
    """The manifest of rollouts that this teacher and this tokenizer made, and this student if one is given.

    Raises:
        DataError: there is none, or something else made them.
    """
    manifest = read_manifest(directory)
    made = (("teacher", manifest.teacher, teacher), ("tokenizer", manifest.tokenizer, tokenizer))
    for name, found, wanted in (*made, ("student", manifest.student, student or manifest.student)):
        if found != wanted:
            raise DataError(
                f"{directory}: made with {name} {found}, this run has {name} {wanted};"
                f" make rollouts with this {name}, or configure the one they were made with"
            )
    return manifest
