"""One variant of `jobs.bench loss` in a process of its own: seconds and peak of each case, losses and gradients.

python -m jobs.bench.loss_process [options of jobs.bench loss] --variant NAME --result FILE
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import torch

from jobs.bench.loss import OF_VARIANT, WEIGHTED, case_name, read_options
from jobs.bench.loss_variants import LOSS_OF, random_inputs
from jobs.bench.memory import forget_peak, resident_gib


def _child(options: argparse.Namespace) -> None:
    """One variant: print its time and its peak beyond the inputs for each case, save its losses and gradients."""
    torch.set_num_threads(options.threads)
    loss_of = LOSS_OF[options.variant]
    chunk_rows = options.liger_chunk_rows if options.variant == "liger" else options.chunk_rows
    for name in OF_VARIANT[options.variant]:
        # Imports, and what torch sets up on first use, are no part of the comparison.
        loss_of(name, random_inputs(rows=2, vocab=16, student_hidden=8, teacher_hidden=8), chunk_rows).backward()
    sizes = {"student_hidden": options.student_hidden, "teacher_hidden": options.teacher_hidden}
    longest = random_inputs(rows=max(options.rows), vocab=options.vocab, **sizes)
    # Once for all: what the first leaves allocated counts in the second as well.
    before = resident_gib("VmRSS")
    figures: dict[str, dict[str, float]] = {}
    results: dict[str, dict[str, torch.Tensor]] = {}
    for rows in sorted(options.rows):
        if options.variant == "liger":
            torch.compiler.reset()  # else it compiles once more for any number of rows, which is slower than for this one
        for name in OF_VARIANT[options.variant]:
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
                figures[case_name(rows, name)] = {"seconds": seconds, "peak_gib": resident_gib("VmHWM") - before}
                assert inputs.student_hidden.grad is not None
                results[case_name(rows, name)] = {"loss": loss.detach(), "gradient": inputs.student_hidden.grad}
                del loss
    torch.save(results, options.result)
    print(json.dumps(figures))


if __name__ == "__main__":
    _child(read_options(sys.argv[1:]))
