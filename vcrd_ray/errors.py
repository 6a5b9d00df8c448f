"""The errors a caller may catch. Knows nothing of models or Ray; every class survives pickling between processes.

Each message names the thing that is wrong and what to do about it.
"""


class VcrdError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(VcrdError):
    """A configuration that cannot run: unknown key, wrong type, impossible combination."""


class DataError(VcrdError):
    """Prompts or rollouts that cannot be used: empty, too many malformed rows, made with other models."""


class ModelError(VcrdError):
    """A model that cannot be used: no such path, no checkpoint in it, a tokenizer that does not fit."""


class JudgeError(VcrdError):
    """A judge whose answers cannot be trusted: failed self-check, too many NaN or out-of-range scores."""


class CheckpointError(VcrdError):
    """A checkpoint that could not be written or read; the last good one is left as it was."""


class NotFiniteError(VcrdError):
    """A loss, gradient, weight, hidden state or logit that is NaN or infinite: nothing is made from it."""


class DiskFullError(VcrdError):
    """A disk without room; what was complete is as it was, and no other try helps before somebody makes room."""


class RunDirectoryError(VcrdError):
    """A run directory in use by another process, or holding a run of another configuration."""


class ScheduleError(VcrdError):
    """A teacher or judge request that did not come back in time."""


class SyncError(VcrdError):
    """The student that writes responses is not the one that trains: a version did not arrive, or not as it was sent."""


class StorageError(VcrdError):
    """Object storage that cannot be reached or refuses."""


class StoppedError(VcrdError):
    """A run that saved its state and left before its end, because it was asked to; it can go on."""
