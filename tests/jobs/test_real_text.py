"""GSM8K prompts through rollouts and distillation: real text, byte-level BPE, vocabularies padded differently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.jobs.conftest import ROOT, run
from vcrd_ray.runs.files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.full]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
STUDENT_ROWS, TEACHER_ROWS = 640, 704  # padded past the tokenizer, each to its own size, as in Qwen2.5


def make_models(folder: Path, texts: list[str]) -> None:
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for name, rows, hidden in (
        ("student", STUDENT_ROWS, 64),
        ("teacher", TEACHER_ROWS, 96),
        ("judge", STUDENT_ROWS, 64),
    ):
        torch.manual_seed(hidden)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=rows,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=2,
                num_attention_heads=hidden // 32,
                num_key_value_heads=1,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    weights = folder / "judge" / "model.safetensors"
    head = {"v_head.summary.weight": torch.randn(1, 64), "v_head.summary.bias": torch.zeros(1)}
    save_file({**load_file(weights), **head}, weights, metadata={"format": "pt"})


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"GSM8K is not at {GSM8K}")
def test_gsm8k_rollouts_and_distillation(tmp_path: Path) -> None:
    lines = GSM8K.read_text(encoding="utf-8").splitlines()[:64]
    make_models(tmp_path, [json.loads(line)["question"] + "\n" + json.loads(line)["answer"] for line in lines])
    common = [
        *("--run.dir", str(tmp_path / "run")),
        *("--cluster.object_store_gib", "0.1"),
        *("--student.path", str(tmp_path / "student")),
        *("--teacher.path", str(tmp_path / "teacher")),
    ]
    prompts = [
        "--rollouts.prompts.type",
        "jsonl",
        "--rollouts.prompts.path",
        str(GSM8K),
        "--rollouts.prompts.count",
        "64",
    ]
    run("jobs.rollouts", *common, *prompts, "--rollouts.sampling.max_new_tokens", "24", "--rollouts.block_size", "32")

    from vcrd_ray.data.manifest import read_manifest
    from vcrd_ray.data.rollouts import read_pairs

    manifest = read_manifest(tmp_path / "run" / "rollouts")
    pairs, rejects = read_pairs(
        tmp_path / "run" / "rollouts",
        teacher=manifest.teacher,
        tokenizer=manifest.tokenizer,
        vocab_size=600,
        max_length=1024,
    )
    assert len(pairs) == 64 and not rejects and manifest.num_prompts == 64
    assert pairs[3].question == json.loads(lines[3])["question"]
    assert max(int(np.max(p.teacher_ids)) for p in pairs) < 600, "no padding row is ever sampled"

    small = ["--distill.num_updates", "3", "--distill.batch_size", "8", "--distill.micro_batch_size", "4"]
    options = [*small, "--distill.optim.lr", "1e-3"]
    judge = ["--judge.type", "value_head", "--judge.path", str(tmp_path / "judge")]
    run("jobs.distill", *common, *judge, *options)
    rows = read_jsonl(tmp_path / "run" / "distill" / "metrics.jsonl")
    assert len(rows) == 3 and all(np.isfinite(r["loss"]) and r["judge/judged_rows"] > 0 for r in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
