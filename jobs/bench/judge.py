"""What packing saves: one judge pass over trunk and branches, against a forward a branch and against one by one on a cache.

Runs a random Qwen2-type judge, value head or two labels, over every combination of response length, agreement of the
proposals and attention. Trains nothing.

- packed: trunk and branches in one pass. trunk: the same pass without branches.
- naive: a forward over prefix and proposal for each branch; where only some are timed, their mean is scaled to all.
- cached: the trunk with a key-value cache, then one token a branch.
- split: the trunk with a key-value cache (`split_trunk_s`), then all branches in one pass on it (`split_branches_s`): what
  keeping the trunk between the two calls of a teacher rollout would cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.bench import judge_ways
from jobs.bench.memory import forget_peak, peak_gib

if TYPE_CHECKING:
    pass


def run(argv: list[str]) -> dict[str, Any]:
    """Seconds (medians) and ratios of each case; ways are timed in turns, so that a slow spell hits all alike."""
    options = _parser().parse_args(argv)
    import torch

    torch.set_num_threads(options.threads)
    backbone = judge_ways.random_backbone(options)
    cases = [
        _case(options, backbone, attention, length, agreement)
        for attention in options.attention
        for length in options.response_length
        for agreement in options.agreement
    ]
    names = ("layers", "hidden", "threads", "repeats", "trajectories", "prompt_length", "device", "dtype")
    return {name: getattr(options, name) for name in names} | {"cases": cases}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench judge", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="layers of the judge")
    parser.add_argument("--hidden", type=int, default=256, help="width of the judge; 64 a head")
    parser.add_argument("--trajectories", type=int, default=1, help="trajectories in the request")
    parser.add_argument("--prompt-length", type=int, default=128, help="prompt tokens of each")
    parser.add_argument("--response-length", type=int, nargs="+", default=[128, 512, 1024], help="response tokens")
    parser.add_argument("--agreement", type=float, nargs="+", default=[0.0, 0.5, 0.8], help="share without a branch")
    parser.add_argument("--attention", nargs="+", choices=["auto", "dense", "flex", "two_stream"], default=["auto"])
    parser.add_argument("--repeats", type=int, default=5, help="timings of each way")
    parser.add_argument(
        "--naive-branches", type=int, default=32, help="branches that naive scoring is timed on; 0: none"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    return parser


def _case(options: argparse.Namespace, backbone: Any, attention: Any, length: int, agreement: float) -> dict[str, Any]:
    judge = judge_ways.random_judge(options, backbone, attention)
    request = judge_ways.random_request(options, length, agreement)
    agreed = type(request)(questions=request.questions, responses=request.responses, proposals=request.responses)
    rows = judge_ways.branched_rows(request)
    timed = judge_ways.spread(rows, options.naive_branches)
    ways: dict[str, Callable[[], Any]] = {"packed": lambda: judge.score(request), "trunk": lambda: judge.score(agreed)}
    if timed:
        ways["naive"] = lambda: judge.score_separately(request, timed)
        ways["cached"] = lambda: judge_ways.score_cached(options, backbone, request)
    caches: list[Any] = []
    if rows:
        ways["split_trunk"] = lambda: caches.append(judge_ways.trunk_cache(options, backbone, request))
        ways["split_branches"] = lambda: judge_ways.score_branches(options, backbone, request, caches.pop())
    peaks = {}
    for name in ("packed", "trunk"):
        ways[name]()  # The first pass allocates and compiles; it is not timed.
        forget_peak(options.device)
        before = peak_gib(options.device)
        ways[name]()
        peaks[f"{name}_peak_gib"] = peak_gib(options.device) - before
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            judge_ways.synchronize(options.device)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    case: dict[str, Any] = {
        "attention": attention,
        "response_length": length,
        "agreement": agreement,
        "num_branches": len(rows),
        "num_tokens": judge.score(request).num_tokens,
        **{f"{name}_s": value for name, value in median.items()},
        "packed_over_trunk": median["packed"] / median["trunk"],
        **peaks,
    }
    if timed:
        # Both proposals are scored apart, of which the trajectory's own comes free in naive scoring.
        naive = median["naive"] / 2 * len(rows) / len(timed)
        packed, (_, apart) = judge.score(request), judge.score_separately(request, timed)
        case |= {
            "naive_s": naive,
            "naive_branches_timed": len(timed),
            "naive_over_packed": naive / median["packed"],
            "cached_over_packed": median["cached"] / median["packed"],
            "max_abs_logit_difference": float(abs(packed.branch_logit[timed] - apart).max()),
        }
    if rows:
        case["split_over_packed"] = (median["split_trunk"] + median["split_branches"]) / median["packed"]
    return case
