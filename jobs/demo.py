"""The pipeline on the embedded tiny world: the whole main job on one machine in minutes.

python -m jobs.demo [--methods vcrd vcrd_prob uniform] [--section.key value ...] [--dry-run]
"""

from __future__ import annotations

from pathlib import Path

from jobs import pipeline
from jobs.cli import run_main

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main(argv: list[str]) -> int:
    """The pipeline with the demo's config, unless another one is given."""
    return pipeline.main(argv if "--config" in argv else ["--config", str(DEFAULT_CONFIG), *argv], job="demo")


if __name__ == "__main__":
    run_main(main)
