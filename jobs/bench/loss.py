"""Fused against dense loss at a real vocabulary, and against Liger's chunked one: time, peak memory, difference of results.

Each variant runs in a process of its own, so that its peak is its own; the alternatives take turns. SKL and SRKL are
compared with dense autograd, the Jensen-Shannon divergence (all that Liger has in common) with Liger where that is
installed: compiled and with large chunks, its defaults. It takes the gradient of the head too, frozen or not.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.memory import forget_peak, resident_gib

if TYPE_CHECKING:
    import torch

    from vcrd_ray.method.divergences import Divergence

WEIGHTED = ("skl", "srkl")
COMMON = "jsd"
_OF_VARIANT = {"dense": WEIGHTED, "fused": (*WEIGHTED, COMMON), "liger": (COMMON,)}


def run(argv: list[str]) -> dict[str, Any]:
    """Figures of forward and backward, student head frozen. With several numbers of rows each key begins with nROWS_."""
    options = _options(argv)
    figures: dict[str, Any] = {
        "rows": options.rows[0] if len(options.rows) == 1 else options.rows,
        "vocab": options.vocab,
        "student_hidden": options.student_hidden,
        "teacher_hidden": options.teacher_hidden,
        "chunk_rows": options.chunk_rows,
        "liger_chunk_rows": options.liger_chunk_rows,
        "threads": options.threads,
    }
    variants = [v for v in _OF_VARIANT if v != "liger" or importlib.util.find_spec("liger_kernel") is not None]
    with tempfile.TemporaryDirectory() as folder:
        results = {variant: Path(folder) / variant for variant in variants}
        measured: dict[str, list[dict[str, dict[str, float]]]] = {variant: [] for variant in variants}
        for _ in range(options.repeats):
            for variant, found in measured.items():
                found.append(_measure(argv, variant, results[variant]))
        differences = _differences(results)
    for rows in options.rows:
        prefix = "" if len(options.rows) == 1 else f"n{rows}_"
        for name in (*WEIGHTED, COMMON):
            case = _case(rows, name)
            of_case = {variant: [m[case] for m in found if case in m] for variant, found in measured.items()}
            medians = {
                variant: {field: statistics.median(m[field] for m in found) for field in ("seconds", "peak_gib")}
                for variant, found in of_case.items()
                if found
            }
            compared = {**_compared(medians), **differences.get(case, {})}
            figures |= {f"{prefix}{name}_{figure}": float(f"{value:.5g}") for figure, value in compared.items()}
    return figures


def _compared(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds and peaks of each variant, and ratios of the fused one to the others."""
    figures: dict[str, float] = {}
    for variant, figure in medians.items():
        figures |= {f"{variant}_s": figure["seconds"], f"{variant}_peak_gib": figure["peak_gib"]}
    for variant in medians.keys() - {"fused"}:
        for field, label in (("seconds", "time"), ("peak_gib", "peak")):
            figures[f"fused_over_{variant}_{label}"] = medians["fused"][field] / medians[variant][field]
    return figures


def _case(rows: int, name: str) -> str:
    return f"{name} of {rows} rows"


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench loss", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 2048], help="response positions")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--student-hidden", type=int, default=1536)
    parser.add_argument("--teacher-hidden", type=int, default=3584)
    parser.add_argument("--chunk-rows", type=int, default=128)
    parser.add_argument("--liger-chunk-rows", type=int, default=1024, help="Liger's chunk; its own default")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", choices=tuple(_OF_VARIANT), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(argv: list[str], variant: str, result: Path) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "jobs.bench.loss", *argv, "--variant", variant, "--result", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{variant} failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    figures: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _differences(results: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Largest differences of the fused results from those of the other variant that has the case."""
    import torch

    found = {variant: torch.load(path, weights_only=True) for variant, path in results.items()}
    ours = found.pop("fused")
    differences = {}
    for references in found.values():
        for case, reference in references.items():
            largest = float((reference["gradient"] - ours[case]["gradient"]).abs().max())
            differences[case] = {
                "max_abs_grad_difference": largest,
                "max_rel_grad_difference": largest / float(reference["gradient"].abs().max()),
                "rel_value_difference": float((ours[case]["loss"] / reference["loss"] - 1).abs()),
            }
    return differences


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What every variant is given."""

    factor: torch.Tensor
    """What each row's divergence is multiplied with. [n]"""
    student_hidden: torch.Tensor
    """[n, ds]"""
    student_head: torch.Tensor
    """[v, ds]"""
    teacher_hidden: torch.Tensor
    """[n, dt]"""
    teacher_head: torch.Tensor
    """[v, dt]"""


def _inputs(*, rows: int, vocab: int, student_hidden: int, teacher_hidden: int) -> _Inputs:
    import torch

    torch.manual_seed(0)
    # Logits of variance 1. Uniform numbers are several times quicker to draw than normal ones.
    student_head, teacher_head = (
        torch.empty(vocab, size).uniform_(-1, 1).mul_((3 / size) ** 0.5) for size in (student_hidden, teacher_hidden)
    )
    return _Inputs(
        factor=torch.rand(rows),
        student_hidden=torch.randn(rows, student_hidden).requires_grad_(),
        student_head=student_head,
        teacher_hidden=torch.randn(rows, teacher_hidden),
        teacher_head=teacher_head,
    )


def _child(options: argparse.Namespace) -> None:
    """One variant: print its time and its peak beyond the inputs for each case, save its losses and gradients."""
    import torch

    torch.set_num_threads(options.threads)
    loss_of = {"dense": _dense, "fused": _fused, "liger": _liger}[options.variant]
    chunk_rows = options.liger_chunk_rows if options.variant == "liger" else options.chunk_rows
    for name in _OF_VARIANT[options.variant]:
        # Imports, and what torch sets up on first use, are no part of the comparison.
        loss_of(name, _inputs(rows=2, vocab=16, student_hidden=8, teacher_hidden=8), chunk_rows).backward()
    sizes = {"student_hidden": options.student_hidden, "teacher_hidden": options.teacher_hidden}
    longest = _inputs(rows=max(options.rows), vocab=options.vocab, **sizes)
    # Once for all: what the first leaves allocated counts in the second as well.
    before = resident_gib("VmRSS")
    figures: dict[str, dict[str, float]] = {}
    results: dict[str, dict[str, torch.Tensor]] = {}
    for rows in sorted(options.rows):
        if options.variant == "liger":
            torch.compiler.reset()  # else it compiles once more for any number of rows, which is slower than for this one
        for name in _OF_VARIANT[options.variant]:
            # Liger takes the mean over rows and no factors.
            factor = longest.factor[:rows] if name in WEIGHTED else torch.full((rows,), 1 / rows)
            # What is compiled has its second run measured.
            for _ in range(2 if options.variant == "liger" else 1):
                inputs = dataclasses.replace(
                    longest,
                    factor=factor,
                    student_hidden=longest.student_hidden[:rows].detach().clone().requires_grad_(),
                    teacher_hidden=longest.teacher_hidden[:rows],
                )
                forget_peak()
                started = time.perf_counter()
                loss = loss_of(name, inputs, chunk_rows)
                loss.backward()
                seconds = time.perf_counter() - started
                figures[_case(rows, name)] = {"seconds": seconds, "peak_gib": resident_gib("VmHWM") - before}
                assert inputs.student_hidden.grad is not None
                results[_case(rows, name)] = {"loss": loss.detach(), "gradient": inputs.student_hidden.grad}
                del loss
    torch.save(results, options.result)
    print(json.dumps(figures))


def _divergence(name: str) -> Divergence:
    from vcrd_ray.method.divergences import GeneralizedJSD, SkewedKL, SkewedReverseKL

    if name == COMMON:
        return GeneralizedJSD(beta=0.5)
    return SkewedKL(alpha=0.1) if name == "skl" else SkewedReverseKL(alpha=0.1, detach_mixture=True)


def _dense(name: str, inputs: _Inputs, chunk_rows: int) -> torch.Tensor:
    import torch

    rows = _divergence(name).value(
        teacher_logp=torch.log_softmax(inputs.teacher_hidden @ inputs.teacher_head.T, dim=-1),
        student_logp=torch.log_softmax(inputs.student_hidden @ inputs.student_head.T, dim=-1),
    )
    return (inputs.factor * rows).sum()


def _fused(name: str, inputs: _Inputs, chunk_rows: int) -> torch.Tensor:
    from vcrd_ray.method.fused import HiddenTeacher, fused_divergence

    rows = fused_divergence(
        divergence=_divergence(name),
        student_hidden=inputs.student_hidden,
        student_head=inputs.student_head,
        teacher=HiddenTeacher(hidden=inputs.teacher_hidden, head=inputs.teacher_head),
        vocab_size=len(inputs.student_head),
        chunk_rows=chunk_rows,
    ).divergence
    return (inputs.factor * rows).sum()


def _liger(name: str, inputs: _Inputs, chunk_rows: int) -> torch.Tensor:
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    assert name == COMMON
    loss = LigerFusedLinearJSDLoss(
        beta=0.5, weight_hard_loss=0.0, weight_soft_loss=1.0, chunk_size=chunk_rows, compiled=True
    )
    labels = torch.zeros(len(inputs.student_hidden), dtype=torch.int64)  # of no use without hard loss; none is padding
    mean: torch.Tensor = loss(
        inputs.student_hidden, inputs.student_head, inputs.teacher_hidden, inputs.teacher_head, labels
    )
    return mean


if __name__ == "__main__":
    _child(_options(sys.argv[1:]))
