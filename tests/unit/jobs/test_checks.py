"""What jobs refuse before anything is loaded: models that cannot be used for what the job does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from jobs import evaluate, rollouts, select, sft
from jobs.common import check_models
from tests.unit.models.families import ENCODERS, MORE, PLAIN, WEIGHTS, edit_json, edit_weights, write_model
from vcrd_ray.config import Config
from vcrd_ray.config.methods import with_method
from vcrd_ray.config.models import Judge
from vcrd_ray.errors import ModelError
from vcrd_ray.judges.loading import check_judge
from vcrd_ray.models.checkpoint_files import load_tokenizer
from vcrd_ray.planning.tokenizers import model_here

MAKERS: dict[str, Callable[[Path], Path]] = {
    "logits are more than": lambda path: write_model(path, MORE["cohere"]()),
    "no causal language model": lambda path: write_model(path, ENCODERS["bert"]()),
    "foreign": lambda path: lacking_names(write_model(path, PLAIN["llama"]())),
    "its tokenizer has 345 tokens, the last '<b>' with id 344, and the model's embedding 343 rows": lambda path: (
        longer_tokenizer(write_model(path, PLAIN["llama"]()))
    ),
}


def lacking_names(path: Path) -> Path:
    edit_weights(path, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()})
    return path


def longer_tokenizer(path: Path) -> Path:
    """Two tokens behind the embedding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(path)
    return path


def test_padding_that_transformers_adds_is_refused_to_those_who_pad(tmp_path: Path) -> None:
    path = write_model(tmp_path, PLAIN["qwen2"]())
    file = path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"}
    file.write_text(json.dumps(kept))
    with pytest.raises(ModelError, match=r"transformers adds '<\|endoftext\|>' .* 343 rows .* set them"):
        sft.check(config_of(student={"path": str(path)}), fetch=False)
    assert len(load_tokenizer(path, pads=False)) == 344


def config_of(**sections: object) -> Config:
    return with_method(Config.model_validate(sections), "vcrd")


@pytest.mark.parametrize("said", MAKERS)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_training_refuses_models_that_it_cannot_learn_from(tmp_path: Path, role: str, said: str) -> None:
    config = config_of(**{role: {"path": str(MAKERS[said](tmp_path))}})
    with pytest.raises(ModelError) as caught:
        check_models(config, teacher=True, judge=False, fetch=False)
    assert str(tmp_path) in str(caught.value)
    assert said in str(caught.value)
    if role == "student":
        with pytest.raises(ModelError):
            sft.check(config, fetch=False)


@pytest.mark.parametrize("said", MAKERS)
def test_writing_responses_refuses_what_cannot_be_loaded_and_nothing_else(tmp_path: Path, said: str) -> None:
    model = str(MAKERS[said](tmp_path))
    written = config_of(teacher={"path": model})
    evaluated = config_of(evaluate={"model": model})
    if said == "logits are more than":
        rollouts.check(written, fetch=False)
        evaluate.check(evaluated, fetch=False)
        return
    with pytest.raises(ModelError, match=said):
        rollouts.check(written, fetch=False)
    with pytest.raises(ModelError, match=said):
        evaluate.check(evaluated, fetch=False)


def test_selection_refuses_a_model_whose_logits_it_cannot_make(tmp_path: Path) -> None:
    config = config_of(student={"path": str(write_model(tmp_path, MORE["granite"]()))})
    with pytest.raises(ModelError, match="logits are more than"):
        select.check(config, [], fetch=False)


@pytest.mark.parametrize("said", [s for s in MAKERS if "tokenizer" not in s])
def test_judges_that_are_language_models_are_checked(tmp_path: Path, said: str) -> None:
    judged = config_of(judge={"type": "implicit", "path": str(MAKERS[said](tmp_path)), "reference": "tiny:teacher"})
    if said == "foreign":  # a judge's own loader knows more names
        check_models(judged, teacher=False, judge=True, fetch=False)
        return
    with pytest.raises(ModelError, match=said):
        check_models(judged, teacher=False, judge=True, fetch=False)


@pytest.mark.parametrize("kind", ["value_head", "qwen_prm", "step_tags", "implicit"])
def test_judges_whose_weights_are_none_are_refused(tmp_path: Path, kind: str) -> None:
    path = write_model(tmp_path, PLAIN["llama"]())
    (path / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    template = {"template": "math_shepherd"} if kind == "step_tags" else {}
    reference = {"reference": "tiny:teacher"} if kind == "implicit" else {}
    section = TypeAdapter(Judge).validate_python({"type": kind, "path": str(path), **template, **reference})
    with pytest.raises(ModelError, match="pointer of git-lfs"):
        check_judge(section, policy="tiny:student-base")


def test_the_doctor_says_why_a_model_cannot_be_used(tmp_path: Path) -> None:
    path = str(write_model(tmp_path, MORE["phi"]()))
    assert model_here(path, False, True)[1] == ""
    assert "logits are more than" in model_here(path, True, True)[1]
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "is not installed" in model_here(path, False, True)[1]
    assert model_here(path, False, False)[1] == ""


def test_a_hidden_teachers_head_must_be_found(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 343, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.GPTNeoXConfig(**sizes, num_attention_heads=2, bos_token_id=1, eos_token_id=2)
    path = str(write_model(tmp_path, config))
    check_models(config_of(teacher={"path": path, "transport": "logits"}), teacher=True, judge=False, fetch=False)
    with pytest.raises(ModelError, match=r"no lm_head\.weight in its safetensors.*teacher\.transport logits"):
        check_models(config_of(teacher={"path": path}), teacher=True, judge=False, fetch=False)
