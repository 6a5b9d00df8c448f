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

from jobs.bench.memory import forget_peak, peak_gib

if TYPE_CHECKING:
    import torch

    from vcrd_ray.judges.packed import PackedJudge
    from vcrd_ray.types import JudgeRequest

_NUM_SPECIAL = 2
_VOCAB = 1024


def run(argv: list[str]) -> dict[str, Any]:
    """Seconds (medians) and ratios of each case; ways are timed in turns, so that a slow spell hits all alike."""
    options = _parser().parse_args(argv)
    import torch

    torch.set_num_threads(options.threads)
    backbone = _backbone(options)
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
    judge = _judge(options, backbone, attention)
    request = _random_request(options, length, agreement)
    agreed = type(request)(questions=request.questions, responses=request.responses, proposals=request.responses)
    rows = _branched_rows(request)
    timed = _spread(rows, options.naive_branches)
    ways: dict[str, Callable[[], Any]] = {"packed": lambda: judge.score(request), "trunk": lambda: judge.score(agreed)}
    if timed:
        ways["naive"] = lambda: judge.score_separately(request, timed)
        ways["cached"] = lambda: _score_cached(options, backbone, request)
    caches: list[Any] = []
    if rows:
        ways["split_trunk"] = lambda: caches.append(_trunk_cache(options, backbone, request))
        ways["split_branches"] = lambda: _branches_on(options, backbone, request, caches.pop())
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
            _synchronize(options.device)
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


def _backbone(options: argparse.Namespace) -> Any:
    """A backbone that needs no files."""
    import torch
    from transformers import Qwen2Config, Qwen2Model

    config = Qwen2Config(
        vocab_size=_VOCAB,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 128),
    )
    torch.manual_seed(options.seed)
    backbone: Any = Qwen2Model(config)
    return backbone.to(options.device, getattr(torch, options.dtype)).eval()


def _judge(options: argparse.Namespace, backbone: Any, attention: Any) -> PackedJudge:
    import torch

    from vcrd_ray.judges.packed import PackedJudge
    from vcrd_ray.judges.value_head import ValueHeadFormat, linear_head, value_head_profile

    torch.manual_seed(options.seed)
    prompt = torch.randint(_NUM_SPECIAL, _VOCAB, (options.prompt_length,)).tolist()
    # Logits of about 1: a difference in logit then is one of a usual score.
    weight = torch.randn(1, options.hidden) / options.hidden**0.5
    return PackedJudge(
        backbone=backbone,
        head=linear_head(weight.to(options.device), torch.zeros(1, device=options.device)),
        reading=ValueHeadFormat(encode=lambda text: prompt, bos="", special_ids=range(_NUM_SPECIAL)),
        profile=value_head_profile("random", trained_on="nothing"),
        max_batch_tokens=1 << 30 if attention != "flex" else 1 << 16,
        attention=attention,
    )


def _random_request(options: argparse.Namespace, length: int, agreement: float) -> JudgeRequest:
    import numpy as np

    from vcrd_ray.types import JudgeRequest

    rng = np.random.default_rng(options.seed)
    shape = (options.trajectories, length)
    responses = rng.integers(_NUM_SPECIAL, _VOCAB, size=shape).astype(np.int32)
    others = rng.integers(_NUM_SPECIAL, _VOCAB, size=shape).astype(np.int32)
    proposals = np.where(rng.random(shape) < agreement, responses, others)
    return JudgeRequest(questions=("",) * options.trajectories, responses=tuple(responses), proposals=tuple(proposals))


def _branched_rows(request: JudgeRequest) -> list[int]:
    import numpy as np

    differs = np.concatenate(request.responses) != np.concatenate(request.proposals)
    return [int(row) for row in np.flatnonzero(differs)]


def _spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly spread: short and long prefixes alike."""
    if len(rows) <= count:
        return rows
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)]


def _trunk_cache(options: argparse.Namespace, backbone: Any, request: JudgeRequest) -> Any:
    """The key-value cache of all trunks, which are of one length here."""
    import numpy as np
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=backbone.config)
    response = torch.from_numpy(np.stack(request.responses).astype(np.int64)).to(options.device)
    prompt = torch.full((len(response), options.prompt_length), _NUM_SPECIAL, device=options.device)
    with torch.inference_mode():
        backbone(input_ids=torch.cat([prompt, response], 1), past_key_values=cache, use_cache=True)
    return cache


def _branches_on(options: argparse.Namespace, backbone: Any, request: JudgeRequest, cache: Any) -> None:
    """All branches of each trajectory in one pass on its cached trunk."""
    import numpy as np
    import torch

    parents = [np.flatnonzero(r != c) for r, c in zip(request.responses, request.proposals, strict=True)]
    width, length = max(len(p) for p in parents), options.prompt_length + len(request.responses[0])
    ids = torch.zeros(len(parents), width, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    for row, (parent, proposal) in enumerate(zip(parents, request.proposals, strict=True)):
        ids[row, : len(parent)] = torch.from_numpy(proposal[parent].astype(np.int64))
        positions[row, : len(parent)] = torch.from_numpy(options.prompt_length + parent)
    column = torch.arange(length + width)
    itself = length + torch.arange(width)[:, None]
    sees = ((column < positions[:, :, None]) | (column == itself))[:, None].to(options.device)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scale)

    with torch.inference_mode():
        backbone(
            input_ids=ids.to(options.device),
            position_ids=positions.to(options.device),
            past_key_values=cache,
            use_cache=True,
            trees=attend,
        )


def _score_cached(options: argparse.Namespace, backbone: Any, request: JudgeRequest) -> None:
    """Trunk once with a key-value cache, then each branch as one more token, last position first."""
    import numpy as np
    import torch

    for question, response, proposal in zip(request.questions, request.responses, request.proposals, strict=True):
        one = type(request)(questions=(question,), responses=(response,), proposals=(proposal,))
        cache = _trunk_cache(options, backbone, one)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
            # One query that sees every key there is.
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)

        with torch.inference_mode():
            for t in np.flatnonzero(response != proposal)[::-1]:
                # From the last position on, only what stands behind the prefix has to go.
                cache.crop(options.prompt_length + int(t) - cache.get_seq_length())
                branch = torch.tensor([[int(proposal[t])]], device=options.device)
                backbone(input_ids=branch, past_key_values=cache, use_cache=True, trees=attend)


def _synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
