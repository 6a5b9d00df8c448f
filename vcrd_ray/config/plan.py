"""What a plan is made from beside the run's own settings: hardware, prices, expected lengths. Known to no job but the plan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcrd_ray.config.base import Section

GpuKind = Literal["L4", "A10G", "L40S", "A100-40GB", "A100-80GB", "H100", "H200"]


class ShapeSection(Section):
    """Sizes of a decoder-only model, as its config.json has them."""

    hidden_size: int = Field(ge=1, description="Width of the hidden states")
    num_layers: int = Field(ge=1, description="num_hidden_layers")
    num_heads: int = Field(ge=1, description="num_attention_heads")
    num_kv_heads: int = Field(ge=1, description="num_key_value_heads")
    head_dim: int | None = Field(default=None, ge=1, description="Width of a head; none: hidden_size / num_heads")
    intermediate_size: int = Field(ge=1, description="Width of the MLP")
    vocab_size: int = Field(ge=1, description="Rows of the embedding, padding included")
    tied: bool = Field(description="tie_word_embeddings")
    qkv_bias: bool = Field(default=True, description="Whether query, key and value have biases, as in Qwen2")
    qk_norm: bool = Field(default=False, description="Whether query and key are normed, as in Qwen3")


class HardwareSection(Section):
    """What one actor of a role computes with."""

    gpu: GpuKind | None = Field(default=None, description="Kind of its GPUs, which gives memory and peak speed")
    gpu_gib: float | None = Field(default=None, gt=0, description="Memory of one GPU, GiB; none: that of the kind")
    tflops: float | None = Field(
        default=None,
        gt=0,
        description="Peak of one GPU, or of one thread without GPUs, TFLOP/s; none: that of the kind",
    )
    utilization: float = Field(default=0.4, gt=0, le=1, description="Share of the peak that is reached")


class PlanSection(Section):
    """Assumptions of `jobs.plan`. They change no run."""

    student: HardwareSection = HardwareSection()
    teacher: HardwareSection = HardwareSection()
    judge: HardwareSection = HardwareSection()
    rollout: HardwareSection = HardwareSection()
    prices: dict[str, float] = Field(
        default={}, description="Node type of the cluster file -> price of one such node an hour; none are shipped"
    )
    shapes: dict[str, ShapeSection] = Field(
        default={}, description="Model path as the config names it -> its sizes, where its config.json cannot be read"
    )
    num_pairs: int | None = Field(
        default=None, ge=1, description="Rollout pairs; none: rollouts.prompts.count times rollouts.samples"
    )
    prompt_tokens: int = Field(default=128, ge=1, description="Mean length of a prompt")
    response_tokens: int = Field(default=384, ge=1, description="Mean length of a response")
    agreement: float = Field(
        default=0.8, ge=0, le=1, description="Share of positions where both models propose the same token"
    )
    variation: float = Field(
        default=0.2, ge=0, description="Standard deviation of a request's service time over its mean"
    )
    simulated_updates: int = Field(
        default=40, ge=2, description="Updates that are simulated; the first fifth not counted"
    )
    network_gbit_s: float = Field(
        default=10.0, gt=0, description="Between nodes, Gbit/s: teacher's answers and gradients"
    )
    workspace_gib: float = Field(
        default=2.0, ge=0, description="CUDA context, kernels' workspace and fragmentation of a process, GiB"
    )
    process_gib: float = Field(default=3.0, ge=0, description="Host memory of a process beside its model, GiB")
