"""Fused against dense loss at a real vocabulary, and against Liger's chunked one: time, peak memory, difference of results.

Each variant runs in a process of its own, so that its peak is its own; the alternatives take turns. SKL and SRKL are
compared with dense autograd, the Jensen-Shannon divergence (all that Liger has in common) with Liger where that is
installed: compiled and with large chunks, its defaults. It takes the gradient of the head too, frozen or not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

WEIGHTED = ("skl", "srkl")
COMMON = "jsd"
OF_VARIANT = {"dense": WEIGHTED, "fused": (*WEIGHTED, COMMON), "liger": (COMMON,)}


def run(argv: list[str]) -> dict[str, Any]:
    """Figures of forward and backward, student head frozen. With several numbers of rows each key begins with nROWS_."""
    options = read_options(argv)
    figures: dict[str, Any] = {
        "rows": options.rows[0] if len(options.rows) == 1 else options.rows,
        "vocab": options.vocab,
        "student_hidden": options.student_hidden,
        "teacher_hidden": options.teacher_hidden,
        "chunk_rows": options.chunk_rows,
        "liger_chunk_rows": options.liger_chunk_rows,
        "threads": options.threads,
    }
    variants = [v for v in OF_VARIANT if v != "liger" or importlib.util.find_spec("liger_kernel") is not None]
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
            case = case_name(rows, name)
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


def case_name(rows: int, name: str) -> str:
    """Of one divergence on so many rows."""
    return f"{name} of {rows} rows"


def read_options(argv: list[str]) -> argparse.Namespace:
    """Of the command line, those of a variant's own process included."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench loss", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 2048], help="response positions")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--student-hidden", type=int, default=1536)
    parser.add_argument("--teacher-hidden", type=int, default=3584)
    parser.add_argument("--chunk-rows", type=int, default=128)
    parser.add_argument("--liger-chunk-rows", type=int, default=1024, help="Liger's chunk; its own default")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", choices=tuple(OF_VARIANT), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _measure(argv: list[str], variant: str, result: Path) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "jobs.bench.loss_process", *argv, "--variant", variant, "--result", str(result)]
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
