"""The judge, the requests and the ways of scoring that `jobs.bench judge` compares."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vcrd_ray.judges.packed import PackedJudge
    from vcrd_ray.types import JudgeRequest

_NUM_SPECIAL = 2
_VOCAB = 1024


def random_backbone(options: argparse.Namespace) -> Any:
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


def random_judge(options: argparse.Namespace, backbone: Any, attention: Any) -> PackedJudge:
    """A value head on it whose logits are about 1."""
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


def random_request(options: argparse.Namespace, length: int, agreement: float) -> JudgeRequest:
    """Random tokens, where a share `agreement` of the proposals is the response's own token."""
    import numpy as np

    from vcrd_ray.types import JudgeRequest

    rng = np.random.default_rng(options.seed)
    shape = (options.trajectories, length)
    responses = rng.integers(_NUM_SPECIAL, _VOCAB, size=shape).astype(np.int32)
    others = rng.integers(_NUM_SPECIAL, _VOCAB, size=shape).astype(np.int32)
    proposals = np.where(rng.random(shape) < agreement, responses, others)
    return JudgeRequest(questions=("",) * options.trajectories, responses=tuple(responses), proposals=tuple(proposals))


def branched_rows(request: JudgeRequest) -> list[int]:
    """Positions where the proposal is not the response's own token, counted over all responses."""
    import numpy as np

    differs = np.concatenate(request.responses) != np.concatenate(request.proposals)
    return [int(row) for row in np.flatnonzero(differs)]


def spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of the rows, evenly spread: short and long prefixes alike."""
    if len(rows) <= count:
        return rows
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)]


def trunk_cache(options: argparse.Namespace, backbone: Any, request: JudgeRequest) -> Any:
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


def score_branches(options: argparse.Namespace, backbone: Any, request: JudgeRequest, cache: Any) -> None:
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


def score_cached(options: argparse.Namespace, backbone: Any, request: JudgeRequest) -> None:
    """Trunk once with a key-value cache, then each branch as one more token, last position first."""
    import numpy as np
    import torch

    for question, response, proposal in zip(request.questions, request.responses, request.proposals, strict=True):
        one = type(request)(questions=(question,), responses=(response,), proposals=(proposal,))
        cache = trunk_cache(options, backbone, one)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
            # One query that sees every key there is.
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)

        with torch.inference_mode():
            for t in np.flatnonzero(response != proposal)[::-1]:
                # From the last position on, only what stands behind the prefix has to go.
                cache.crop(options.prompt_length + int(t) - cache.get_seq_length())
                branch = torch.tensor([[int(proposal[t])]], device=options.device)
                backbone(input_ids=branch, past_key_values=cache, use_cache=True, trees=attend)


def synchronize(device: str) -> None:
    """Wait for what a GPU was given."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
