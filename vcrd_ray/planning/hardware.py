"""Kinds of GPUs: memory and peak speed from their data sheets. Knows no prices."""

from __future__ import annotations

from dataclasses import dataclass

from vcrd_ray.config.plan import GpuKind, HardwareSection

_GB = 10**9
_GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind."""

    memory_gb: float
    tflops: float
    """Dense bfloat16 on tensor cores."""


GPUS: dict[GpuKind, Gpu] = {
    "L4": Gpu(memory_gb=24, tflops=121),
    "A10G": Gpu(memory_gb=24, tflops=70),
    "L40S": Gpu(memory_gb=48, tflops=362),
    "A100-40GB": Gpu(memory_gb=40, tflops=312),
    "A100-80GB": Gpu(memory_gb=80, tflops=312),
    "H100": Gpu(memory_gb=80, tflops=989),
    "H200": Gpu(memory_gb=141, tflops=989),
}


def gpu_bytes(hardware: HardwareSection) -> int | None:
    """Memory of one GPU; None where the plan does not say which it is."""
    if hardware.gpu_gib is not None:
        return int(hardware.gpu_gib * _GIB)
    return None if hardware.gpu is None else int(GPUS[hardware.gpu].memory_gb * _GB)


def flops_per_s(hardware: HardwareSection, *, gpus: float, threads: int) -> float | None:
    """What one actor computes a second, as assumed; None where the plan does not say."""
    peak = hardware.tflops
    if peak is None and hardware.gpu is not None:
        peak = GPUS[hardware.gpu].tflops
    return None if peak is None else peak * 1e12 * hardware.utilization * (gpus or threads)
