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
        for divergence in ("skl", "srkl"):
            measured: dict[str, list[dict[str, float]]] = {"dense": [], "fused": []}
            for _ in range(options.repeats):
                for variant, results in measured.items():
                    results.append(_measure(argv, variant, divergence, Path(folder) / variant))
            seconds = {v: statistics.median(r["seconds"] for r in results) for v, results in measured.items()}
            peak = {v: statistics.median(r["peak_gib"] for r in results) for v, results in measured.items()}
            figures |= {
                f"{divergence}_dense_s": seconds["dense"],
                f"{divergence}_fused_s": seconds["fused"],
                f"{divergence}_fused_over_dense_time": seconds["fused"] / seconds["dense"],
                f"{divergence}_dense_peak_gib": peak["dense"],
                f"{divergence}_fused_peak_gib": peak["fused"],
                f"{divergence}_fused_over_dense_peak": peak["fused"] / peak["dense"],
                **{
                    f"{divergence}_{name}": value
                    for name, value in _difference(Path(folder) / "dense", Path(folder) / "fused").items()
                },
            }
    return {
        name: round(value, 6) if isinstance(value, float) and value > 1e-3 else value for name, value in figures.items()
    }


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench loss", description=__doc__)
    parser.add_argument("--rows", type=int, default=512, help="response positions")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--student-hidden", type=int, default=1536)
    parser.add_argument("--teacher-hidden", type=int, default=3584)
    parser.add_argument("--chunk-rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", choices=("dense", "fused"), help=argparse.SUPPRESS)
    parser.add_argument("--divergence", choices=("skl", "srkl"), help=argparse.SUPPRESS)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(argv: list[str], variant: str, divergence: str, gradient: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "jobs.bench_loss", *argv, "--variant", variant, "--divergence", divergence]
    done = subprocess.run([*command, "--gradient", str(gradient)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{variant} {divergence} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _difference(dense: Path, fused: Path) -> dict[str, float]:
    import torch

    reference, ours = torch.load(dense, weights_only=True), torch.load(fused, weights_only=True)
    largest = float((reference - ours).abs().max())
    return {"max_abs_grad_difference": largest, "max_rel_grad_difference": largest / float(reference.abs().max())}


def _child(options: argparse.Namespace) -> None:
    """One variant: print its time and its peak beyond the inputs, save its gradient."""
    import torch

    from vcrd_ray.divergences import Divergence, SkewedKL, SkewedReverseKL
    from vcrd_ray.fused import fused_divergence

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kinds: dict[str, Divergence] = {
        "skl": SkewedKL(alpha=0.1),
        "srkl": SkewedReverseKL(alpha=0.1, detach_mixture=True),
    }
    divergence = kinds[options.divergence]
    student_hidden = torch.randn(options.rows, options.student_hidden).requires_grad_()
    teacher_hidden = torch.randn(options.rows, options.teacher_hidden)
    student_head = torch.randn(options.vocab, options.student_hidden) * options.student_hidden**-0.5
    teacher_head = torch.randn(options.vocab, options.teacher_hidden) * options.teacher_hidden**-0.5
    factor = torch.rand(options.rows)
    before = _resident_gib("VmRSS")
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
        with torch.no_grad():
            teacher_logp = torch.log_softmax(teacher_hidden @ teacher_head.T, dim=-1)
        student_logp = torch.log_softmax(student_hidden @ student_head.T, dim=-1)
        rows = divergence.value(teacher_logp=teacher_logp, student_logp=student_logp)
    (factor * rows).sum().backward()
    seconds = time.perf_counter() - started
    peak = _resident_gib("VmHWM") - before
    torch.save(student_hidden.grad, options.gradient)
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


def _resident_gib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024**2
    raise RuntimeError(f"no {field} in /proc/self/status; this benchmark needs Linux")


if __name__ == "__main__":
    _child(_options(sys.argv[1:]))
