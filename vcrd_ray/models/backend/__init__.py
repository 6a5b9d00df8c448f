"""Gradient accumulation, optimizer and state on disk behind one small protocol: plain torch, or DeepSpeed.

Knows nothing of losses, judges or Ray. Import an implementation from its module: DeepSpeed is not everywhere.
"""

from __future__ import annotations

from vcrd_ray.models.backend.protocol import Backend

__all__ = ["Backend"]
