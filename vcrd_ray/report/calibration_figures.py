"""What a calibration says, as calibration.json holds it and as a sentence puts it. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from vcrd_ray.grading.figures import GradingFigures
from vcrd_ray.judges.calibrated import Calibration, PositionClass

Method = Literal["isotonic", "temperature"]

NUM_BINS = 10
HISTOGRAM_BINS = 50
SATURATED = 0.02
"""A score is saturated below this and above 1 minus it: the outer two bins of the histogram."""
FEWEST_RESPONSES = 10
"""Right ones, and wrong ones, below which there is no interval."""


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(_Figures):
    """Reads whose scores lie in one tenth of [0, 1]. Means are None where there are none."""

    low: float
    high: float
    count: int
    mean_score: float | None
    share_right: float | None


class Quality(_Figures):
    """How far scores are from shares of right answers; the lower the better."""

    ece: float
    """Expected calibration error over `NUM_BINS` bins of equal width."""
    brier: float
    log_loss: float
    """Nats."""


class ClassFigures(_Figures):
    """What the scores of one class of positions are worth, uncalibrated unless said."""

    reads: int
    invalid: int
    """Reads that were NaN or infinite, in none of the figures."""
    responses: int
    right_responses: int
    auc: float | None
    """Of score against final correctness; None where all answers are right or all wrong."""
    auc_low: float | None
    auc_high: float | None
    """95% bootstrap interval over responses; None with less than `FEWEST_RESPONSES` right or wrong ones."""
    mean_score: float
    share_right: float
    quality: Quality
    saturated_low: float
    saturated_high: float
    bins: tuple[Bin, ...]
    histogram: tuple[int, ...]
    """Counts of scores in `HISTOGRAM_BINS` bins of equal width."""
    fitted_reads: int
    held_out_reads: int
    held_out_before: Quality | None
    held_out_after: Quality | None
    """On prompts that the map has not seen; None where there is no map or nothing is held out."""
    note: str | None
    """Why figures are missing."""


class Agreement(_Figures):
    """Two judges on the same positions of one class."""

    reads: int
    spearman: float | None
    """Rank correlation; None where one of them says the same everywhere."""
    same_side: float
    """Share of positions where both are on the same side of 0.5."""


class OtherJudge(_Figures):
    """Agreement with one other judge."""

    name: str
    family: str
    judge: str
    classes: dict[PositionClass, Agreement]


class CalibrationReport(_Figures):
    """Content of calibration.json."""

    calibration: Calibration
    """What a judge is calibrated with."""
    scores: Literal["token", "step"]
    reads: str
    trained_on: str
    seed: int
    num_prompts: int
    num_fitted_prompts: int
    num_responses: int
    num_right: int
    num_unchecked: int
    """Responses without a gold answer that one could meet, left out."""
    grading: GradingFigures | None = None
    """What became of all responses of the rollouts; None: made by an earlier version."""
    classes: dict[PositionClass, ClassFigures]
    others: tuple[OtherJudge, ...]
    made_with: dict[str, str | None]


_PLACES: dict[PositionClass, str] = {"step_end": "at step ends", "step_start": "at step starts", "mid_step": "mid-step"}


def verdict(classes: Mapping[PositionClass, ClassFigures]) -> str:
    """One sentence: where the score tells responses that end right from those that end wrong."""
    tells: list[str] = []
    cannot: list[str] = []
    inverted: list[str] = []
    unknown: list[str] = []
    for name, figures in classes.items():
        place = _PLACES[name]
        if figures.auc is None or figures.auc_low is None or figures.auc_high is None:
            unknown.append(place)
            continue
        shown = f"{place} (AUC {figures.auc:.2f}, {figures.auc_low:.2f} to {figures.auc_high:.2f})"
        group = tells if figures.auc_low > 0.5 else inverted if figures.auc_high < 0.5 else cannot
        group.append(shown)
    parts = [
        f"{said} {_listed(places)}"
        for said, places in (
            ("tells right from wrong", tells),
            ("does not tell right from wrong", cannot),
            ("ranks wrong above right", inverted),
            ("could not be tested, for want of right or of wrong answers,", unknown),
        )
        if places
    ]
    return f"The score {'; it '.join(parts)}." if parts else "The judge gave no score that is a number."


def extrapolation(report: CalibrationReport) -> str | None:
    """A sentence where the judge is read at positions that its training gave no labels; None where it is not."""
    if report.scores == "step" or report.trained_on.startswith("every") or report.reads.startswith("at every token"):
        return None
    return f"Its training put labels on {report.trained_on}; it is read {report.reads}, so reads elsewhere extrapolate."


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
