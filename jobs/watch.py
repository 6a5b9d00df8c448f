"""A training that is under way, live in the terminal.

    python -m jobs.watch RUN [--every SECONDS] [--once] [--json]

RUN is a run directory (the newest training in it), a training's folder, or either in storage (s3://...). Ends with the
training. With --once one view is printed; with --json as JSON.
"""

from __future__ import annotations

from jobs.cli import run_main
from jobs.ops.watch import main

if __name__ == "__main__":
    run_main(main)
