"""The optimizer and the random state that both backends share."""

from __future__ import annotations

from typing import Any

import torch

from vcrd_ray.config.stages import OptimSection
from vcrd_ray.models.student import Student


def make_optimizer(
    student: Student, optim: OptimSection, num_updates: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over the trainable parameters, linear warm-up, cosine decay to zero at `num_updates`."""
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad],
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
    )
    warmup = round(optim.warmup_ratio * num_updates)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, num_updates)


def random_state() -> dict[str, Any]:
    """State of torch's generators, which draw dropout."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
