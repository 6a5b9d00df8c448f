"""A judge section of the config -> a judge. Imports a family's file only when it is asked for."""

from __future__ import annotations

from vcrd_ray.config import Judge as JudgeSection
from vcrd_ray.config import OracleJudgeSection
from vcrd_ray.judges import Judge
from vcrd_ray.judges.compatibility import check_same_vocabulary
from vcrd_ray.models import device_for, load_tokenizer, resolve_model, special_ids


def load_judge(section: JudgeSection, *, policy: str) -> Judge:
    """The configured judge, for token ids of the policy at `policy`.

    Raises:
        ModelError: the judge cannot be loaded, or its token ids mean something else than the policy's.
    """
    policy_tokenizer = load_tokenizer(resolve_model(policy))
    if isinstance(section, OracleJudgeSection):
        from vcrd_ray.judges.oracle import OracleJudge

        return OracleJudge(policy_tokenizer, confidence=section.confidence)
    from vcrd_ray.judges.value_head import ValueHeadJudge

    check_judge_tokenizer(section, policy=policy)
    return ValueHeadJudge.load(
        resolve_model(section.path),
        dtype=section.dtype,
        device=device_for(section.gpus_per_replica),
        special_ids=special_ids(policy_tokenizer),
        max_batch_tokens=section.max_batch_tokens,
    )


def check_judge_tokenizer(section: JudgeSection, *, policy: str) -> None:
    """Refuse a judge that reads other token ids than the policy writes; loads tokenizers only.

    Raises:
        ModelError: the vocabularies differ.
    """
    if not isinstance(section, OracleJudgeSection):
        judge = load_tokenizer(resolve_model(section.path))
        check_same_vocabulary(load_tokenizer(resolve_model(policy)), judge)
