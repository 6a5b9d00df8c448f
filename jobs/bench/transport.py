"""What of the teacher's distribution travels: bytes a token, time through the object store, and what a truncated one does.

Synthetic distributions with Zipf-like tails at a real vocabulary's size, from peaked to flat, and the tiny world's teacher and
student on a batch of rollouts. The reference is the exact loss from hidden states; the tail of a top-k is lumped.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vcrd_ray.method.divergences import Divergence
    from vcrd_ray.method.fused import TeacherDistribution

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
        figures |= _through_object_store(options)
    cases = {name: _synthetic(options, exponent) for name, exponent in _EXPONENTS.items()}
    cases["tiny"] = _tiny(options.rows)
    for name, case in cases.items():
        figures[f"{name}_p_max"] = float(case.teacher_logp.max(-1).values.exp().mean())
        for k in options.k:
            figures |= _bias(f"{name}_k{k}", case, k)
    return figures


class _Case:
    """Rows of a student and a teacher, both as hidden states and heads."""

    def __init__(
        self,
        student_hidden: torch.Tensor,
        student_head: torch.Tensor,
        teacher_hidden: torch.Tensor,
        teacher_head: torch.Tensor,
    ) -> None:
        self.student_hidden, self.student_head = student_hidden, student_head
        self.teacher_hidden, self.teacher_head = teacher_hidden, teacher_head
        self.vocab = min(len(student_head), len(teacher_head))
        self.teacher_logp = (teacher_hidden @ teacher_head[: self.vocab].T).log_softmax(-1)

    def loss_and_gradient(self, divergence: Divergence, teacher: TeacherDistribution) -> tuple[float, torch.Tensor]:
        from vcrd_ray.method.fused import fused_divergence

        hidden = self.student_hidden.clone().requires_grad_()
        rows = fused_divergence(
            divergence=divergence,
            student_hidden=hidden,
            student_head=self.student_head,
            teacher=teacher,
            vocab_size=self.vocab,
            chunk_rows=16,
        )
        loss = rows.divergence.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        return float(loss.detach()), hidden.grad


def _bias(name: str, case: _Case, k: int) -> dict[str, float]:
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


def _synthetic(options: argparse.Namespace, exponent: float) -> _Case:
    """Both models share the order of the tokens up to noise of their own: logit = -exponent ln rank + h . w."""
    import torch

    torch.manual_seed(options.seed)
    ranks = -exponent * torch.arange(1, options.vocab + 1).float().log()[:, None]
    width = 16
    shared = torch.randn(options.vocab, width) / width**0.5
    parts = []
    for _ in range(2):
        head = torch.cat([shared + 0.3 * torch.randn(options.vocab, width) / width**0.5, ranks], 1)
        parts.append(head)
    states = torch.randn(options.rows, width)
    hidden = torch.cat([states, torch.ones(options.rows, 1)], 1)
    return _Case(hidden, parts[0], hidden.clone(), parts[1])


def _tiny(rows: int) -> _Case:
    """Solutions of the tiny world, read by the shipped weak teacher and by the student base."""
    import torch

    from vcrd_ray.config.data import TinyPrompts
    from vcrd_ray.config.world import WorldConfig
    from vcrd_ray.data.problems import make_examples, read_problems
    from vcrd_ray.models.batching import batch_responses
    from vcrd_ray.models.checkpoint_files import load_causal_lm, load_head, load_tokenizer, pad_id, resolve_model

    student, teacher = (resolve_model(name) for name in ("tiny:student-base", "tiny:teacher-weak"))
    tokenizer = load_tokenizer(student)
    problems, _ = read_problems(TinyPrompts(seed=2, count=max(1, rows // 16)), WorldConfig())
    examples, _ = make_examples(problems, tokenizer, max_length=1000)
    cpu = torch.device("cpu")
    batch = batch_responses(
        [e.prompt_ids for e in examples], [e.response_ids for e in examples], pad_id(tokenizer), cpu
    )
    states = []
    for path in (student, teacher):
        backbone = load_causal_lm(path, dtype="float32", device=cpu).get_decoder()
        with torch.no_grad():
            hidden = backbone(input_ids=batch.ids).last_hidden_state
        states += [hidden[batch.token_sequence, batch.token_index], load_head(path, dtype="float32")[: len(tokenizer)]]
    return _Case(*states)


def _bytes_a_token(options: argparse.Namespace) -> dict[str, int]:
    """Of the arrays as they are sent: hidden states in bfloat16, top-k as int32 ids and float32 log-probabilities."""
    figures = {"hidden_bytes_per_token": 2 * options.teacher_hidden, "logits_bytes_per_token": 2 * options.vocab}
    return figures | {f"top_{k}_bytes_per_token": 8 * k for k in options.k}


def _through_object_store(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from an actor that has the arrays of `options.tokens` positions to a process that has read every byte."""
    import numpy as np
    import ray

    from actors.cluster import ray_cluster
    from vcrd_ray.config import Config
    from vcrd_ray.config.run import ClusterSection

    class Source:
        def __init__(self, arrays: dict[str, tuple[np.ndarray, ...]]) -> None:
            self._arrays = arrays

        def give(self, kind: str) -> tuple[np.ndarray, ...]:
            return self._arrays[kind]

    rows, rng = options.tokens, np.random.default_rng(options.seed)
    arrays: dict[str, tuple[np.ndarray, ...]] = {
        "hidden": (rng.integers(0, 2**16, size=(rows, options.teacher_hidden), dtype=np.uint16),),
        "logits": (rng.integers(0, 2**16, size=(rows, options.vocab), dtype=np.uint16),),
    }
    for k in options.k:
        ids = rng.integers(0, options.vocab, size=(rows, k), dtype=np.int32)
        arrays[f"top_{k}"] = (ids, rng.random((rows, k), dtype=np.float32))
    num_bytes = {kind: sum(array.nbytes for array in sent) for kind, sent in arrays.items()}
    figures: dict[str, float] = {"object_store_tokens": rows}
    store = 4 * max(num_bytes.values()) / 2**30 + 0.25
    with ray_cluster(Config(cluster=ClusterSection(object_store_gib=store))):
        source = ray.remote(Source).remote(arrays)
        seconds: dict[str, list[float]] = {kind: [] for kind in arrays}
        for repeat in range(options.repeats + 1):
            for kind in arrays:
                started = time.perf_counter()
                received = ray.get(source.give.remote(kind))
                for array in received:
                    array.sum(dtype=np.float64)  # a mapped page is there only once it is touched
                if repeat:
                    seconds[kind].append(time.perf_counter() - started)
                del received
    for kind, found in seconds.items():
        figures[f"object_store_{kind}_ms"] = 1000 * statistics.median(found)
    return figures


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
