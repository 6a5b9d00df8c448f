"""What a distillation will need, before it is started: memory of each role, nodes, time and cost. Loads no model.

    python -m jobs.plan --config FILE [--cluster-file cluster.yaml] [--from RUN/distill] [--json]

Speeds and prices are those of the section `plan`; with --from, speeds are those of an earlier run.
"""

from __future__ import annotations

from jobs.cli import run_main
from jobs.ops.plan import main

if __name__ == "__main__":
    run_main(main)
