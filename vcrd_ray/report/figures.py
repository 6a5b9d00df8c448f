"""Data of a run -> plotly figures, one function a figure. Knows nothing of files or pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.judges.calibrated import PositionClass
from vcrd_ray.report.calibration_figures import HISTOGRAM_BINS, ClassFigures
from vcrd_ray.report.run_data import TrainingData, display_name
from vcrd_ray.types import Decision

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SIDES = (("teacher", "teacher prefixes", PALETTE[0]), ("student", "student prefixes", PALETTE[1]))
_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
_POSITION_BINS = 10
_OF_NEW_RESPONSES = ("waiting for responses", "rollout actors busy (elsewhere)")


def _styled(figure: go.Figure, *, height: int, x: str = "", y: str = "") -> go.Figure:
    figure.update_layout(
        template="simple_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        legend={"orientation": "h", "y": 1.12},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    if x:
        figure.update_xaxes(title=x)
    if y:
        figure.update_yaxes(title=y)
    return figure


def accuracy_bars(accuracy: dict[str, Accuracy]) -> go.Figure:
    """pass@1 with interval whiskers."""
    labels = [display_name(label) for label in accuracy]
    values = list(accuracy.values())
    figure = go.Figure(
        go.Bar(
            x=labels,
            y=[100 * a.pass_at_1 for a in values],
            error_y={
                "array": [100 * (a.high - a.pass_at_1) for a in values],
                "arrayminus": [100 * (a.pass_at_1 - a.low) for a in values],
            },
            marker_color=["#999999" if label == "teacher" else PALETTE[0] for label in accuracy],
            text=[f"{100 * a.pass_at_1:.1f}" for a in values],
            textposition="inside",
        )
    )
    figure.update_yaxes(range=[0, 100])
    return _styled(figure, height=320, y="pass@1, %")


def learning_curves(runs: Sequence[TrainingData]) -> go.Figure:
    """Divergence on both families of prefixes, and gradient norm, over updates."""
    names = ("divergence, teacher prefixes", "divergence, student prefixes", "gradient norm")
    keys = ("divergence/teacher_prefix", "divergence/student_prefix", "grad_norm")
    figure = make_subplots(rows=1, cols=3, subplot_titles=names)
    for index, run in enumerate(runs):
        updates = [row["update"] + 1 for row in run.metrics]
        for column, key in enumerate(keys, start=1):
            figure.add_scatter(
                x=updates,
                y=[row.get(key) for row in run.metrics],
                name=run.name,
                legendgroup=run.name,
                showlegend=column == 1,
                line={"color": PALETTE[index % len(PALETTE)], "width": 1.5},
                row=1,
                col=column,
            )
    figure.update_xaxes(title="update")
    styled = _styled(figure, height=340)
    styled.update_layout(legend={"y": -0.35})  # above, it would stand on the titles
    return styled


def sft_curve(run: TrainingData) -> go.Figure:
    """Fine-tuning loss over updates."""
    figure = go.Figure(
        go.Scatter(
            x=[row["update"] + 1 for row in run.metrics],
            y=[row["loss"] for row in run.metrics],
            line={"color": PALETTE[2], "width": 1.5},
        )
    )
    return _styled(figure, height=240, x="update", y="cross-entropy, nats a token")


def ratio_histogram(decisions: Sequence[Decision]) -> go.Figure:
    """Distribution of r_S/r_T over sampled judged positions, by family of prefixes."""
    edges = np.linspace(np.log(0.01), np.log(30), 61)
    figure = go.Figure()
    for side, name, colour in _SIDES:
        logs = np.log(np.maximum(_array([d.student_score for d in decisions if d.side == side]), 1e-12))
        logs -= np.log(np.maximum(_array([d.teacher_score for d in decisions if d.side == side]), 1e-12))
        counts = np.histogram(np.clip(logs, edges[0], edges[-1]), edges)[0]
        share = counts / max(1, counts.sum())
        figure.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=100 * share, name=name, marker_color=colour, opacity=0.6)
    figure.update_layout(barmode="overlay", bargap=0)
    figure.add_vline(x=0, line={"dash": "dash", "color": "#444"})
    figure.update_xaxes(tickvals=[float(np.log(t)) for t in _TICKS], ticktext=[f"{t:g}" for t in _TICKS])
    return _styled(figure, height=320, x="r_S / r_T (log scale)", y="% of judged positions")


def weight_over_position(decisions: Sequence[Decision]) -> go.Figure:
    """Median weight and quartiles in tenths of the response."""
    figure = go.Figure()
    for side, name, colour in _SIDES:
        chosen = [d for d in decisions if d.side == side]
        tenth = np.array([min(_POSITION_BINS - 1, _POSITION_BINS * d.position // d.length) for d in chosen], dtype=int)
        weight = _array([d.weight for d in chosen])
        bins = [b for b in range(_POSITION_BINS) if (tenth == b).any()]
        low, middle, high = ([float(np.quantile(weight[tenth == b], q)) for b in bins] for q in (0.25, 0.5, 0.75))
        x = [(b + 0.5) / _POSITION_BINS for b in bins]
        band = "rgba(0,114,178,0.15)" if side == "teacher" else "rgba(213,94,0,0.15)"
        figure.add_scatter(x=x, y=high, line={"width": 0}, showlegend=False, hoverinfo="skip")
        figure.add_scatter(
            x=x, y=low, fill="tonexty", fillcolor=band, line={"width": 0}, showlegend=False, hoverinfo="skip"
        )
        figure.add_scatter(x=x, y=middle, name=name, line={"color": colour})
    figure.update_xaxes(range=[0, 1])
    return _styled(figure, height=300, x="position in the response (0 first token, 1 last)", y="weight")


def score_scatter(decisions: Sequence[Decision]) -> go.Figure:
    """r_T against r_S of sampled judged positions."""
    figure = go.Figure()
    for side, name, colour in _SIDES:
        chosen = [d for d in decisions if d.side == side]
        figure.add_scatter(
            x=[d.teacher_score for d in chosen],
            y=[d.student_score for d in chosen],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 4, "opacity": 0.35},
        )
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dash", "color": "#444"}, showlegend=False)
    return _styled(figure, height=360, x="score of the teacher's proposal", y="score of the student's proposal")


def time_bars(runs: Sequence[TrainingData]) -> go.Figure:
    """Seconds an update of each role, and the waits that were exposed. Medians over updates."""
    parts: tuple[tuple[str, str], ...] = (
        ("student computing", PALETTE[0]),
        ("waiting for teacher", PALETTE[1]),
        ("waiting for judge", PALETTE[3]),
        ("waiting for responses", PALETTE[4]),
        ("teacher busy (elsewhere)", "#bbbbbb"),
        ("judge busy (elsewhere)", "#888888"),
        ("rollout actors busy (elsewhere)", "#dddddd"),
    )
    if not any(run.refresh for run in runs):
        parts = tuple(part for part in parts if part[0] not in _OF_NEW_RESPONSES)
    figure = go.Figure()
    for part, colour in parts:
        figure.add_bar(
            y=[run.name for run in runs],
            x=[_time_parts(run)[part] for run in runs],
            name=part,
            orientation="h",
            marker_color=colour,
            offsetgroup="other" if "busy" in part else "student",
        )
    figure.update_layout(barmode="stack")
    return _styled(figure, height=180 + 60 * len(runs), x="seconds an update (median)")


def _time_parts(run: TrainingData) -> dict[str, float]:
    def median(key: str) -> float:
        return float(np.median([row.get(key, 0.0) for row in run.metrics]))

    waits = ("wait/teacher_s", "wait/judge_s", "wait/rollouts_s")
    student = [row["time/update_s"] - sum(row.get(wait, 0.0) for wait in waits) for row in run.metrics]
    return {
        "student computing": float(np.median(student)),
        "waiting for teacher": median("wait/teacher_s"),
        "waiting for judge": median("wait/judge_s"),
        "waiting for responses": median("wait/rollouts_s"),
        "teacher busy (elsewhere)": median("time/teacher_s"),
        "judge busy (elsewhere)": median("time/judge_s"),
        "rollout actors busy (elsewhere)": median("time/rollouts_s"),
    }


def judge_health(run: TrainingData) -> go.Figure:
    """Agreement, saturation, clip rate and invalid share over updates."""
    keys = {
        "proposals agree": "proposals/agreement",
        "scores saturated": "judge/saturation",
        "weights clipped": "weights/clip_rate",
    }
    figure = go.Figure()
    for index, (name, key) in enumerate(keys.items()):
        figure.add_scatter(
            x=[row["update"] + 1 for row in run.metrics],
            y=[100 * row.get(key, math.nan) for row in run.metrics],
            name=name,
            line={"color": PALETTE[index], "width": 1.5},
        )
    return _styled(figure, height=280, x="update", y="% of positions")


def staleness(counts: Mapping[int, int]) -> go.Figure:
    """How many updates lie between the writer of a response and the update that learns from it."""
    total = sum(counts.values())
    figure = go.Figure(
        go.Bar(x=list(counts), y=[100 * count / total for count in counts.values()], marker_color=PALETTE[0])
    )
    figure.update_xaxes(dtick=1 if len(counts) < 20 else None)
    return _styled(figure, height=280, x="staleness, updates", y="% of new responses")


def reliability(classes: Mapping[PositionClass, ClassFigures]) -> go.Figure:
    """Share of right answers over mean score, in tenths of the score, a line a class of positions."""
    figure = go.Figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dash", "color": "#444"}, showlegend=False)
    for (name, row), colour in zip(classes.items(), PALETTE, strict=False):
        bins = [b for b in row.bins if b.count]
        figure.add_scatter(
            x=[b.mean_score for b in bins],
            y=[b.share_right for b in bins],
            text=[f"{b.count} reads" for b in bins],
            mode="lines+markers",
            name=name.replace("_", " "),
            line={"color": colour, "width": 1.5},
        )
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.02, 1.02])
    return _styled(figure, height=360, x="mean score", y="share that ends right")


def judge_scores(classes: Mapping[PositionClass, ClassFigures]) -> go.Figure:
    """Distribution of the judge's scores, a colour a class of positions."""
    figure = go.Figure()
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS
    for (name, row), colour in zip(classes.items(), PALETTE, strict=False):
        share = 100 * np.asarray(row.histogram) / max(1, row.reads)
        figure.add_bar(x=centres, y=share, name=name.replace("_", " "), marker_color=colour, opacity=0.6)
    figure.update_layout(barmode="overlay", bargap=0)
    return _styled(figure, height=260, x="score", y="% of reads")


def _array(values: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)
