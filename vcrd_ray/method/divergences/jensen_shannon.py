"""The generalised Jensen-Shannon divergence of GKD."""

from __future__ import annotations

from dataclasses import dataclass

from vcrd_ray.method.divergences.protocol import Divergence, LogProbs, PerToken
from vcrd_ray.method.divergences.skewed import expected_log_ratio, log_mixture, log_ratio_to_mixture


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneralizedJSD(Divergence):
    """D = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, 0 < beta < 1; beta weighs the teacher.

    dD/dz_i = (1 - beta) q_i (l_i - sum_j q_j l_j), l = ln(q/m). At beta 0 and 1 the value is 0: what papers call GKD
    there is the forward and the reverse KL, which have classes of their own.
    """

    beta: float

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta {self.beta} of the generalised Jensen-Shannon divergence is outside (0, 1): what is meant by 0 is"
                " SkewedKL(alpha=0), by 1 SkewedReverseKL(alpha=0)"
            )

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        mixture = log_mixture(teacher_logp, student_logp, share=self.beta)
        return self.beta * expected_log_ratio(teacher_logp, mixture) + (1 - self.beta) * expected_log_ratio(
            student_logp, mixture
        )

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        signal = log_ratio_to_mixture(teacher_logp, student_logp, share=self.beta)
        value = signal.mul_(teacher_logp.exp()).sum(-1).mul_(self.beta)
        student = student_logp.exp()
        signal = log_ratio_to_mixture(student_logp, teacher_logp, share=1 - self.beta)
        mean = (student * signal).sum(-1, keepdim=True)
        value += (1 - self.beta) * mean[..., 0]
        return value, signal.sub_(mean).mul_(student).mul_(1 - self.beta)
