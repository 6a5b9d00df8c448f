"""Benchmarks that print one line: chaos, judge, loss, overlap, peer, rollouts, transport.

    python -m jobs.bench NAME [--json] [options of that benchmark]

Each benchmark compares alternatives side by side in one run; figures are medians on this machine, under its load.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys

NAMES = ("chaos", "judge", "loss", "overlap", "peer", "rollouts", "transport")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description="Benchmarks that print one line.")
    parser.add_argument("name", choices=NAMES, help="what to measure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of NAME=VALUE pairs")
    own, rest = parser.parse_known_args(argv)
    # torch and Ray are imported only for what was chosen.
    chosen = importlib.import_module(f"jobs.bench.{own.name}")
    figures = {"bench": own.name, **chosen.run(rest), "cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps(figures) if own.json else "  ".join(f"{name}={value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
