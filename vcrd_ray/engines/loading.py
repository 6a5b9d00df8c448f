"""Sections of the config -> an engine. Imports an implementation only when it is asked for."""

from __future__ import annotations

from vcrd_ray.config.models import LoraSection, StudentSection, TeacherSection
from vcrd_ray.config.refresh import RefreshSection
from vcrd_ray.engines import Engine, Use, VersionedEngine
from vcrd_ray.models.checkpoint_files import device_for


def load_engine(section: TeacherSection, path: str, *, use: Use) -> Engine:
    """The configured engine with the model at `path`.

    Raises:
        ModelError: the model cannot be loaded, or the engine is not installed.
    """
    device = device_for(section.gpus_per_replica)
    if section.engine == "vllm":
        from vcrd_ray.engines.vllm import VLLMEngine

        return VLLMEngine(path, dtype=section.dtype, use=use, section=section.vllm, device=device)
    from vcrd_ray.engines.hf import HFEngine

    return HFEngine(path, dtype=section.dtype, device=device, max_batch_tokens=section.max_batch_tokens, use=use)


def load_versioned_engine(
    refresh: RefreshSection, student: StudentSection, *, lora: LoraSection | None
) -> VersionedEngine:
    """The engine that writes the student's responses, with the student before training.

    Raises:
        ModelError: the model cannot be loaded, or the engine is not installed.
    """
    device = device_for(refresh.gpus_per_replica)
    if refresh.engine == "vllm":
        from vcrd_ray.engines.vllm import VLLMEngine

        return VLLMEngine(
            student.path,
            dtype=student.dtype,
            use="generate",
            section=refresh.vllm,
            device=device,
            lora_rank=lora.r if lora is not None and refresh.sync == "adapter" else None,
        )
    from vcrd_ray.engines.hf import HFEngine

    return HFEngine(
        student.path, dtype=student.dtype, device=device, max_batch_tokens=refresh.max_batch_tokens, use="generate"
    )
