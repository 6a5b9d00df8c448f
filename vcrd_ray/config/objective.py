"""What is learnt from each token, and how strongly: divergences, weighting rules, the objective."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vcrd_ray.config.base import Section

Signal = Literal["judge", "teacher_probability"]
"""What a rule may need to know of a position: the judge's scores of both proposals; p(argmax q) and sum p^2."""


class RatioWeighting(Section):
    """w = r(c, a^S) / (r(c, a^T) + eps): the paper's rule. w_max 1 switches amplification off."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["ratio"] = "ratio"
    eps: float = Field(default=1e-8, ge=0, description="Added to the teacher's score")
    w_max: float = Field(default=10.0, gt=0, description="Largest weight; .inf is the paper's unclipped rule")


class InverseRatioWeighting(Section):
    """w = r(c, a^T) / (r(c, a^S) + eps): the order turned round, as a control."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["inverse_ratio"] = "inverse_ratio"
    eps: float = Field(default=1e-8, ge=0, description="Added to the student's score")
    w_max: float = Field(default=10.0, gt=0, description="Largest weight; .inf leaves it unclipped")


class StudentScoreWeighting(Section):
    """w = r(c, a^S): the student's score alone."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["student_score"] = "student_score"


class DifferenceWeighting(Section):
    """w = r(c, a^S) - r(c, a^T), as the paper writes it, or shifted to max(0, 1 + difference)."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["difference"] = "difference"
    shifted: bool = Field(
        default=False,
        description="max(0, 1 + r_S - r_T); off: 0 on equal proposals and gradient ascent where the teacher scores higher",
    )


class TeacherProbWeighting(Section):
    """PRM-free: how probable the student's greedy token is to the teacher, over what the teacher expects of itself."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"teacher_probability"})

    type: Literal["teacher_prob"] = "teacher_prob"
    top_k: int = Field(default=128, ge=1, description="Teacher tokens in the collision sum")
    gamma: float = Field(default=0.5, gt=0, description="Exponent of the ratio")
    clamp: float = Field(default=2.0, gt=1, description="Weights stay in [1/clamp, clamp]")
    eps: float = Field(default=1e-8, ge=0, description="Added to the collision sum")


class UniformWeighting(Section):
    """w = 1 everywhere."""

    needs: ClassVar[frozenset[Signal]] = frozenset()

    type: Literal["uniform"] = "uniform"


class CompositeWeighting(Section):
    """Two rules: one where the trajectory's token ends a step (holds a line break), one at all other tokens.

    For judges that were trained at step ends: only there are branches made and scored.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge", "teacher_probability"})

    type: Literal["composite"] = "composite"
    step_end: RatioWeighting = RatioWeighting()
    mid_step: TeacherProbWeighting = TeacherProbWeighting()


Weighting = Annotated[
    RatioWeighting
    | InverseRatioWeighting
    | StudentScoreWeighting
    | DifferenceWeighting
    | TeacherProbWeighting
    | CompositeWeighting
    | UniformWeighting,
    Field(discriminator="type"),
]


class ForwardKL(Section):
    """KL(p || q)."""

    type: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Section):
    """KL(q || p)."""

    type: Literal["reverse_kl"] = "reverse_kl"


class Jsd(Section):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD); at 0 KL(p || q), at 1 KL(q || p)."""

    type: Literal["jsd"] = "jsd"
    beta: float = Field(default=0.5, ge=0, le=1, description="Weight of the teacher; papers differ in theirs")


class SkewedKL(Section):
    """KL(p || alpha p + (1 - alpha) q)."""

    type: Literal["skewed_kl"] = "skewed_kl"
    alpha: float = Field(default=0.1, ge=0, le=1, description="Skew")
    adaptive: bool = Field(default=False, description="Skew of each sequence by DistiLLM-2's curriculum, at most alpha")


class SkewedReverseKL(Section):
    """KL(q || (1 - alpha) p + alpha q)."""

    type: Literal["skewed_reverse_kl"] = "skewed_reverse_kl"
    alpha: float = Field(default=0.1, ge=0, le=1, description="Skew")
    detach_mixture: bool = Field(
        default=True, description="No gradient through q inside the mixture (DistiLLM-2; DistiLLM has it)"
    )
    adaptive: bool = Field(default=False, description="Skew of each sequence by DistiLLM-2's curriculum, at most alpha")


def _check_exponents(alpha: float, beta: float) -> None:
    # The formula divides by the sum: a tiny one leaves mostly rounding errors.
    if 0 < abs(alpha + beta) < 0.01:
        raise ValueError(
            f"exponents {alpha} and {beta} add up to {alpha + beta:g}: make it exactly 0, or at least 0.01"
        )


class AlphaBeta(Section):
    """The alpha-beta divergence (ABKD)."""

    type: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = Field(default=0.2, description="Exponent of the teacher")
    beta: float = Field(default=0.7, description="Exponent of the student")

    @model_validator(mode="after")
    def _exact(self) -> Self:
        _check_exponents(self.alpha, self.beta)
        return self


class AdaptiveKL(Section):
    """Forward and reverse KL, mixed by where the distributions differ (AKL)."""

    type: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = Field(default=0.5, gt=0, lt=1, description="Teacher probability that makes the head")


class Taid(Section):
    """Cross-entropy to a target that moves from the student to the teacher as the loss falls (TAID)."""

    type: Literal["taid"] = "taid"
    start: float = Field(default=0.4, ge=0, le=1, description="Share of the teacher in the first update")
    end: float = Field(default=1.0, ge=0, le=1, description="Largest share")
    rate: float = Field(default=5e-4, ge=0, description="Largest step beyond the linear schedule")
    momentum: float = Field(default=0.99, ge=0, lt=1, description="Memory of the loss's relative change")


class Amid(Section):
    """Divergence between one side and an alpha-mixture of both (AMiD)."""

    type: Literal["amid"] = "amid"
    alpha: float = Field(default=0.5, le=1, description="-1: arithmetic mixture, 1: geometric mixture")
    share: float = Field(default=0.5, ge=0, le=1, description="Share of the teacher in the mixture r")
    order: Literal["pr", "qr", "rp", "rq"] = Field(default="pr", description="Arguments of the divergence")
    kind: Literal["kl", "alpha_beta"] = Field(default="alpha_beta", description="Divergence between the two")
    exponents: tuple[float, float] = Field(default=(0.2, 0.7), description="Of the alpha-beta divergence")

    @model_validator(mode="after")
    def _exact(self) -> Self:
        _check_exponents(*self.exponents)
        return self


class CrossEntropy(Section):
    """-ln q of the rollout's own token: supervised fine-tuning; needs no teacher."""

    type: Literal["cross_entropy"] = "cross_entropy"


DivergenceSection = Annotated[
    ForwardKL | ReverseKL | Jsd | SkewedKL | SkewedReverseKL | AlphaBeta | AdaptiveKL | Taid | Amid | CrossEntropy,
    Field(discriminator="type"),
]


class AdaptiveMixing(Section):
    """One response a pair: the teacher's, or the student's own with a probability.

    DistiLLM's adaptive off-policy data lets the probability grow; with step 0 it stays, which is GKD's lambda.
    """

    validation_pairs: int = Field(
        default=64, ge=1, description="Pairs kept out of training to watch the loss on; none with step 0"
    )
    start: float = Field(default=0.0, ge=0, le=1, description="First probability of the student's response")
    step: float = Field(default=0.1, ge=0, le=1, description="Added whenever the validation loss has risen")
    tolerance: float = Field(default=0.1, ge=0, description="Rise of the validation loss that counts")
    every: int | None = Field(default=None, ge=1, description="Updates between validations; none: an epoch")

    @property
    def held_out(self) -> int:
        """Pairs that are not trained on: none where no loss is watched."""
        return self.validation_pairs if self.step else 0


class ObjectiveSection(Section):
    """lambda_teacher * D on teacher prefixes + lambda_student * D on student prefixes, each token times its weight."""

    on_teacher: DivergenceSection = SkewedKL()
    on_student: DivergenceSection = SkewedReverseKL()
    lambda_teacher: float = Field(default=1.0, ge=0, description="Strength of the term on teacher prefixes")
    lambda_student: float = Field(default=1.0, ge=0, description="Strength of the term on student prefixes")
    gradual: bool = Field(
        default=False,
        description="DistiLLM-2's curriculum: times (2 - b, b), b = 1 + min(1/2, update / num_updates)",
    )
    mixing: AdaptiveMixing | None = Field(
        default=None, description="One response a pair instead of both: the teacher's, or adaptively the student's"
    )
    weighting: Weighting = RatioWeighting()
    reduction: Literal["sequence_mean", "sum", "global_token_mean"] = Field(
        default="sequence_mean", description="How rows become a loss; no denominator ever contains weights"
    )

    @property
    def needs_judge(self) -> bool:
        """Whether some row's weight comes from the judge."""
        return "judge" in self.weighting.needs

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's distribution is asked for at any row."""
        terms = ((self.on_teacher, self.lambda_teacher), (self.on_student, self.lambda_student))
        return bool(self.weighting.needs) or any(strength and term.type != "cross_entropy" for term, strength in terms)

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.lambda_teacher == 0 and self.lambda_student == 0:
            raise ValueError("lambda_teacher and lambda_student are both 0: nothing to learn; set one above 0")
        if self.mixing is not None and not (self.lambda_teacher and self.lambda_student):
            raise ValueError(
                "mixing chooses between both kinds of responses: set both lambdas above 0, or mixing to null"
            )
        return self
