"""Whether a judge can read a policy's token ids as they are. Knows tokenizers only, no models."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError


def check_same_vocabulary(policy_tokenizer: PreTrainedTokenizerBase, judge_tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that every text id means the same to both: a judge is fed the policy's ids unchanged.

    Raises:
        ModelError: some ids differ; says how many, shows one and names the cure.
    """
    ignored = _ids_without_text(policy_tokenizer) | _ids_without_text(judge_tokenizer)
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


def _ids_without_text(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text: all that was added to the trained vocabulary.

    Added tokens count even if not flagged special: Qwen2.5 has `<tool_call>` and others that Qwen2
    lacks, and both are judged by the same models.
    """
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
