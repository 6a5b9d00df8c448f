"""Checkpoints that cannot be used, and fingerprints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vcrd_ray.errors import ModelError
from vcrd_ray.models.checkpoint_files import (
    device_for,
    load_causal_lm,
    load_head,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
)


def copy(tmp_path: Path, name: str = "tiny:student-base") -> Path:
    return Path(shutil.copytree(resolve_model(name), tmp_path / "model"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", "no such directory"),
        ("./nowhere", "no such directory"),
        ("tiny:professor", "there are tiny:prm, tiny:student-base, tiny:teacher, tiny:teacher-weak"),
    ],
)
def test_paths_that_lead_nowhere_are_named(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(path)


def test_a_hub_name_that_cannot_be_fetched_says_what_to_check() -> None:
    with pytest.raises(ModelError, match="hub did not give it"):
        resolve_model("no-such-owner/no-such-model")


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights at all"):
        resolve_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safe_serialization"):
        resolve_model(str(tmp_path))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = copy(tmp_path)
    (path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(ModelError, match="no readable safetensors file"):
        load_causal_lm(path, dtype="float32", device=torch.device("cpu"))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    path = copy(tmp_path)
    for file in path.glob("token*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(path)


def test_fingerprints_follow_weights_and_not_places(tmp_path: Path) -> None:
    path = copy(tmp_path)
    before = model_fingerprint(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    assert model_fingerprint(path) == before == model_fingerprint(resolve_model("tiny:student-base"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(path) != before


def test_the_head_alone_equals_the_models(tmp_path: Path) -> None:
    path = resolve_model("tiny:teacher")
    model = load_causal_lm(path, dtype="float32", device=torch.device("cpu"))
    assert load_head(path, dtype="float32").equal(model.get_output_embeddings().weight)
    damaged = copy(tmp_path, "tiny:teacher")
    save_file({"x": torch.zeros(1)}, damaged / "model.safetensors")
    with pytest.raises(ModelError, match=r"no lm_head\.weight or model\.embed_tokens\.weight in its safetensors"):
        load_head(damaged, dtype="float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="CUDA is not available"):
        device_for(1)
