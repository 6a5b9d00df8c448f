"""A judge section of the config -> a judge. Imports a family's file only when it is asked for."""

from __future__ import annotations

from typing import Any

from vcrd_ray.config.models import (
    ImplicitJudgeSection,
    ModelJudge,
    OracleJudgeSection,
    QwenPrmJudgeSection,
    StepTagsJudgeSection,
    ValueHeadJudgeSection,
)
from vcrd_ray.config.models import Judge as JudgeSection
from vcrd_ray.judges import Judge
from vcrd_ray.models.causal_lm import check_architecture, read_causal_config
from vcrd_ray.models.checkpoint_files import device_for, load_tokenizer, resolve_model, special_ids
from vcrd_ray.models.vocabulary import check_same_vocabulary
from vcrd_ray.models.weight_files import read_header, weight_files


def load_judge(section: JudgeSection, *, policy: str) -> Judge:
    """The configured judge, for token ids of the policy at `policy`; calibrated where the section says so.

    Raises:
        ModelError: the judge cannot be loaded, or its token ids mean something else than the policy's.
    """
    judge = _load(section, policy)
    if section.calibration is None:
        return judge
    from vcrd_ray.judges.calibrated import CalibratedJudge, read_calibration

    return CalibratedJudge(
        judge, read_calibration(section.calibration), tokenizer=load_tokenizer(resolve_model(policy))
    )


def check_judge(section: JudgeSection, *, policy: str) -> None:
    """Refuse a judge that reads other token ids than the policy writes, or whose files are damaged; reads no weights.

    Raises:
        ModelError: the vocabularies differ, or the judge is none.
    """
    if not isinstance(section, ModelJudge):
        return
    directory = resolve_model(section.path)
    for file in weight_files(directory):
        read_header(file)
    judge = load_tokenizer(directory, pads=False)
    # A judge of whole steps is given text.
    if section.scores == "token":
        check_same_vocabulary(load_tokenizer(resolve_model(policy)), judge, role="judge")
    language_models = [section.path] if isinstance(section, ImplicitJudgeSection | StepTagsJudgeSection) else []
    if isinstance(section, ImplicitJudgeSection):
        language_models.append(section.reference)
    for path in language_models:
        directory = resolve_model(path)
        check_architecture(directory, read_causal_config(directory), plain_head=True)


def _load(section: JudgeSection, policy: str) -> Judge:
    tokenizer = load_tokenizer(resolve_model(policy))
    if isinstance(section, OracleJudgeSection):
        from vcrd_ray.judges.oracle import OracleJudge

        return OracleJudge(tokenizer, confidence=section.confidence)
    check_judge(section, policy=policy)
    device = device_for(section.gpus_per_replica)
    common: dict[str, Any] = {"dtype": section.dtype, "device": device, "max_batch_tokens": section.max_batch_tokens}
    path, special = resolve_model(section.path), special_ids(tokenizer)
    match section:
        case ValueHeadJudgeSection():
            from vcrd_ray.judges.value_head import load_value_head_judge

            return load_value_head_judge(path, special_ids=special, attention=section.attention, **common)
        case QwenPrmJudgeSection():
            from vcrd_ray.judges.qwen_prm import load_qwen_prm_judge

            return load_qwen_prm_judge(
                path,
                separator=section.separator,
                system=section.system,
                policy_tokenizer=tokenizer,
                attention=section.attention,
                **common,
            )
        case ImplicitJudgeSection():
            from vcrd_ray.judges.implicit import load_implicit_judge

            reference = resolve_model(section.reference)
            return load_implicit_judge(path, reference=reference, beta=section.beta, **common)
        case StepTagsJudgeSection():
            from vcrd_ray.judges.step_tags import load_step_tags_judge

            return load_step_tags_judge(
                path,
                template=section.template,
                good=section.good,
                bad=section.bad,
                step_tag=section.step_tag,
                policy_tokenizer=tokenizer,
                **common,
            )
