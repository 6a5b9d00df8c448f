"""What of the teacher's distribution travels: bytes a token, time through the object store, and what a truncated one does.

Synthetic distributions with Zipf-like tails at a real vocabulary's size, from peaked to flat, and the tiny world's teacher and
student on a batch of rollouts. The reference is the exact loss from hidden states; the tail of a top-k is lumped.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from jobs.bench.transport_cases import Case, synthetic_case, tiny_case
from jobs.bench.transport_store import through_object_store

if TYPE_CHECKING:
    from vcrd_ray.method.divergences import Divergence

_EXPONENTS = {"peaked": 2.2, "mid": 1.5, "flat": 1.05}
"""Of the token's rank: probability falls as rank^-exponent before noise."""


def run(argv: list[str]) -> dict[str, Any]:
    """Relative change of the loss and relative error of its gradient by the student's states, for each case and k."""
    options = _options(argv)
    import torch

    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"vocab": options.vocab, "rows": options.rows, "k": options.k}
    figures |= _bytes_a_token(options)
    if options.object_store:
        figures |= through_object_store(options)
    cases = {name: synthetic_case(options, exponent) for name, exponent in _EXPONENTS.items()}
    cases["tiny"] = tiny_case(options.rows)
    for name, case in cases.items():
        figures[f"{name}_p_max"] = float(case.teacher_logp.max(-1).values.exp().mean())
        for k in options.k:
            figures |= _bias(f"{name}_k{k}", case, k)
    return figures


def _bias(name: str, case: Case, k: int) -> dict[str, float]:
    from vcrd_ray.method.divergences import SkewedKL, SkewedReverseKL
    from vcrd_ray.method.fused import HiddenTeacher, TopKTeacher

    top = case.teacher_logp.topk(min(k, case.vocab), dim=-1)
    exact = HiddenTeacher(hidden=case.teacher_hidden, head=case.teacher_head)
    lumped = TopKTeacher(ids=top.indices, logp=top.values)
    figures = {f"{name}_tail": float(1 - top.values.exp().sum(-1).mean())}
    divergences: dict[str, Divergence] = {
        "skl": SkewedKL(alpha=0.1),
        "srkl": SkewedReverseKL(alpha=0.1, detach_mixture=True),
    }
    for kind, divergence in divergences.items():
        value, gradient = case.loss_and_gradient(divergence, exact)
        biased, other = case.loss_and_gradient(divergence, lumped)
        figures[f"{name}_{kind}_value_change"] = biased / value - 1
        figures[f"{name}_{kind}_gradient_error"] = float((other - gradient).norm() / gradient.norm())
    return figures


def _bytes_a_token(options: argparse.Namespace) -> dict[str, int]:
    """Of the arrays as they are sent: hidden states in bfloat16, top-k as int32 ids and float32 log-probabilities."""
    figures = {"hidden_bytes_per_token": 2 * options.teacher_hidden, "logits_bytes_per_token": 2 * options.vocab}
    return figures | {f"top_{k}_bytes_per_token": 8 * k for k in options.k}


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench transport", description=__doc__)
    parser.add_argument("--vocab", type=int, default=151_936, help="tokens of the synthetic distributions")
    parser.add_argument("--rows", type=int, default=64, help="positions of each case")
    parser.add_argument("--k", type=int, nargs="+", default=[64, 512], help="tokens of a truncated distribution")
    parser.add_argument(
        "--teacher-hidden", type=int, default=3584, help="width of a teacher's hidden state, for the bytes"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="positions that go through the object store at once")
    parser.add_argument("--repeats", type=int, default=9, help="of each kind through the object store")
    parser.add_argument(
        "--object-store", action=argparse.BooleanOptionalAction, default=True, help="measure the object store too"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)
