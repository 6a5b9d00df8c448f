"""The embedded default: a small world of word problems, its oracle and its shipped checkpoints.

Nothing is imported here, so that `import vcrd_ray.tiny` costs nothing and needs no torch.
"""

from pathlib import Path

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
"""Folder of the shipped models: `teacher`, `teacher-weak`, `student-base`, `prm`."""
