"""Names of the series that the dashboard may show: those of a training run's metrics.jsonl, and those of Ray itself.

The one list of them. A run's series becomes a gauge `vcrd_NAME` with `/` turned to `_`, tagged role, replica and run; Ray
exports each of its metrics with the prefix `ray_`.
"""

from __future__ import annotations

TELEMETRY = frozenset(
    {
        "divergence/student_prefix",
        "divergence/teacher_prefix",
        "judge/invalid_rows",
        "judge/judged_rows",
        "judge/replica_deaths",
        "judge/retries",
        "judge/saturation",
        "judge/set_aside_rows",
        "judge/tokens",
        "loss",
        "loss/student_prefix",
        "loss/teacher_prefix",
        "proposals/agreement",
        "rows",
        "time/judge_s",
        "time/teacher_s",
        "tokens",
        "wait/judge_s",
        "wait/teacher_s",
        "weights/clip_rate",
        "weights/mean",
        "weights/mean_judged",
        "weights/mean_student_prefix",
        "weights/mean_teacher_prefix",
        "weights/p05",
        "weights/p25",
        "weights/p50",
        "weights/p75",
        "weights/p95",
        "weights/share_above_one_judged",
        "weights/share_at_least_one_all",
        "weights/strength",
    }
)
"""What `Telemetry.metrics` gives of an update with judged tokens on both sides."""

REFRESH = frozenset(
    {
        "rollouts/canary_difference",
        "rollouts/renewed",
        "rollouts/staleness",
        "rollouts/tokens",
        "time/rollouts_s",
        "time/sync_s",
        "wait/rollouts_s",
    }
)
"""What it gives beside them, where the student's responses are regenerated while it trains."""

STEP = frozenset(
    {
        "grad_norm",
        "judge/max_in_flight",
        "lr",
        "num_updates",
        "objective/lambda_student",
        "objective/mixing_threshold",
        "objective/taid_t",
        "time/update_s",
        "update",
    }
)
"""What the update loop and the log add."""

WATCH = frozenset({"watch/pass_at_1"})
"""What the evaluation of held-out problems adds."""

RAY = frozenset(
    {
        "actors",
        "node_cpu_count",
        "node_cpu_utilization",
        "node_gpus_utilization",
        "node_gram_available",
        "node_gram_used",
        "node_mem_total_host",
        "node_mem_used_host",
        "object_store_memory",
        "resources",
    }
)
"""Those of Ray's own metrics that the dashboard reads."""


def metric(series: str) -> str:
    """The name of a run's series in Prometheus."""
    return "ray_vcrd_" + series.replace("/", "_")


METRICS = frozenset(map(metric, TELEMETRY | REFRESH | STEP | WATCH)) | {f"ray_{name}" for name in RAY}
