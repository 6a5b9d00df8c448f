"""Peak memory of a process and of its GPU, for benchmarks."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal, Self

_POLL_S = 1.0  # looking through all processes takes time from those that are measured
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


def peaks_beyond(models_gib: float) -> dict[str, float]:
    """Largest resident memory of this process, and what of it came on top of its models."""
    peak = resident_gib("VmHWM")
    return {"peak_gib": peak, "peak_beyond_models_gib": peak - models_gib}


class RayPeaks:
    """Peak memory of the student's rank and of the teacher's actor, read from outside while they live."""

    _ROLES: ClassVar = {"ray::RayTrainWorker": "rank", "ray::EngineActor": "teacher"}

    def __init__(self) -> None:
        self._gib: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def gib(self) -> dict[str, float]:
        """By role."""
        return {f"{role}_peak_gib": peak for role, peak in sorted(self._gib.items())}

    def _poll(self) -> None:
        import psutil

        while not self._stop.wait(_POLL_S):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError, RuntimeError):  # it has just ended
                    # A Ray worker's title is its class and the method that it runs.
                    title = next(iter(process.cmdline()), "")
                    role = self._ROLES.get(title.split(".")[0])
                    if role is not None:
                        peak = resident_gib("VmHWM", process.pid)
                        self._gib[role] = max(peak, self._gib.get(role, 0.0))
