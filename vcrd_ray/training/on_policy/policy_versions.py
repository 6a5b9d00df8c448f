"""Versions of the student on disk: written aside and renamed, with hashes and a canary that tell one from another.

Knows nothing of training or Ray.

    000016/version.json              what it is
    000016/adapter_model.safetensors, or model*.safetensors
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from vcrd_ray.errors import ModelError, SyncError
from vcrd_ray.models.weight_files import stored_tensors
from vcrd_ray.runs.files import write_json, written_aside
from vcrd_ray.runs.storage import Store
from vcrd_ray.training.on_policy.requests import PolicyVersion
from vcrd_ray.types import FloatArray

Kind = Literal["adapter", "weights"]
"""Whether a version holds LoRA matrices beside a base, or a whole model."""

_RECORD = "version.json"


class Canary(BaseModel):
    """A text whose log-probabilities trainer and rollout actors must agree on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each response token under this version, as the trainer computes them."""
    base_logprobs: tuple[float, ...]
    """The same under the student before training."""


class VersionRecord(BaseModel):
    """What was sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: Kind
    digest: str
    """Over the hashes of all tensors in the order of their names."""
    tensors: dict[str, str]
    """Hash of each tensor: name, type, shape and every byte."""
    num_bytes: int
    canary: Canary

    @property
    def name(self) -> str:
        """How people call it."""
        return f"version {self.number} of the student"


def version_directory(root: Path, number: int) -> Path:
    """Where a version lies."""
    return root / f"{number:06d}"


def describe_version(directory: Path, number: int, *, kind: Kind, canary: Canary) -> VersionRecord:
    """Describe the safetensors of a version in its directory."""
    tensors, num_bytes = hash_tensors(directory)
    record = VersionRecord(
        number=number, kind=kind, digest=_digest(tensors), tensors=tensors, num_bytes=num_bytes, canary=canary
    )
    write_json(directory / _RECORD, record)
    return record


def read_version(directory: Path) -> VersionRecord:
    """The description of a version.

    Raises:
        SyncError: there is none, or it is damaged.
    """
    try:
        return VersionRecord.model_validate_json((directory / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SyncError(
            f"{directory}: no version of the student there; is the run directory on storage that all nodes share?"
        ) from None
    except (OSError, ValidationError) as error:
        raise SyncError(f"{directory / _RECORD} cannot be read ({error}); run the same command again") from error


def bring_version(directory: Path, store: Store | None) -> None:
    """Take a version that was published on another node from `store`, the folder of all versions."""
    if store is None or directory.is_dir() or not store.files(directory.name):
        return
    with written_aside(directory) as arriving:
        store.pull(directory.name, arriving)


def prune_versions(root: Path, kept: Collection[int]) -> list[str]:
    """Remove all versions but these; the names of those removed."""
    gone = [d for d in root.glob("*") if d.name.isdigit() and int(d.name) not in kept]
    for directory in gone:
        shutil.rmtree(directory, ignore_errors=True)
    return [directory.name for directory in gone]


def hash_tensors(directory: Path) -> tuple[dict[str, str], int]:
    """(hash of each tensor in a directory's safetensors by name, bytes of all of them)."""
    found: dict[str, str] = {}
    num_bytes = 0
    for tensor in stored_tensors(directory):
        digest = hashlib.sha256(json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode())
        digest.update(tensor.content)
        found[tensor.name] = digest.hexdigest()[:16]
        num_bytes += tensor.num_bytes
    return dict(sorted(found.items())), num_bytes


def _digest(tensors: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(tensors).encode()).hexdigest()[:16]


def check_arrived(ref: PolicyVersion, record: VersionRecord) -> None:
    """Refuse a version that is not the one that was announced, byte for byte.

    Raises:
        SyncError: names what differs.
    """
    if record.number != ref.number or record.digest != ref.digest:
        raise SyncError(
            f"{ref.directory}: holds {record.name} with digest {record.digest}, announced was version {ref.number} with"
            f" {ref.digest}; is it written by another run? choose another --run.dir"
        )
    try:
        tensors, _ = hash_tensors(ref.directory)
    except ModelError as error:
        raise SyncError(f"{record.name} is not what was sent: {error}") from error
    wrong = sorted(set(tensors.items()) ^ set(record.tensors.items()))
    if wrong:
        raise SyncError(
            f"{ref.directory}: {record.name} is not what was sent: {wrong[0][0]} differs (of {len(wrong)} differences);"
            " check the storage, then run the same command again"
        )


def check_canary(record: VersionRecord, answered: FloatArray, *, tolerance: float) -> float:
    """Compare a rollout actor's log-probabilities of the canary with the trainer's; their largest difference, in nats.

    Raises:
        SyncError: they differ by more than `tolerance`; says so where the student before training answered.
    """
    wanted, base = np.asarray(record.canary.logprobs), np.asarray(record.canary.base_logprobs)
    if answered.shape != wanted.shape:
        raise SyncError(f"{record.name}: {len(answered)} log-probabilities of a canary of {len(wanted)} tokens")
    difference = float(np.abs(answered - wanted).max())
    if difference <= tolerance:
        return difference
    from_base = float(np.abs(answered - base).max())
    if from_base <= tolerance:
        raise SyncError(
            f"{record.name} was sent, but the student before training answers: its log-probabilities of the canary are those"
            f" of version 0 to {from_base:.3g} nats and {difference:.3g} from the trainer's. The new weights are not in use:"
            " set rollouts.refresh.sync to merged, or rollouts.refresh.engine to hf"
        )
    raise SyncError(
        f"{record.name}: the rollout actor's log-probabilities of the canary differ from the trainer's by {difference:.3g}"
        f" nats, more than {tolerance:g} (rollouts.refresh.canary_tolerance); set student.dtype float32 or"
        " rollouts.refresh.engine hf to see whether it is rounding"
    )


def check_changed(record: VersionRecord, earlier: VersionRecord | None, *, learnt: bool) -> None:
    """Refuse a version whose tensors are all those of the one before although an update with a step was done.

    Raises:
        SyncError: nothing changed.
    """
    if learnt and earlier is not None and earlier.digest == record.digest:
        raise SyncError(
            f"{record.name} is that of version {earlier.number}, bit for bit (digest {record.digest}), although updates with a"
            " learning rate and a gradient lie between them: the weights that are sent are not those that are trained"
        )
