"""Where a run lives, and the cluster that it runs on."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from vcrd_ray.config.base import FREE_TO_CHANGE, Location, Section, check_location

Resume = Literal["auto", "never", "must"]
"""What is done with a run that is there already."""


TrackerName = Literal["mlflow", "wandb"]


class RunSection(Section):
    """Where a run lives and which randomness it has."""

    dir: Path = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=Path("runs/default"),
        description="Run directory; every job makes a folder of its own in it",
    )
    storage: Location | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        description="Folder in object storage (s3://BUCKET/NAME, gs://BUCKET/NAME) or file:///SHARED/DISK that keeps the run;"
        " run.dir is then a working directory of each node. None: run.dir is on storage that all nodes share",
    )
    seed: int = Field(default=0, ge=0, description="Seed of data order, proposals, rollouts and dropout")
    resume: Resume = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default="auto",
        description="auto: go on with the run that is there, or begin; never: refuse a directory with a run; must: refuse one"
        " without",
    )
    trackers: tuple[TrackerName, ...] = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=(),
        description="Where training metrics go beside JSON Lines and TensorBoard: mlflow, wandb (extra: track)",
    )
    project: str = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default="vcrd_ray",
        min_length=1,
        description="What trackers call the project or experiment",
    )
    must_save_by: timedelta | AwareDatetime | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        union_mode="left_to_right",
        description="A training saves and leaves (exit code 75) before this time: how long after the job's start (03:45:00),"
        " or when (2030-01-31T18:00:00Z)",
    )

    @field_validator("dir")
    @classmethod
    def _home_is_found(cls, path: Path) -> Path:
        # No shell does it for a file, nor behind --run.dir=.
        check_location(str(path))
        return path.expanduser()

    @field_validator("must_save_by", mode="wrap")
    @classmethod
    def _is_a_span_or_a_time(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(
                "how long after the start (01:30:00), or when and in which zone (2030-01-31T18:00:00Z)"
            ) from None

    @field_validator("storage")
    @classmethod
    def _storage_is_a_folder(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        parts = urlsplit(uri)
        if parts.scheme not in ("s3", "gs", "gcs", "file", "hdfs", "abfs", "abfss"):
            raise ValueError(
                f"run.storage {uri}: not a folder in storage; write s3://BUCKET/NAME, or file:///DIRECTORY"
            )
        if parts.username or parts.password:
            raise ValueError(
                "run.storage must hold no credentials, because configs are logged: set AWS_ACCESS_KEY_ID and its like in the"
                " environment, or give the nodes a role"
            )
        return uri

    def deadline(self, started: float) -> float | None:
        """When a training must have saved, in seconds since the epoch, for a job that started then."""
        match self.must_save_by:
            case timedelta():
                return started + self.must_save_by.total_seconds()
            case datetime():
                return self.must_save_by.timestamp()
        return None


class ClusterSection(Section):
    """The Ray cluster that the actors run on."""

    address: str | None = Field(
        default=None,
        description="Address of a running cluster; none: RAY_ADDRESS where set (as in a submitted job), else start one here",
    )
    pools: Literal["shared", "separate"] = Field(
        default="shared",
        description="separate: each role runs only on nodes that offer the custom resource student, teacher, judge or rollout",
    )
    dashboard: bool = Field(default=False, description="Start the dashboard with a local cluster")
    timeline: bool = Field(
        default=False, description="Leave timeline.json of a distillation, for chrome://tracing or ui.perfetto.dev"
    )
    object_store_gib: float = Field(default=0.5, gt=0.07, description="Object store of a local cluster, GiB")
    start_timeout_s: float = Field(default=600, gt=0, description="Longest wait for actors to be placed and ready")
    request_timeout_s: float = Field(default=600, gt=0, description="Longest wait for one teacher or judge answer")
