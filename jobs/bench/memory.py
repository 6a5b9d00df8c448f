"""Peak memory of a process and of its GPU, for benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_CLEAR_PEAK = "5"  # what /proc/PID/clear_refs takes to forget the peak resident size


def forget_peak(device: str = "cpu") -> None:
    """Let the peak begin at what is in use now."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    else:
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str = "cpu") -> float:
    """Largest memory in use since `forget_peak`: resident on the CPU, allocated on a GPU."""
    if device == "cpu":
        return resident_gib("VmHWM")
    import torch

    return torch.cuda.max_memory_allocated() / 1024**3


def resident_gib(field: str, process: int | Literal["self"] = "self") -> float:
    """A process's memory as /proc/PID/status names it: VmRSS is resident now, VmHWM at its peak."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024**2
    raise RuntimeError(f"no {field} in /proc/{process}/status; this benchmark needs Linux")
