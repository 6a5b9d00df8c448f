"""Validity-calibrated reasoning distillation: the method itself. Knows nothing of Ray."""

__version__ = "0.1.0"
