"""Whether a cluster is fit for a distillation, looked at before anything is paid for. Loads no model, changes nothing.

    python -m jobs.doctor --config FILE [--cluster-file cluster.yaml] [--timeout-s 120] [--json]

Every node is asked by a task that runs on it. Ends with 1 where something is wrong. What only the models themselves can show
(packed against separate judging) the job checks when it starts.
"""

from __future__ import annotations

from jobs.cli import run_main
from jobs.ops.doctor import main

if __name__ == "__main__":
    run_main(main)
