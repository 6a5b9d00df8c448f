"""Which responses are kept before training, and by which score."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from vcrd_ray.config.base import Section


class SelectSection(Section):
    """Scores of rollouts under the student as it is, and what is kept of them."""

    rollouts: Path | None = Field(default=None, description="Rollouts directory; none: the one in this run directory")
    score: Literal["lalp", "aslec_drop", "naturalness", "rsr", "correct", "divergence"] = Field(
        default="lalp",
        description="lalp, aslec_drop: log-probability of steps given the few before; naturalness: of the whole response;"
        " rsr: rank over surprisal (low is good); correct: the gold answer; divergence: share of steps that the teacher"
        " finds far likelier than the student",
    )
    side: Literal["teacher", "student"] = Field(default="teacher", description="Whose responses are scored")
    steps: Literal["lines", "sentences"] = Field(
        default="lines", description="A step ends at a line break; sentences: also behind . ! ? and a space"
    )
    window: int = Field(default=4, ge=0, description="Previous steps that a step is read with (lalp, aslec_drop)")
    rank_clip: int = Field(default=100, ge=1, description="Larger token ranks count as this one (rsr)")
    divergence_factor: float = Field(
        default=1.25,
        gt=0,
        description="A teacher's step: its geometric-mean token probability under the teacher is above this many times that"
        " under the student (divergence). 1.25: a step of ten tokens is about ten times as likely",
    )
    require_correct: bool = Field(
        default=False, description="Only responses with the gold answer; prompts that have none are left out"
    )
    keep_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of the prompts that is kept, those with the best chosen response"
    )
    max_batch_tokens: int = Field(default=16384, ge=1, description="Padded tokens of one forward at most")
    row_tokens: int = Field(
        default=512,
        ge=1,
        description="Windows are laid end to end in rows of this many tokens; a longer one has its own",
    )
    chunk_rows: int = Field(default=256, ge=1, description="Positions whose logits exist at a time")
    gpus: float = Field(default=0, ge=0, description="0: on the CPU; else on the GPU of this process")
