"""A run directory -> one HTML page that opens without network. Knows nothing of how the run was computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
import pyarrow.parquet as pq
from plotly.offline import get_plotlyjs

from vcrd_ray.data.manifest import pair_id
from vcrd_ray.report import figures
from vcrd_ray.report.calibration_figures import CalibrationReport, extrapolation, verdict
from vcrd_ray.report.refreshed import student_ids_of
from vcrd_ray.report.run_data import RunData, TrainingData, display_name, read_run
from vcrd_ray.report.verdicts import verdicts
from vcrd_ray.runs.files import write_text
from vcrd_ray.types import Decision

_TEMPLATE = Path(__file__).with_name("report_template.html.j2")
_SHOWN_DECISIONS = 12
_PREFIX_TOKENS = 40


@dataclass(frozen=True, kw_only=True)
class ShownDecision:
    """A decision with its tokens as text."""

    question: str
    prefix: str
    teacher_token: str
    student_token: str
    side: str
    teacher_score: float
    student_score: float
    weight: float


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from whatever the run directory holds; its path."""
    data = read_run(run_dir)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        plotly=_markup(get_plotlyjs()),
        title=run_dir.resolve().name,
        **_context(data),
    )
    path = run_dir / "report.html"
    write_text(path, page)
    return path.resolve()


def _context(data: RunData) -> dict[str, Any]:
    judged = next((run for run in data.distillations if run.decisions), None)
    sampled = [d for d in judged.decisions if d.sampled] if judged else []
    return {
        "accuracy": [
            {"name": display_name(label), "value": value, "gain": _gain(data, label)}
            for label, value in data.accuracy.items()
        ],
        "accuracy_figure": _figure(figures.accuracy_bars(data.accuracy)) if data.accuracy else None,
        "benchmarks": data.benchmarks,
        "display_name": display_name,
        "watched": [_watched(run) for run in data.distillations if run.watched],
        "learning": _figure(figures.learning_curves(data.distillations)) if data.distillations else None,
        "sft": _figure(figures.sft_curve(data.sft)) if data.sft else None,
        "judged": judged.name if judged else None,
        "ratios": _figure(figures.ratio_histogram(sampled)) if sampled else None,
        "shares": _shares(judged) if judged else None,
        "verdicts": verdicts(sampled),
        "positions": _figure(figures.weight_over_position(sampled)) if sampled else None,
        "scores": _figure(figures.score_scatter(sampled)) if sampled else None,
        "tables": _decision_tables(data, judged) if judged else [],
        "times": _figure(figures.time_bars(data.distillations)) if data.distillations else None,
        "waits": [_wait(run) for run in data.distillations],
        "wall_s": data.wall_s,
        "health": _figure(figures.judge_health(judged)) if judged else None,
        "self_check": judged.facts.get("self_check_difference") if judged else None,
        "invalid": sum(row["judge/invalid_rows"] for row in judged.metrics) if judged else None,
        "quarantined": sum(row["judge/set_aside_rows"] for row in judged.metrics) if judged else None,
        "refreshed": [_refreshed(run) for run in data.distillations if run.refresh is not None],
        "trust": _trust(data.calibration) if data.calibration else None,
        "processbench": data.processbench,
        "runs": [run for run in [data.sft, *data.distillations] if run is not None],
    }


def _figure(figure: Any) -> Any:
    html = plotly.io.to_html(figure, include_plotlyjs=False, full_html=False, config={"displayModeBar": False})
    return _markup(html)


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _gain(data: RunData, label: str) -> float | None:
    base = data.accuracy.get("sft")
    if base is None or label in ("teacher", "sft"):
        return None
    return 100 * (data.accuracy[label].pass_at_1 - base.pass_at_1)


def _shares(run: TrainingData) -> dict[str, float]:
    """Share of positions with a weight of at least 1, with and without the positions of equal proposals."""
    rows = sum(row["rows"] for row in run.metrics)
    judged = sum(row["judge/judged_rows"] for row in run.metrics)
    with_equal = sum(row.get("weights/share_at_least_one_all", 0.0) * row["rows"] for row in run.metrics)
    above = sum(
        row.get("weights/share_above_one_judged", 0.0) * row["judge/judged_rows"]
        for row in run.metrics
        if row["judge/judged_rows"]
    )
    agree = sum(row.get("proposals/agreement", 0.0) * row["rows"] for row in run.metrics)
    return {
        "judged": 100 * above / max(1.0, judged),
        "all": 100 * with_equal / max(1.0, rows),
        "agreement": 100 * agree / max(1.0, rows),
        "num_judged": judged,
        "num_rows": rows,
    }


def _wait(run: TrainingData) -> dict[str, Any]:
    seconds = sum(row["time/update_s"] for row in run.metrics)
    return {
        "name": run.name,
        "teacher": 100 * sum(row["wait/teacher_s"] for row in run.metrics) / seconds,
        "judge": 100 * sum(row["wait/judge_s"] for row in run.metrics) / seconds,
        "rollouts": 100 * sum(row.get("wait/rollouts_s", 0.0) for row in run.metrics) / seconds,
        "tokens_per_s": sum(row["tokens"] for row in run.metrics) / seconds,
        "seconds": seconds,
    }


def _refreshed(run: TrainingData) -> dict[str, Any]:
    assert run.refresh is not None
    seconds = sum(row.get("time/rollouts_s", 0.0) for row in run.metrics)
    tokens = sum(row.get("rollouts/tokens", 0.0) for row in run.metrics)
    return {
        "name": run.name,
        "written": sum(run.refresh.staleness.values()),
        "published": run.refresh.published,
        "canary": max(row.get("rollouts/canary_difference", 0.0) for row in run.metrics),
        "tokens_per_s": tokens / seconds if seconds else 0.0,
        "sync_s": sum(row.get("time/sync_s", 0.0) for row in run.metrics),
        "staleness": _figure(figures.staleness(run.refresh.staleness)),
    }


def _watched(run: TrainingData) -> dict[str, Any]:
    # The first of equals, as it is the one that is kept.
    best, accuracy = max(run.watched, key=lambda graded: graded[1].pass_at_1)
    return {"name": run.name, "best": best, "accuracy": accuracy, "figure": _figure(_watch_curve(run, best))}


def _watch_curve(run: TrainingData, best: int) -> go.Figure:
    """pass@1 with its interval over updates, the best version marked."""
    updates, values = [update for update, _ in run.watched], [graded for _, graded in run.watched]
    figure = go.Figure(
        go.Scatter(
            x=updates,
            y=[100 * a.pass_at_1 for a in values],
            error_y={
                "array": [100 * (a.high - a.pass_at_1) for a in values],
                "arrayminus": [100 * (a.pass_at_1 - a.low) for a in values],
            },
            mode="lines+markers",
            marker={"size": [12 if update == best else 6 for update in updates]},
            line={"color": figures.PALETTE[0], "width": 1.5},
        )
    )
    figure.add_vline(x=best, line={"dash": "dash", "color": "#444"}, annotation_text="best")
    figure.update_layout(template="simple_white", height=300, margin={"l": 60, "r": 20, "t": 30, "b": 50})
    figure.update_xaxes(title="updates done")
    figure.update_yaxes(title="pass@1, %")
    return figure


def _trust(report: CalibrationReport) -> dict[str, Any]:
    return {
        "report": report,
        "verdict": verdict(report.classes),
        "extrapolation": extrapolation(report),
        "reliability": _figure(figures.reliability(report.classes)),
        "scores": _figure(figures.judge_scores(report.classes)),
    }


def _decision_tables(data: RunData, run: TrainingData) -> list[dict[str, Any]]:
    if data.rollouts is None or run.model is None:
        return []
    unique = {(d.pair, d.side, d.position): d for d in run.decisions}
    ordered = sorted(unique.values(), key=lambda d: d.weight)
    low, high = ordered[:_SHOWN_DECISIONS], ordered[::-1][:_SHOWN_DECISIONS]
    texts = _Texts(data.rollouts, run, [*low, *high])
    return [
        {"title": "Most amplified", "rows": [texts.show(d) for d in high]},
        {"title": "Most attenuated", "rows": [texts.show(d) for d in low]},
    ]


class _Texts:
    """Rollouts and tokenizer of a run, to show decisions as text."""

    def __init__(self, rollouts: Path, run: TrainingData, decisions: Sequence[Decision]) -> None:
        from vcrd_ray.models.checkpoint_files import load_tokenizer

        assert run.model is not None
        self._tokenizer = load_tokenizer(run.model)
        self._renewed = {} if run.refresh is None else student_ids_of(run.refresh, decisions)
        pairs = {decision.pair for decision in decisions}
        columns = ["prompt_id", "sample", "question", "teacher_ids", "student_ids"]
        self._rows: dict[str, dict[str, Any]] = {}
        for part in sorted((rollouts / "parts").glob("block-*.parquet")):
            named = {pair_id(r["prompt_id"], r["sample"]): r for r in pq.read_table(part, columns=columns).to_pylist()}
            self._rows |= {name: row for name, row in named.items() if name in pairs}

    def show(self, decision: Decision) -> ShownDecision:
        row = self._rows[decision.pair]
        offline = row[f"{decision.side}_ids"]
        whole = self._renewed.get((decision.pair, decision.student_version), offline)
        ids: Sequence[int] = whole[: decision.position]
        cut = "… " if len(ids) > _PREFIX_TOKENS else ""
        return ShownDecision(
            question=row["question"],
            prefix=cut + visible(self._tokenizer.decode(ids[-_PREFIX_TOKENS:])),
            teacher_token=visible(self._tokenizer.decode([decision.teacher_token])),
            student_token=visible(self._tokenizer.decode([decision.student_token])),
            side=decision.side,
            teacher_score=decision.teacher_score,
            student_score=decision.student_score,
            weight=decision.weight,
        )


def visible(text: str) -> str:
    """White space that a reader would not see, made visible."""
    shown = text.replace("\n", "⏎")
    return "␣" * (len(shown) - len(shown.lstrip(" "))) + shown.lstrip(" ") if shown.strip(" ") else "␣" * len(shown)
