"""Measures what packing saves: one judge pass over trunk and leaves against one forward a leaf.

Runs a random Qwen2-type judge; trains and prints nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vcrd_ray.judges.value_head import ValueHeadJudge
    from vcrd_ray.types import JudgeRequest

_NUM_SPECIAL = 2


def run(argv: list[str]) -> dict[str, float]:
    """Seconds (medians) and ratios of three ways to score every position of one batch.

    packed: trunk and leaves in one pass. trunk: the same pass without leaves. naive: a forward over
    prefix and candidate for each leaf; if only a sample of the leaves is timed, its mean is scaled
    to all of them (`naive_extrapolated` is 1). cached: the trunk with a key-value cache, then one
    token a leaf.
    """
    options = _parser().parse_args(argv)
    import torch

    torch.set_num_threads(options.threads)
    judge, backbone = _random_judge(options)
    request = _random_request(options)
    agreed = type(request)(questions=request.questions, responses=request.responses, candidates=request.responses)
    rows = _leaf_rows(request)
    timed = _spread(rows, options.naive_leaves)
    ways: dict[str, Callable[[], Any]] = {
        "packed": lambda: judge.score(request),
        "trunk": lambda: judge.score(agreed),
        "naive": lambda: judge.score_separately(request, timed),
        "cached": lambda: _score_cached(backbone, request, options.prompt_length),
    }
    judge.score(request)  # The first pass allocates; it is not timed.
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # Interleaved, so that a slow spell of the machine hits all ways alike.
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    naive = median["naive"] * len(rows) / len(timed)
    packed = judge.score(request)
    difference = abs(packed.candidate_logit[timed] - judge.score_separately(request, timed)).max()
    return {
        "trajectories": float(options.trajectories),
        "prompt_length": float(options.prompt_length),
        "response_length": float(options.response_length),
        "agreement": options.agreement,
        "layers": float(options.layers),
        "hidden": float(options.hidden),
        "threads": float(options.threads),
        "repeats": float(options.repeats),
        "num_leaves": float(len(rows)),
        "num_packed_tokens": float(packed.num_tokens),
        "packed_s": median["packed"],
        "trunk_s": median["trunk"],
        "cached_s": median["cached"],
        "naive_s": naive,
        "naive_leaves_timed": float(len(timed)),
        "naive_extrapolated": float(len(timed) < len(rows)),
        "packed_over_trunk": median["packed"] / median["trunk"],
        "naive_over_packed": naive / median["packed"],
        "cached_over_packed": median["cached"] / median["packed"],
        "max_abs_logit_difference": float(difference),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench judge", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="layers of the judge")
    parser.add_argument("--hidden", type=int, default=256, help="width of the judge; 64 a head")
    parser.add_argument("--trajectories", type=int, default=1, help="trajectories in the request")
    parser.add_argument("--prompt-length", type=int, default=128, help="prompt tokens of each")
    parser.add_argument("--response-length", type=int, default=384, help="response tokens of each")
    parser.add_argument("--agreement", type=float, default=0.5, help="share of positions without a leaf")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each way")
    parser.add_argument("--naive-leaves", type=int, default=64, help="leaves that naive scoring is timed on")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    return parser


def _random_judge(options: argparse.Namespace) -> tuple[ValueHeadJudge, Any]:
    """A judge that needs no files, and its backbone."""
    import torch
    from transformers import Qwen2Config, Qwen2Model

    from vcrd_ray.judges.value_head import ValueHeadJudge

    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 128),
    )
    torch.manual_seed(options.seed)
    backbone: Any = Qwen2Model(config)
    prompt = torch.randint(_NUM_SPECIAL, 1024, (options.prompt_length,)).tolist()
    judge = ValueHeadJudge(
        backbone=backbone,
        # Logits of about 1: a difference in logit then is one of a usual score.
        head_weight=torch.randn(1, options.hidden) / options.hidden**0.5,
        head_bias=torch.zeros(1),
        encode_prompt=lambda question: prompt,
        special_ids=range(_NUM_SPECIAL),
        max_batch_tokens=1 << 30,
        fingerprint="random",
    )
    return judge, backbone


def _random_request(options: argparse.Namespace) -> JudgeRequest:
    import numpy as np

    from vcrd_ray.types import JudgeRequest

    rng = np.random.default_rng(options.seed)
    shape = (options.trajectories, options.response_length)
    responses = rng.integers(_NUM_SPECIAL, 1024, size=shape).astype(np.int32)
    others = rng.integers(_NUM_SPECIAL, 1024, size=shape).astype(np.int32)
    candidates = np.where(rng.random(shape) < options.agreement, responses, others)
    return JudgeRequest(
        questions=("",) * options.trajectories,
        responses=tuple(responses),
        candidates=tuple(candidates),
    )


def _leaf_rows(request: JudgeRequest) -> list[int]:
    import numpy as np

    differs = np.concatenate(request.responses) != np.concatenate(request.candidates)
    rows = np.flatnonzero(differs).tolist()
    if not rows:
        raise SystemExit("bench judge: no position differs, so nothing to compare; lower --agreement")
    return [int(row) for row in rows]


def _spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly spread: short and long prefixes alike."""
    if len(rows) <= count:
        return rows
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)]


def _score_cached(backbone: Any, request: JudgeRequest, prompt_length: int) -> None:
    """Trunk once with a key-value cache, then each leaf as one more token, last position first."""
    import numpy as np
    import torch
    from transformers import DynamicCache

    for response, candidate in zip(request.responses, request.candidates, strict=True):
        cache = DynamicCache(config=backbone.config)
        prompt = torch.full((prompt_length,), _NUM_SPECIAL)
        ids = torch.cat([prompt, torch.from_numpy(response.astype(np.int64))])
        with torch.inference_mode():
            backbone(input_ids=ids[None], past_key_values=cache, use_cache=True)
            for t in np.flatnonzero(response != candidate)[::-1]:
                # From the last position on, only what stands behind the prefix has to go.
                cache.crop(prompt_length + int(t) - cache.get_seq_length())
                leaf = torch.tensor([[int(candidate[t])]])
                backbone(input_ids=leaf, past_key_values=cache, use_cache=True)
