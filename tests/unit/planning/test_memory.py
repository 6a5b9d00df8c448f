"""Estimates against what torch allocates: parameters, adapters, saved activations, logits of a chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config

from vcrd_ray.config import Config
from vcrd_ray.config.base import DType
from vcrd_ray.config.models import LoraSection
from vcrd_ray.config.plan import PlanSection, ShapeSection
from vcrd_ray.errors import ModelError
from vcrd_ray.method.divergences import SkewedKL
from vcrd_ray.method.fused import HiddenTeacher, fused_divergence
from vcrd_ray.models.checkpoint_files import resolve_model
from vcrd_ray.planning import memory
from vcrd_ray.planning.known_models import KNOWN
from vcrd_ray.planning.shapes import ModelShape, read_shape

TINY = ("tiny:student-base", "tiny:teacher")


def shape_of(sizes: ShapeSection) -> ModelShape:
    return ModelShape(sizes=sizes, source="a test")


@pytest.mark.parametrize("path", TINY)
def test_parameters_are_those_of_the_checkpoint(path: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(resolve_model(path))
    assert read_shape(path, PlanSection()).parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-Math-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-Coder-14B-Instruct", 14_770_033_664),
        ("deepseek-ai/deepseek-coder-1.3b-base", 1_346_471_936),
        ("deepseek-ai/deepseek-coder-6.7b-instruct", 6_740_512_768),
    ],
)
def test_known_models_have_the_parameters_that_are_published(path: str, parameters: int) -> None:
    assert shape_of(KNOWN[path]).parameters == parameters


def test_a_family_with_normed_queries_is_counted_as_transformers_makes_it() -> None:
    config = Qwen3Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=96,
        vocab_size=100,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = ShapeSection(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        intermediate_size=96,
        vocab_size=100,
        tied=False,
        qkv_bias=False,
        qk_norm=True,
    )
    assert shape_of(sizes).parameters == model.num_parameters()


def test_sizes_come_from_the_plan_before_all_else_and_a_stranger_is_refused(tmp_path: Path) -> None:
    own = PlanSection(shapes={"Qwen/Qwen2.5-0.5B": KNOWN["Qwen/Qwen2.5-1.5B"]})
    assert read_shape("Qwen/Qwen2.5-0.5B", own).parameters == 1_543_714_304
    with pytest.raises(ModelError, match=r"owner/stranger: its config.json is not here .* plan.shapes"):
        read_shape("owner/stranger", PlanSection())
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="does not know the layers of model_type mamba"):
        read_shape(str(tmp_path), PlanSection())


@pytest.mark.parametrize("path", sorted({m for m in KNOWN if "Instruct" in m})[:3])
def test_adapters_are_those_that_peft_makes(path: str) -> None:
    sizes = KNOWN[path]
    config = Qwen2Config(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        intermediate_size=sizes.intermediate_size,
        vocab_size=64,
        tie_word_embeddings=sizes.tied,
    )
    with torch.device("meta"):
        model = get_peft_model(
            AutoModelForCausalLM.from_config(config),
            LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of(sizes.model_copy(update={"num_layers": 2})).adapters(16) == made


def _small(layers: int) -> ShapeSection:
    return ShapeSection(
        hidden_size=64,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        intermediate_size=200,
        vocab_size=64,
        tied=True,
    )


def _model(sizes: ShapeSection, dtype: DType, lora: LoraSection | None) -> PreTrainedModel:
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            intermediate_size=sizes.intermediate_size,
            vocab_size=sizes.vocab_size,
            tie_word_embeddings=True,
        )
    ).to(getattr(torch, dtype))
    if lora is None:
        return model.train()
    adapters = LoraConfig(r=lora.r, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped: PreTrainedModel = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return wrapped.train()


def _kept_bytes(model: PreTrainedModel, tokens: int, *, lora: bool) -> int:
    """Storage that a forward pass keeps beside the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    causal = model.get_base_model() if lora else model
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        causal.get_decoder()(input_ids=torch.ones(2, tokens // 2, dtype=torch.long), use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraSection(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_layer_keeps_as_many_bytes_as_estimated(dtype: DType, lora: LoraSection | None, checkpointing: bool) -> None:
    tokens, kept = 32, []
    for layers in (2, 3):
        model = _model(_small(layers), dtype, lora)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        kept.append(_kept_bytes(model, tokens, lora=lora is not None))

    def estimate(layers: int) -> int:
        items = memory.activation_items(
            shape_of(_small(layers)), tokens=tokens, graphs=1, dtype=dtype, lora=lora, checkpointing=checkpointing
        )
        return items[0].bytes

    assert kept[1] - kept[0] == estimate(3) - estimate(2)


def test_two_micro_batches_in_flight_keep_twice_as_much() -> None:
    def activations(overlap: bool) -> int:
        config = Config.model_validate({"distill": {"overlap": overlap}})
        shapes = [read_shape(path, config.plan) for path in TINY]
        (item,) = [i for i in memory.distill_items(config, *shapes) if i.what == "activations"]
        return item.bytes

    assert activations(True) == 2 * activations(False)


class _Peak(TorchDispatchMode):
    """Most bytes of tensors made inside that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._made.values()))
        return found


def test_a_chunk_of_logits_has_the_estimated_bytes_and_no_more_than_the_estimated_tensors_live_at_once() -> None:
    rows, vocabulary, width, chunk = 12, 50_000, 8, 6
    logits = torch.empty(chunk, vocabulary)
    assert memory.chunk_bytes(rows=chunk, vocabulary=vocabulary) == logits.untyped_storage().nbytes()
    del logits
    torch.manual_seed(0)
    student = torch.randn(rows, width, requires_grad=True)
    heads = torch.randn(2, vocabulary, width)
    teacher = HiddenTeacher(hidden=torch.randn(rows, width), head=heads[0])
    with _Peak() as peak:
        fused_divergence(
            divergence=SkewedKL(alpha=0.1),
            student_hidden=student,
            student_head=heads[1],
            teacher=teacher,
            vocab_size=vocabulary,
            chunk_rows=chunk,
        )
    # Views of the heads that the loss makes are no new memory.
    beyond = (peak.most - heads.untyped_storage().nbytes()) / memory.chunk_bytes(rows=chunk, vocabulary=vocabulary)
    assert 3 < beyond <= memory._CHUNK_TENSORS + 0.1
