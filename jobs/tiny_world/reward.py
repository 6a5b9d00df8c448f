"""The tiny world's reward model, the oracle's labels for it, and its loss. Knows nothing of Ray.

The layout is that of Skywork-o1-Open-PRM: a Qwen2 backbone and one linear head `v_head.summary`;
the score of a token is `sigmoid(v_head(h))`, h its last hidden state after the final norm; the
prompt is `bos + problem + "\\n"`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from jobs.tiny_world.training import (
    pad_right,
    save,
)
from vcrd_ray.tiny.oracle import branch_validity, token_validity
from vcrd_ray.tiny.world import Problem

logger = logging.getLogger(__name__)

NO_LABEL = -1


class RewardModel(nn.Module):
    """Backbone and value head; state keys are those of the shipped file."""

    def __init__(self, backbone: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.causal = backbone
        self.v_head = nn.ModuleDict({"summary": nn.Linear(backbone.config.hidden_size, 1)})

    def forward(
        self,
        ids: Int[Tensor, "n t"],
        *,
        positions: Int[Tensor, "n t"] | None = None,
        allowed: Bool[Tensor, "n t t"] | None = None,
    ) -> Float[Tensor, "n t"]:
        """Logit of every token's score; causal unless `allowed` says who sees whom. Padding on the right only."""
        mask = None
        if allowed is not None:
            # Additive and of float type: a boolean mask is not understood by every attention.
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
        hidden = self.causal.model(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state
        return self.v_head["summary"](hidden).squeeze(-1)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Writes a Hugging Face folder in bfloat16, head included in `model.safetensors`."""
        self.causal.config.trained_on = "every token"  # what the judge says of itself
        save(self.causal, tokenizer, folder)
        file = folder / "model.safetensors"
        head = {f"v_head.{k}": v.to(torch.bfloat16) for k, v in self.v_head.state_dict().items()}
        save_file({**load_file(file), **head}, file, metadata={"format": "pt"})

    @staticmethod
    def load(folder: Path) -> "RewardModel":
        """A shipped model in float32, ready for evaluation."""
        backbone = Qwen2ForCausalLM(Qwen2Config.from_pretrained(folder, dtype=torch.float32))
        model = RewardModel(backbone)
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        head = {k.removeprefix("v_head."): state.pop(k) for k in list(state) if "v_head." in k}
        model.v_head.load_state_dict(head)
        # Tied embeddings: the file has no lm_head of its own.
        backbone.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
        return model.eval()


@dataclass(frozen=True, kw_only=True)
class LabelledResponse:
    """A response with the oracle's verdict on each token, and on one other token at each position.

    The three lists beside `context` are as long as the response; `NO_LABEL` stands where no verdict is wanted.
    """

    context: list[int]
    response: list[int]
    labels: list[int]
    branches: list[int]
    """What might have stood there instead."""
    branch_labels: list[int]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of responses, each with its branches behind it in the same row."""

    ids: Int[Tensor, "n t"]
    positions: Int[Tensor, "n t"]
    """A branch has the position of the token it might replace."""
    allowed: Bool[Tensor, "n t t"]
    """A branch sees what stands before that token, and itself."""
    labels: Int[Tensor, "n t"]


def judge_prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    return tokenizer.encode(f"{tokenizer.bos_token}{question}\n", add_special_tokens=False)


def labelled(
    problem: Problem,
    response: Sequence[int],
    branches: Sequence[int],
    tokenizer: PreTrainedTokenizerFast,
) -> LabelledResponse:
    """The oracle's verdicts. A response ends before EOS, which is not judged; nor are special tokens as branches."""
    count = len(response) - (response[-1:] == [tokenizer.eos_token_id])
    judged = list(response[:count])
    special = set(tokenizer.all_special_ids)
    branch_labels = [
        NO_LABEL if branch in special else int(branch_validity(problem, judged, position, branch, tokenizer))
        for position, branch in enumerate(branches[:count])
    ]
    return LabelledResponse(
        context=judge_prompt_ids(tokenizer, problem.question),
        response=judged,
        labels=[int(valid) for valid in token_validity(problem, judged, tokenizer)],
        branches=list(branches[:count]),
        branch_labels=branch_labels,
    )


def pack(batch: Sequence[LabelledResponse], *, pad_id: int) -> Packed:
    """Trunks padded to one width, then branches padded to one width."""
    trunks = pad_right([r.context + r.response for r in batch], pad_id)
    branches = pad_right([r.branches for r in batch], pad_id)
    trunk_labels = pad_right([[NO_LABEL] * len(r.context) + r.labels for r in batch], NO_LABEL)
    branch_labels = pad_right([r.branch_labels for r in batch], NO_LABEL)
    columns = torch.arange(trunks.shape[1])
    begins = torch.tensor([len(r.context) for r in batch])
    branch_positions = begins[:, None] + torch.arange(branches.shape[1])
    width = trunks.shape[1] + branches.shape[1]
    # Every token sees itself: a row of padding that saw nothing would be NaN.
    allowed = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)
    allowed[:, : len(columns), : len(columns)] = columns[:, None] >= columns
    allowed[:, len(columns) :, : len(columns)] = branch_positions[:, :, None] > columns
    return Packed(
        ids=torch.cat([trunks, branches], 1),
        positions=torch.cat([columns.expand(len(batch), -1), branch_positions], 1),
        allowed=allowed,
        labels=torch.cat([trunk_labels, branch_labels], 1),
    )


def reward_loss(model: RewardModel, batch: Sequence[LabelledResponse], *, pad_id: int) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over all labelled tokens, branches included."""
    packed = pack(batch, pad_id=pad_id)
    logits = model(packed.ids, positions=packed.positions, allowed=packed.allowed)
    judged = packed.labels != NO_LABEL
    return F.binary_cross_entropy_with_logits(logits[judged], packed.labels[judged].float())
