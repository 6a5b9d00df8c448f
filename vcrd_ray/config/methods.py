"""Methods by name: the objective of each. Everything else of a run (pair of models, data, optimizer) stays the config's.

Names are those of docs/method.md, where each is set beside the paper's table rows and its published form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vcrd_ray.config import Config
from vcrd_ray.config.base import Section
from vcrd_ray.config.objective import (
    AdaptiveKL,
    AdaptiveMixing,
    AlphaBeta,
    Amid,
    CrossEntropy,
    DifferenceWeighting,
    ForwardKL,
    InverseRatioWeighting,
    Jsd,
    ObjectiveSection,
    RatioWeighting,
    ReverseKL,
    SkewedKL,
    SkewedReverseKL,
    StudentScoreWeighting,
    Taid,
    TeacherProbWeighting,
    UniformWeighting,
)
from vcrd_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a name stands for."""

    summary: str
    objective: dict[str, Any]
    """Fields of `ObjectiveSection`. lambda_teacher and lambda_student are the config's unless they stand here: the paper
    gives each pair of models its own, and its ablations keep them."""


_UNIFORM: dict[str, Any] = {"weighting": UniformWeighting()}
_SKEWED: dict[str, Any] = {"on_teacher": SkewedKL(), "on_student": SkewedReverseKL()}
_TEACHER_ONLY: dict[str, Any] = {"lambda_teacher": 1.0, "lambda_student": 0.0, **_UNIFORM}
_STUDENT_ONLY: dict[str, Any] = {"lambda_teacher": 0.0, "lambda_student": 1.0, **_UNIFORM}
_BOTH_EQUAL: dict[str, Any] = {"lambda_teacher": 1.0, "lambda_student": 1.0, **_UNIFORM}
# DistiLLM is one divergence with its full gradient on one response a pair, averaged over tokens.
_DISTILLM: dict[str, Any] = {**_BOTH_EQUAL, "mixing": AdaptiveMixing(), "reduction": "global_token_mean"}

METHODS: dict[str, Method] = {
    "vcrd": Method(summary="validity ratio on SKL and SRKL", objective={**_SKEWED, "weighting": RatioWeighting()}),
    "vcrd_unclipped": Method(
        summary="VCRD with no bound on the ratio, as printed",
        objective={**_SKEWED, "weighting": RatioWeighting(w_max=float("inf"))},
    ),
    "vcrd_prob": Method(
        summary="VCRD without a judge: the teacher's probability of the student's greedy token",
        objective={**_SKEWED, "weighting": TeacherProbWeighting()},
    ),
    "lv_skl": Method(
        summary="validity ratio, teacher prefixes only",
        objective={**_SKEWED, "weighting": RatioWeighting(), "lambda_student": 0.0},
    ),
    "lv_srkl": Method(
        summary="validity ratio, student prefixes only",
        objective={**_SKEWED, "weighting": RatioWeighting(), "lambda_teacher": 0.0},
    ),
    "amp_off": Method(
        summary="min(ratio, 1): attenuation without amplification",
        objective={**_SKEWED, "weighting": RatioWeighting(w_max=1.0)},
    ),
    "student_score": Method(summary="w = r_S", objective={**_SKEWED, "weighting": StudentScoreWeighting()}),
    "difference": Method(
        summary="w = r_S - r_T, as printed", objective={**_SKEWED, "weighting": DifferenceWeighting()}
    ),
    "difference_shifted": Method(
        summary="w = max(0, 1 + r_S - r_T)", objective={**_SKEWED, "weighting": DifferenceWeighting(shifted=True)}
    ),
    "inverse_ratio": Method(
        summary="w = r_T / r_S, the order turned round", objective={**_SKEWED, "weighting": InverseRatioWeighting()}
    ),
    "uniform": Method(summary="w = 1: SKL and SRKL with the pair's lambdas", objective={**_SKEWED, **_UNIFORM}),
    "skl": Method(summary="w = 1, teacher prefixes only", objective={**_SKEWED, **_UNIFORM, "lambda_student": 0.0}),
    "srkl": Method(summary="w = 1, student prefixes only", objective={**_SKEWED, **_UNIFORM, "lambda_teacher": 0.0}),
    "kd": Method(
        summary="forward KL on the teacher's responses", objective={**_TEACHER_ONLY, "on_teacher": ForwardKL()}
    ),
    "seqkd": Method(
        summary="cross-entropy on the teacher's responses", objective={**_TEACHER_ONLY, "on_teacher": CrossEntropy()}
    ),
    "gkd": Method(
        summary="generalised JSD, beta 0.5, half on either model's responses (lambda 0.5)",
        objective={
            **_UNIFORM,
            "on_teacher": Jsd(),
            "on_student": Jsd(),
            "lambda_teacher": 0.5,
            "lambda_student": 0.5,
            "reduction": "global_token_mean",
        },
    ),
    "reverse_kl": Method(
        summary="reverse KL on the student's responses (MiniLLM's single-step term)",
        objective={**_STUDENT_ONLY, "on_student": ReverseKL(), "reduction": "global_token_mean"},
    ),
    "akl": Method(
        summary="adaptive KL on the teacher's responses", objective={**_TEACHER_ONLY, "on_teacher": AdaptiveKL()}
    ),
    "distillm": Method(
        summary="DistiLLM: SRKL with its full gradient on adaptively off-policy data",
        objective={
            **_DISTILLM,
            "on_teacher": SkewedReverseKL(detach_mixture=False),
            "on_student": SkewedReverseKL(detach_mixture=False),
        },
    ),
    "distillm_skl": Method(
        summary="DistiLLM: SKL on adaptively off-policy data",
        objective={**_DISTILLM, "on_teacher": SkewedKL(), "on_student": SkewedKL()},
    ),
    "distillm2": Method(
        summary="DistiLLM-2 as released: SKL and SRKL, fixed skew, equal strengths",
        objective={**_SKEWED, **_BOTH_EQUAL},
    ),
    "distillm2_curriculum": Method(
        summary="DistiLLM-2 with the skew and the strengths of its paper's curriculum",
        objective={
            **_BOTH_EQUAL,
            "on_teacher": SkewedKL(adaptive=True),
            "on_student": SkewedReverseKL(adaptive=True),
            "gradual": True,
        },
    ),
    "abkd": Method(
        summary="alpha-beta divergence (0.2, 0.7) on the teacher's responses",
        objective={**_TEACHER_ONLY, "on_teacher": AlphaBeta(), "reduction": "global_token_mean"},
    ),
    "taid": Method(
        summary="interpolated target on the teacher's responses",
        objective={**_TEACHER_ONLY, "on_teacher": Taid(), "reduction": "global_token_mean"},
    ),
    "amid": Method(
        summary="alpha-mixture divergence on the teacher's responses",
        objective={**_TEACHER_ONLY, "on_teacher": Amid(), "reduction": "global_token_mean"},
    ),
}


def with_method(config: Config, name: str) -> Config:
    """The same run under another method. The run's lambdas and reduction stay where the method has none of its own.

    Raises:
        ConfigError: the method does not fit the rest of the run.
    """
    base = config.distill.objective
    fields: dict[str, Any] = {
        "lambda_teacher": base.lambda_teacher,
        "lambda_student": base.lambda_student,
        "reduction": base.reduction,
    }
    for field, part in METHODS[name].objective.items():
        # A part that the method takes as it comes has the run's settings, where the run has the same part.
        own = getattr(base, field)
        as_it_comes = isinstance(part, Section) and type(own) is type(part) and part == type(part)()
        fields[field] = own if as_it_comes else part
    try:
        distill = config.distill.model_copy(update={"objective": ObjectiveSection.model_validate(fields)})
        # Once more through validation: the method may not fit the rest of the run.
        return Config.model_validate(config.model_copy(update={"distill": distill}).model_dump(round_trip=True))
    except ValidationError as error:
        said = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise ConfigError(f"method {name} does not fit this run: {said}") from None
