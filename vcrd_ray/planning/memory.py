"""Config and sizes -> bytes on the device of one actor of a role, item by item. Knows no speeds and no nodes.

Weights, gradients, optimizer states and a chunk's logits are counted exactly; what a layer keeps for its backward pass is
what torch saves for Qwen2's layers on a CPU, where a dropout mask is as wide as its input (a GPU keeps one byte of each).
"""

from __future__ import annotations

from dataclasses import dataclass

from vcrd_ray.config import Config
from vcrd_ray.config.base import DType
from vcrd_ray.config.models import EnginePool, ImplicitJudgeSection, LoraSection, ModelJudge
from vcrd_ray.config.plan import HardwareSection
from vcrd_ray.engines import TEACHER_CHUNK_TOKENS
from vcrd_ray.judges import IMPLICIT_CHUNK_TOKENS
from vcrd_ray.planning.hardware import gpu_bytes
from vcrd_ray.planning.shapes import ModelShape

GIB = 1024**3
_WIDTH: dict[DType, int] = {"float32": 4, "bfloat16": 2}
_FP32 = 4
# DeepSpeed's default: gradients are copied into a bucket of this many numbers, however few there are.
_BUCKET_NUMBERS = 500_000_000
# Tensors of [chunk_rows, vocabulary] in float32 that live at the worst moment: both sides' logits and logarithms, and two
# of the divergence's own. The Triton kernel needs fewer.
_CHUNK_TENSORS = 6
_TEACHER_CHUNK_TENSORS = 3


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that takes memory."""

    what: str
    bytes: int


def total(items: list[Item]) -> int:
    """Bytes of all items."""
    return sum(item.bytes for item in items)


def dtype_bytes(dtype: DType) -> int:
    """Bytes of a number."""
    return _WIDTH[dtype]


def trainable(shape: ModelShape, *, lora: LoraSection | None, train_head: bool) -> int:
    """Parameters with gradients. A frozen head that is tied takes the embedding with it."""
    if lora is not None:
        return shape.adapters(lora.r)
    return shape.parameters if train_head else shape.parameters - shape.embedding


def training_items(
    shape: ModelShape, *, dtype: DType, zero: int, ranks: int, lora: LoraSection | None, train_head: bool
) -> list[Item]:
    """Weights, gradients and optimizer of one rank."""
    width, learnt = dtype_bytes(dtype), trainable(shape, lora=lora, train_head=train_head)
    weights = shape.parameters + (shape.adapters(lora.r) if lora is not None else 0)
    whole, shared = 1, ranks
    # A float32 model at stage 0 is its own master copy.
    states = (2 if dtype == "float32" and zero == 0 else 3) * _FP32 * learnt
    items = [
        Item(what="weights", bytes=width * weights // (shared if zero == 3 else whole)),
        Item(what="gradients", bytes=width * learnt // (shared if zero >= 2 else whole)),
        Item(what="optimizer states", bytes=states // (shared if zero >= 1 else whole)),
    ]
    if zero >= 1:
        items.append(Item(what="DeepSpeed's gradient bucket", bytes=width * _BUCKET_NUMBERS))
    if not train_head:
        items.append(Item(what="copy of the frozen head", bytes=width * shape.embedding))
    return items


def layer_bytes(shape: ModelShape, *, dtype: DType, lora: LoraSection | None) -> int:
    """What one layer keeps of one token for its backward pass."""
    b, sizes = dtype_bytes(dtype), shape.sizes
    query, kv, heads = sizes.num_heads * shape.head_dim, sizes.num_kv_heads * shape.head_dim, sizes.num_heads
    # Norms work in float32 and keep two rows of it, attention a float32 a head, rotations two float32.
    always = 2 * _FP32 * sizes.hidden_size + _FP32 * heads + 2 * _FP32 + 2 * b * kv
    if lora is None:
        return always + b * (4 * sizes.hidden_size + 2 * query + 4 * sizes.intermediate_size)
    return always + b * (10 * sizes.hidden_size + 4 * query + 5 * sizes.intermediate_size + 7 * lora.r)


def activation_items(
    shape: ModelShape, *, tokens: int, graphs: int, dtype: DType, lora: LoraSection | None, checkpointing: bool
) -> list[Item]:
    """What forward passes keep for their backward passes.

    Args:
        tokens: of one micro-batch, padding included.
        graphs: micro-batches between forward and backward at a time.
    """
    layers, one_layer = shape.sizes.num_layers, tokens * layer_bytes(shape, dtype=dtype, lora=lora)
    if not checkpointing:
        return [Item(what="activations", bytes=graphs * layers * one_layer)]
    inputs = tokens * shape.sizes.hidden_size * dtype_bytes(dtype)
    return [
        Item(what="checkpointed activations", bytes=graphs * layers * inputs),
        Item(what="one layer computed again", bytes=one_layer),
    ]


def chunk_bytes(*, rows: int, vocabulary: int) -> int:
    """One float32 tensor of logits of a chunk."""
    return rows * vocabulary * _FP32


def num_sequences(config: Config) -> int:
    """Responses of a micro-batch of pairs: both of each pair, or one where an objective mixes them."""
    return config.distill.micro_batch_size * (1 if config.distill.objective.mixing is not None else 2)


def distill_items(config: Config, student: ModelShape, teacher: ModelShape) -> list[Item]:
    """One student rank during distillation, at the longest sequences that are let in."""
    section, run = config.student, config.distill
    tokens, graphs = num_sequences(config) * run.max_length, 2 if run.overlap else 1
    vocabulary = min(student.sizes.vocab_size, teacher.sizes.vocab_size)
    items = training_items(
        student,
        dtype=section.dtype,
        zero=section.zero_stage,
        ranks=section.ranks,
        lora=run.lora,
        train_head=run.train_head,
    )
    items += activation_items(
        student,
        tokens=tokens,
        graphs=graphs,
        dtype=section.dtype,
        lora=run.lora,
        checkpointing=section.gradient_checkpointing,
    )
    if run.train_head:
        items.append(Item(what="head's gradient in float32", bytes=_FP32 * student.embedding))
    if run.objective.needs_teacher:
        if config.teacher.transport == "hidden":
            head = teacher.embedding * dtype_bytes(config.teacher.dtype)
            items.append(Item(what="teacher's output head", bytes=head))
        items.append(Item(what="teacher's signals", bytes=graphs * tokens * payload_bytes(config, teacher)))
    rows = 2 * graphs * tokens * student.sizes.hidden_size * dtype_bytes(section.dtype)
    items.append(Item(what="hidden states and gradient rows", bytes=rows))
    chunk = chunk_bytes(rows=min(run.chunk_rows, tokens), vocabulary=vocabulary)
    items.append(Item(what=f"logits of {run.chunk_rows} rows, {_CHUNK_TENSORS} tensors", bytes=_CHUNK_TENSORS * chunk))
    return _with_workspace(items, config, section.gpus_per_rank)


def sft_items(config: Config, student: ModelShape) -> list[Item]:
    """One student rank during supervised fine-tuning, which trains all parameters and forms all logits."""
    section, run = config.student, config.sft
    tokens = run.micro_batch_size * run.max_length
    items = training_items(
        student, dtype=section.dtype, zero=section.zero_stage, ranks=section.ranks, lora=None, train_head=True
    )
    items += activation_items(
        student,
        tokens=tokens,
        graphs=1,
        dtype=section.dtype,
        lora=None,
        checkpointing=section.gradient_checkpointing,
    )
    # Logits and their gradient in the model's type, and in float32 a copy, its log-softmax and its gradient.
    widths = 2 * dtype_bytes(section.dtype) + 3 * _FP32
    items.append(Item(what="logits of all rows", bytes=tokens * student.sizes.vocab_size * widths))
    return _with_workspace(items, config, section.gpus_per_rank)


def payload_bytes(config: Config, teacher: ModelShape) -> int:
    """What the teacher sends of one row."""
    width = dtype_bytes(config.teacher.dtype)
    match config.teacher.transport:
        case "hidden":
            return teacher.sizes.hidden_size * width
        case "logits":
            return teacher.sizes.vocab_size * width
        case "top_k":
            return config.teacher.top_k * 2 * 4  # an int32 and a float32


def teacher_items(config: Config, teacher: ModelShape) -> list[Item]:
    """One teacher that annotates a micro-batch."""
    width = dtype_bytes(config.teacher.dtype)
    if config.teacher.engine == "vllm":
        return _vllm_items(config, config.teacher, teacher, config.teacher.dtype, config.plan.teacher)
    tokens = num_sequences(config) * config.distill.max_length
    vocabulary = teacher.sizes.vocab_size
    items = [
        Item(what="weights", bytes=width * teacher.parameters),
        Item(what="one layer's forward", bytes=tokens * _forward_bytes(teacher, config.teacher.dtype)),
        Item(what="hidden states", bytes=2 * tokens * teacher.sizes.hidden_size * width),
        Item(
            what=f"logits of {TEACHER_CHUNK_TOKENS} rows, {_TEACHER_CHUNK_TENSORS} tensors",
            bytes=_TEACHER_CHUNK_TENSORS * chunk_bytes(rows=TEACHER_CHUNK_TOKENS, vocabulary=vocabulary),
        ),
    ]
    if config.teacher.transport == "logits":
        items.append(Item(what="logits that travel", bytes=2 * tokens * vocabulary * width))
    return _with_workspace(items, config, config.teacher.gpus_per_replica)


def judge_items(config: Config, judge: ModelShape, reference: ModelShape | None) -> list[Item]:
    """One judge; `reference` is the second model of an implicit one."""
    section = config.judge
    assert isinstance(section, ModelJudge)
    width, tokens = dtype_bytes(section.dtype), section.max_batch_tokens
    if reference is not None:
        heads = _FP32 * (judge.embedding + reference.embedding)
        items = [
            Item(what="weights of both models", bytes=width * (judge.parameters + reference.parameters)),
            Item(what="both heads in float32", bytes=heads),
        ]
    else:
        items = [Item(what="weights", bytes=width * judge.body)]
    items.append(Item(what="one layer's forward", bytes=tokens * _forward_bytes(judge, section.dtype)))
    if isinstance(section, ImplicitJudgeSection):
        chunk = chunk_bytes(rows=IMPLICIT_CHUNK_TOKENS, vocabulary=judge.sizes.vocab_size)
        items.append(Item(what="logits of a chunk of rows", bytes=chunk))
    return _with_workspace(items, config, section.gpus_per_replica)


def rollout_items(config: Config, student: ModelShape) -> list[Item]:
    """One writer of the student's responses."""
    pool, dtype = config.rollouts.refresh, config.student.dtype
    if pool.engine == "vllm":
        return _vllm_items(config, pool, student, dtype, config.plan.rollout)
    width, tokens = dtype_bytes(dtype), pool.max_batch_tokens
    adapters = 0 if config.distill.lora is None else student.adapters(config.distill.lora.r)
    items = [
        Item(what="weights", bytes=width * (student.parameters + adapters)),
        Item(what=f"key-value cache of {tokens} tokens", bytes=tokens * student.kv_width * width),
    ]
    return _with_workspace(items, config, pool.gpus_per_replica)


def _vllm_items(
    config: Config, pool: EnginePool, shape: ModelShape, dtype: DType, hardware: HardwareSection
) -> list[Item]:
    """vLLM takes its share of the GPU whatever the model needs; what is left of it is key-value cache."""
    width, parts = dtype_bytes(dtype), pool.vllm.tensor_parallel
    weights = Item(what="weights", bytes=width * shape.parameters // parts)
    workspace = int(config.plan.workspace_gib * GIB) if pool.gpus_per_replica else 0
    if not pool.gpus_per_replica:
        cache = pool.vllm.kv_cache_gib * GIB
    else:
        memory = gpu_bytes(hardware)
        if memory is None:
            return [weights, Item(what="workspace", bytes=workspace)]
        cache = max(0, int(memory * pool.vllm.gpu_memory_utilization) - weights.bytes - workspace)
    tokens = cache * parts // (shape.kv_width * width)
    items = [weights, Item(what=f"key-value cache, {tokens} tokens", bytes=cache)]
    return [*items, Item(what="workspace", bytes=workspace)] if workspace else items


def _forward_bytes(shape: ModelShape, dtype: DType) -> int:
    """What one layer holds of one token without gradients: the residual, its norm in float32, and the MLP's three rows."""
    sizes = shape.sizes
    width = dtype_bytes(dtype)
    return width * (2 * sizes.hidden_size + 3 * sizes.intermediate_size) + _FP32 * sizes.hidden_size


def _with_workspace(items: list[Item], config: Config, gpus: float) -> list[Item]:
    if not gpus:
        return items
    return [*items, Item(what="workspace", bytes=int(config.plan.workspace_gib * GIB))]
