"""Fused against dense loss at a real vocabulary: time, peak memory, difference of the gradients.

Each variant runs in a process of its own, so that its peak is its own; the alternatives take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DIVERGENCES = ("skl", "srkl")
_CLEAR_PEAK = "5"  # what /proc/PID/clear_refs takes to forget the peak resident size


def run(argv: list[str]) -> dict[str, Any]:
    """Figures for SKL and SRKL, forward and backward, student head frozen."""
    options = _options(argv)
    figures: dict[str, Any] = {
        "rows": options.rows,
        "vocab": options.vocab,
        "student_hidden": options.student_hidden,
        "teacher_hidden": options.teacher_hidden,
        "chunk_rows": options.chunk_rows,
        "threads": options.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        gradients = {variant: Path(folder) / variant for variant in ("dense", "fused")}
        measured: dict[str, list[dict[str, dict[str, float]]]] = {variant: [] for variant in gradients}
        for _ in range(options.repeats):
            for variant, results in measured.items():
                results.append(_measure(argv, variant, gradients[variant]))
        differences = _differences(gradients["dense"], gradients["fused"])
    for name in DIVERGENCES:
        seconds, peak = (
            {v: statistics.median(result[name][field] for result in results) for v, results in measured.items()}
            for field in ("seconds", "peak_gib")
        )
        figures |= {
            f"{name}_dense_s": seconds["dense"],
            f"{name}_fused_s": seconds["fused"],
            f"{name}_fused_over_dense_time": seconds["fused"] / seconds["dense"],
            f"{name}_dense_peak_gib": peak["dense"],
            f"{name}_fused_peak_gib": peak["fused"],
            f"{name}_fused_over_dense_peak": peak["fused"] / peak["dense"],
            **{f"{name}_{figure}": value for figure, value in differences[name].items()},
        }
    return {
        name: round(value, 6) if isinstance(value, float) and value > 1e-3 else value for name, value in figures.items()
    }


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench loss", description=__doc__)
    parser.add_argument("--rows", type=int, default=256, help="response positions")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--student-hidden", type=int, default=1536)
    parser.add_argument("--teacher-hidden", type=int, default=3584)
    parser.add_argument("--chunk-rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", choices=("dense", "fused"), help=argparse.SUPPRESS)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(argv: list[str], variant: str, gradient: Path) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "jobs.bench_loss", *argv, "--variant", variant, "--gradient", str(gradient)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{variant} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    figures: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _differences(dense: Path, fused: Path) -> dict[str, dict[str, float]]:
    import torch

    references, ours = torch.load(dense, weights_only=True), torch.load(fused, weights_only=True)
    differences = {}
    for name, reference in references.items():
        largest = float((reference - ours[name]).abs().max())
        differences[name] = {
            "max_abs_grad_difference": largest,
            "max_rel_grad_difference": largest / float(reference.abs().max()),
        }
    return differences


def _child(options: argparse.Namespace) -> None:
    """One variant: print its time and its peak beyond the inputs for each divergence, save its gradients."""
    import torch

    from vcrd_ray.divergences import Divergence, SkewedKL, SkewedReverseKL
    from vcrd_ray.fused import fused_divergence

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kinds: dict[str, Divergence] = dict(
        zip(DIVERGENCES, (SkewedKL(alpha=0.1), SkewedReverseKL(alpha=0.1, detach_mixture=True)), strict=True)
    )
    student_hidden = torch.randn(options.rows, options.student_hidden).requires_grad_()
    teacher_hidden = torch.randn(options.rows, options.teacher_hidden)
    # Logits of variance 1. Uniform numbers are several times quicker to draw than normal ones.
    student_head, teacher_head = (
        torch.empty(options.vocab, size).uniform_(-1, 1).mul_((3 / size) ** 0.5)
        for size in (options.student_hidden, options.teacher_hidden)
    )
    factor = torch.rand(options.rows)
    # Once for both: what the first leaves allocated counts in the second as well.
    before = _resident_gib("VmRSS")
    figures: dict[str, dict[str, float]] = {}
    gradients: dict[str, torch.Tensor] = {}
    for name, divergence in kinds.items():
        student_hidden.grad = None
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        started = time.perf_counter()
        if options.variant == "fused":
            rows = fused_divergence(
                divergence=divergence,
                student_hidden=student_hidden,
                student_head=student_head,
                teacher_hidden=teacher_hidden,
                teacher_head=teacher_head,
                vocab_size=options.vocab,
                chunk_rows=options.chunk_rows,
                uniform=None,
                teacher_probability_top_k=None,
            ).divergence
        else:
            rows = divergence.value(
                teacher_logp=torch.log_softmax(teacher_hidden @ teacher_head.T, dim=-1),
                student_logp=torch.log_softmax(student_hidden @ student_head.T, dim=-1),
            )
        (factor * rows).sum().backward()
        figures[name] = {"seconds": time.perf_counter() - started, "peak_gib": _resident_gib("VmHWM") - before}
        assert student_hidden.grad is not None
        gradients[name] = student_hidden.grad
        del rows
    torch.save(gradients, options.gradient)
    print(json.dumps(figures))


def _resident_gib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024**2
    raise RuntimeError(f"no {field} in /proc/self/status; this benchmark needs Linux")


if __name__ == "__main__":
    _child(_options(sys.argv[1:]))
