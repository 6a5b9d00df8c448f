"""Models whose logits are more than their output embedding times their final states are found out, whatever they are."""

from pathlib import Path

import pytest
import torch

from tests.conftest import STUDENT
from tests.unit.models.families import CPU, MORE, PLAIN, write_model
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import ModelError
from vcrd_ray.judges.language_model import load_language_model
from vcrd_ray.models.causal_lm import check_architecture, check_checkpoint, read_causal_config
from vcrd_ray.models.checkpoint_files import load_causal_lm, resolve_model
from vcrd_ray.models.output_head import check_plain_head
from vcrd_ray.models.student import Student
from vcrd_ray.selection.windows import TokenScorer

REFUSED = "logits are more than its output embedding times its final states"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", PLAIN)
def test_plain_heads_pass_with_weights_and_without(tmp_path: Path, family: str, dtype: str) -> None:
    path = write_model(tmp_path, PLAIN[family]())
    check_checkpoint(path, plain_head=True, by_transformers=True, trained=True)
    check_plain_head(load_causal_lm(path, dtype=dtype, device=CPU), family)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", MORE)
def test_other_heads_are_refused_with_weights_and_without(tmp_path: Path, family: str, dtype: str) -> None:
    path = write_model(tmp_path, MORE[family]())
    check_checkpoint(path, plain_head=False, by_transformers=True)
    with pytest.raises(ModelError, match=REFUSED):
        check_checkpoint(path, plain_head=True, by_transformers=True)
    with pytest.raises(ModelError, match=f"{family}: .*{REFUSED}.*use a model whose"):
        check_plain_head(load_causal_lm(path, dtype=dtype, device=CPU), family)


@pytest.mark.parametrize("family", ["gemma2", "phi", "cohere", "granite"])
def test_whoever_makes_logits_refuses_them(tmp_path: Path, family: str) -> None:
    path = str(write_model(tmp_path, MORE[family]()))
    for lora in (None, LoraSection(r=2)):
        with pytest.raises(ModelError, match=REFUSED):
            Student(StudentSection(path=path), lora=lora, train_head=True, device=CPU, seed=0)
    for use in ("annotate", None):
        with pytest.raises(ModelError, match=REFUSED):
            HFEngine(path, dtype="float32", device=CPU, use=use)
    with pytest.raises(ModelError, match="logits are more than"):
        load_language_model(tmp_path, dtype="float32", device=CPU)
    with pytest.raises(ModelError, match=REFUSED):
        model = load_causal_lm(tmp_path, dtype="float32", device=CPU)
        TokenScorer(model, vocab_size=343, max_batch_tokens=64, row_tokens=64, chunk_rows=8)


def test_whoever_only_writes_responses_takes_them(tmp_path: Path) -> None:
    HFEngine(str(write_model(tmp_path, MORE["gemma2"]())), dtype="float32", device=CPU, use="generate")


def test_the_probe_leaves_model_and_random_numbers_as_they_were() -> None:
    model = load_causal_lm(resolve_model(STUDENT), dtype="float32", device=CPU)
    ids, state = torch.arange(1, 9)[None], torch.get_rng_state()
    before = model(input_ids=ids).logits
    check_plain_head(model, STUDENT)
    check_architecture(resolve_model(STUDENT), read_causal_config(resolve_model(STUDENT)), plain_head=True)
    assert model(input_ids=ids).logits.equal(before)
    assert "forward" not in vars(model.get_decoder())
    assert torch.get_rng_state().equal(state)
