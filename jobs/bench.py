"""Benchmarks that print one line: judge, loss, overlap.

    python -m jobs.bench NAME [--json] [options of that benchmark]

Each benchmark compares alternatives side by side in one run; figures are medians on this machine, under its load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description="Benchmarks that print one line.")
    parser.add_argument("name", choices=("judge", "loss", "overlap"), help="what to measure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of NAME=VALUE pairs")
    own, rest = parser.parse_known_args(argv)
    # torch and Ray are imported only for what was chosen.
    if own.name == "judge":
        from jobs import bench_judge as chosen
    elif own.name == "loss":
        from jobs import bench_loss as chosen  # type: ignore[no-redef]
    else:
        from jobs import bench_overlap as chosen  # type: ignore[no-redef]
    figures = {"bench": own.name, **chosen.run(rest), "cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps(figures) if own.json else "  ".join(f"{name}={value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
