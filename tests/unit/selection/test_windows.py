"""Packed documents score what each would alone, and logits never exist for all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import write_rollouts
from tests.unit.selection.sampled import candidates_of, scorer
from vcrd_ray.errors import ModelError
from vcrd_ray.judges.attention import AttentionKind
from vcrd_ray.judges.packed_trees import PackedTrees, Tree
from vcrd_ray.selection.candidates import Candidate
from vcrd_ray.selection.windows import Document, TokenScorer, step_windows, whole_response


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    return candidates_of(write_rollouts(tmp_path_factory.mktemp("windows") / "rollouts", 12))


def documents_of(candidates: Sequence[Candidate], window: int = 1) -> list[Document]:
    return [d for c in candidates for d in [*step_windows(c, window), whole_response(c)]]


class SeesNeighbours(TokenScorer):
    """Packs documents so that each sees those before it in its row."""

    def _pack(self, trees: Sequence[Tree], per_row: Sequence[int], kind: AttentionKind) -> PackedTrees:
        packed = super()._pack(trees, per_row, kind)
        return replace(packed, trunk_start=torch.zeros_like(packed.trunk_start))


def test_packed_windows_equal_separate_forwards(candidates: list[Candidate]) -> None:
    model, documents = scorer(), documents_of(candidates)
    for document, found in zip(documents, model.score(documents), strict=True):
        assert found.logp.dtype == np.float32
        np.testing.assert_allclose(found.logp, model.score_separately(document), atol=1e-5, rtol=0)
    assert model.self_check(documents) < 1e-5


def test_documents_that_see_their_neighbours_are_found_out(candidates: list[Candidate]) -> None:
    with pytest.raises(ModelError, match="differ from those of separate forwards"):
        scorer(kind=SeesNeighbours).self_check(documents_of(candidates))


def test_a_window_holds_the_prompt_and_at_most_k_steps_before(candidates: list[Candidate]) -> None:
    candidate = max(candidates, key=lambda c: len(c.steps))
    for window in (0, 1, 2, 99):
        for i, document in enumerate(step_windows(candidate, window)):
            before = candidate.response_ids[candidate.steps[max(0, i - window)].start : candidate.steps[i].start]
            context = [*candidate.prompt_ids, *before]
            assert document.ids[: document.first].tolist() == context
            assert document.ids[document.first :].tolist() == candidate.response_ids[candidate.steps[i]].tolist()


def test_windows_wider_than_the_response_score_its_tokens_as_the_whole_does(candidates: list[Candidate]) -> None:
    model = scorer()
    for candidate in candidates[:4]:
        windows = np.concatenate([s.logp for s in model.score(step_windows(candidate, 99))])
        np.testing.assert_allclose(windows, model.score([whole_response(candidate)])[0].logp, atol=1e-5)


def test_ranks_count_the_tokens_with_a_higher_logit(candidates: list[Candidate]) -> None:
    model = scorer(chunk_rows=7)
    document = whole_response(candidates[0])
    (found,) = model.score([document], ranks=True)
    ids = torch.from_numpy(document.ids.astype(np.int64))
    with torch.inference_mode():
        logits = model._model(input_ids=ids[None]).logits[0, document.first - 1 : -1]
    order = logits.argsort(-1, descending=True)
    expected = 1 + (order == ids[document.first :, None]).int().argmax(-1)
    assert found.rank is not None and found.rank.tolist() == expected.tolist()


class _LargestLogits(TorchDispatchMode):
    """The most rows of a tensor over the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dim() > 1 and result.shape[-1] == self.vocab_size:
            self.rows = max(self.rows, result.numel() // self.vocab_size)
        return result


def test_logits_exist_for_a_chunk_of_positions_only(candidates: list[Candidate]) -> None:
    model = scorer(chunk_rows=5)
    with _LargestLogits(model._vocab_size) as largest:
        # The head itself, transposed, has as many rows as the states are wide.
        found = model.score([whole_response(c) for c in candidates], ranks=True)
    width = model._head.shape[1]
    assert sum(len(s.logp) for s in found) > 2 * width >= largest.rows


def test_a_document_beyond_the_models_positions_is_refused() -> None:
    long = Document(ids=np.ones(100_000, dtype=np.int32), first=1)
    with pytest.raises(ModelError, match=r"lower distill\.max_length, or select\.window"):
        scorer().score([long])


def test_results_do_not_depend_on_how_documents_are_laid_out(candidates: list[Candidate], tmp_path: Path) -> None:
    documents, model = documents_of(candidates), scorer()
    together = model.score(documents)
    for document, found in zip(documents[::5], together[::5], strict=True):
        np.testing.assert_allclose(model.score([document])[0].logp, found.logp, atol=1e-5)
