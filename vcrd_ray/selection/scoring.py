"""A config -> its models, and their scores of rollouts. Owns the errors that name a setting as the cure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vcrd_ray.config import Config
from vcrd_ray.data.manifest import check_manifest, read_manifest
from vcrd_ray.data.problems import Reject
from vcrd_ray.errors import DataError
from vcrd_ray.grading.figures import GradingFigures
from vcrd_ray.models.checkpoint_files import (
    device_for,
    load_causal_lm,
    load_tokenizer,
    model_fingerprint,
    must_be_fetched,
    resolve_model,
    tokenizer_fingerprint,
)
from vcrd_ray.selection.candidates import Candidate, read_candidates
from vcrd_ray.selection.scores import NEEDS_STEPS, ResponseScore, score_candidates
from vcrd_ray.selection.steps import StepSplitter
from vcrd_ray.selection.windows import TokenScorer, step_windows, whole_response

_BATCH = 64
"""Responses that are packed together, so that progress can be shown."""


def check_rollouts(config: Config, directories: Sequence[Path], *, fetch: bool = True) -> None:
    """Refuse rollouts that these models cannot score.

    Args:
        fetch: ask also after models that must be copied here first.

    Raises:
        DataError: rollouts of another tokenizer, or of another teacher where its own likelihoods count.
    """
    manifests = {directory: read_manifest(directory) for directory in directories}
    if not fetch and must_be_fetched(config.student.path):
        return
    tokenizer = tokenizer_fingerprint(load_tokenizer(resolve_model(config.student.path)))
    for directory, manifest in manifests.items():
        check_manifest(directory, teacher=manifest.teacher, tokenizer=tokenizer)
        if config.select.score == "divergence" and (fetch or not must_be_fetched(config.teacher.path)):
            # What another teacher finds likely says nothing of this one's steps.
            teacher = model_fingerprint(resolve_model(config.teacher.path))
            check_manifest(directory, teacher=teacher, tokenizer=tokenizer)


class Scoring:
    """The models of a config, and what they say of rollouts."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.student.threads)
        self._config = config
        self._tokenizer = load_tokenizer(resolve_model(config.student.path))
        self._splitter = StepSplitter(self._tokenizer, config.select.steps)
        self._models: tuple[TokenScorer | None, TokenScorer | None] | None = None

    def candidates(self, directory: Path) -> tuple[list[Candidate], list[Reject], GradingFigures]:
        """The responses of the configured side, the rejected rows, and what became of the responses.

        Raises:
            DataError: none is usable, or the score has nothing to go by in any of them.
        """
        section = self._config.select
        candidates, rejects, grading = read_candidates(
            directory,
            side=section.side,
            tokenizer=self._tokenizer,
            splitter=self._splitter,
            max_length=self._config.distill.max_length,
            thinking=self._config.evaluate.thinking,
        )
        if (section.score == "correct" or section.require_correct) and all(c.correct is None for c in candidates):
            raise DataError(
                f"{grading.ungraded_because}; or choose another select.score without select.require_correct"
            )
        if section.score in NEEDS_STEPS and all(len(c.steps) == 1 for c in candidates):
            other = "set select.steps to sentences, or " if section.steps == "lines" else ""
            raise DataError(
                f"{directory}: no response of the {section.side} has more than one step, so {section.score} has nothing to"
                f" tell apart; {other}use select.score naturalness, which needs no steps"
            )
        return candidates, rejects, grading

    def scores(self, candidates: Sequence[Candidate], on_scored: Callable[[int], None]) -> list[ResponseScore | None]:
        """The configured score of each response; `on_scored` is told of each batch. Models are loaded at the first call."""
        student, teacher = self._models = self._models or self._load(candidates[0])
        found: list[ResponseScore | None] = []
        for start in range(0, len(candidates), _BATCH):
            batch = candidates[start : start + _BATCH]
            found += score_candidates(batch, self._config.select, student=student, teacher=teacher)
            on_scored(len(batch))
        return found

    @property
    def costs(self) -> bool:
        """Whether scores take a model."""
        return self._config.select.score != "correct"

    @property
    def num_tokens(self) -> int:
        """Tokens that the models have read."""
        return sum(model.num_tokens for model in self._models or () if model is not None)

    def _load(self, example: Candidate) -> tuple[TokenScorer | None, TokenScorer | None]:
        section, config = self._config.select, self._config

        def scorer(path: str, dtype: str) -> TokenScorer:
            found = TokenScorer(
                load_causal_lm(resolve_model(path), dtype=dtype, device=device_for(section.gpus)),
                vocab_size=len(self._tokenizer),
                max_batch_tokens=section.max_batch_tokens,
                row_tokens=section.row_tokens,
                chunk_rows=section.chunk_rows,
            )
            found.self_check([*step_windows(example, section.window), whole_response(example)])
            return found

        if section.score == "correct":
            return None, None
        teacher = section.score == "divergence"
        return (
            scorer(config.student.path, config.student.dtype),
            scorer(config.teacher.path, config.teacher.dtype) if teacher else None,
        )
