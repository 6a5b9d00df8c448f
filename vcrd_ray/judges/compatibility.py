"""Whether a judge can read a policy's token ids as they are. Knows tokenizers only, no models."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.models.checkpoint_files import special_ids


def check_same_vocabulary(policy_tokenizer: PreTrainedTokenizerBase, judge_tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that every text id means the same to both: a judge is fed the policy's ids unchanged.

    Raises:
        ModelError: some ids differ; says how many, shows one and names the cure.
    """
    ignored = special_ids(policy_tokenizer) | special_ids(judge_tokenizer)
    policy = {i: token for token, i in policy_tokenizer.get_vocab().items() if i not in ignored}
    judge = {i: token for token, i in judge_tokenizer.get_vocab().items() if i not in ignored}
    differing = sorted(i for i in policy.keys() | judge.keys() if policy.get(i) != judge.get(i))
    if not differing:
        return
    example = differing[0]

    def meaning(vocabulary: dict[int, str]) -> str:
        return repr(vocabulary[example]) if example in vocabulary else "absent"

    raise ModelError(
        f"the judge's tokenizer does not fit the policy's: {len(differing)} token ids differ, for"
        f" example id {example} is {meaning(policy)} for the policy and {meaning(judge)} for the"
        " judge; use a judge of the policy's tokenizer family, or the weighting `teacher_prob`,"
        " which needs no judge"
    )
