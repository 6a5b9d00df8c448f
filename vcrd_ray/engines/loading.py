"""A teacher section of the config -> an engine. Imports an implementation only when it is asked for."""

from __future__ import annotations

from vcrd_ray.config import TeacherSection
from vcrd_ray.engines import Engine, Use
from vcrd_ray.models import device_for


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

    return HFEngine(path, dtype=section.dtype, device=device)
