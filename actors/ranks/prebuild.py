"""Compile what DeepSpeed would compile at first use, in one process that nothing kills halfway.

    python -m actors.ranks.prebuild

DeepSpeed's CPU backend builds a shared-memory collective when it is initialised. Two ranks that find it unbuilt wait
for each other's lock, and a rank that is killed while it builds leaves the lock behind.
"""

from __future__ import annotations

import os

from actors.cluster import worker_environment


def main() -> None:
    """Build, or find what was built before."""
    os.environ.update(worker_environment())
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.comm.torch import build_shm_op

    if build_shm_op() is None:
        print("DeepSpeed's shared-memory op cannot be built here (no C++ compiler?); ranks will use gloo alone")


if __name__ == "__main__":
    main()
