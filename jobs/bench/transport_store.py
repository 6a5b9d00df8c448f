"""Arrays of each kind through Ray's object store, timed for `jobs.bench transport`."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np


def through_object_store(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from an actor that has the arrays of `options.tokens` positions to a process that has read every byte."""
    import ray

    from actors.cluster import ray_cluster
    from vcrd_ray.config import Config
    from vcrd_ray.config.run import ClusterSection

    class Source:
        def __init__(self, arrays: dict[str, tuple[np.ndarray, ...]]) -> None:
            self._arrays = arrays

        def give(self, kind: str) -> tuple[np.ndarray, ...]:
            return self._arrays[kind]

    rows, rng = options.tokens, np.random.default_rng(options.seed)
    arrays: dict[str, tuple[np.ndarray, ...]] = {
        "hidden": (rng.integers(0, 2**16, size=(rows, options.teacher_hidden), dtype=np.uint16),),
        "logits": (rng.integers(0, 2**16, size=(rows, options.vocab), dtype=np.uint16),),
    }
    for k in options.k:
        ids = rng.integers(0, options.vocab, size=(rows, k), dtype=np.int32)
        arrays[f"top_{k}"] = (ids, rng.random((rows, k), dtype=np.float32))
    num_bytes = {kind: sum(array.nbytes for array in sent) for kind, sent in arrays.items()}
    figures: dict[str, float] = {"object_store_tokens": rows}
    store = 4 * max(num_bytes.values()) / 2**30 + 0.25
    with ray_cluster(Config(cluster=ClusterSection(object_store_gib=store))):
        source = ray.remote(Source).remote(arrays)
        seconds: dict[str, list[float]] = {kind: [] for kind in arrays}
        for repeat in range(options.repeats + 1):
            for kind in arrays:
                started = time.perf_counter()
                received = ray.get(source.give.remote(kind))
                for array in received:
                    array.sum(dtype=np.float64)  # a mapped page is there only once it is touched
                if repeat:
                    seconds[kind].append(time.perf_counter() - started)
                del received
    for kind, found in seconds.items():
        figures[f"object_store_{kind}_ms"] = 1000 * statistics.median(found)
    return figures
