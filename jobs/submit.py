"""Send a job of this project to a running cluster, follow its log, end as it ends. Knows no roles, models or actors.

    python -m jobs.submit [--address URL] [--env NAME ...] [--detach] -- jobs.distill --config FILE [--section.key value]
    python -m jobs.submit --follow ID | --status ID | --stop ID | --list

Ctrl-C leaves the job running and says how to follow or stop it.
"""

from __future__ import annotations

from jobs.cli import run_main
from jobs.ops.submit import main

if __name__ == "__main__":
    run_main(main)
