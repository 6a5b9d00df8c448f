"""Whether models can be loaded where one stands, and whether their tokenizers fit. Reads configurations, headers of weights
and tokenizers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vcrd_ray.config import Config
from vcrd_ray.config.models import ModelJudge
from vcrd_ray.errors import ModelError
from vcrd_ray.planning.health import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def role_paths(config: Config) -> dict[str, str]:
    """Role -> the model that its actors load."""
    paths = {"student": config.student.path, "teacher": config.teacher.path, "rollout": config.student.path}
    return paths | ({"judge": config.judge.path} if isinstance(config.judge, ModelJudge) else {})


def is_plain(config: Config, role: str) -> bool | None:
    """Whether a role's model must have logits that are no more than its head times its states; None: it is a judge."""
    return {"student": True, "teacher": config.distill.objective.needs_teacher, "rollout": False}.get(role)


def model_here(path: str, plain_head: bool | None, by_transformers: bool) -> tuple[str | None, str]:
    """(Fingerprint of the tokenizer, "") of a model that can be loaded here, or (None, why not).

    Args:
        path: of the model.
        plain_head: of `is_plain`.
        by_transformers: and not by vLLM, which reads other formats.
    """
    from transformers import AutoConfig

    from vcrd_ray.models.causal_lm import check_checkpoint
    from vcrd_ray.models.checkpoint_files import is_on_hub, resolve_model, tokenizer_fingerprint

    try:
        AutoConfig.from_pretrained(path if is_on_hub(path) else str(resolve_model(path)), trust_remote_code=False)
        if plain_head is not None and not is_on_hub(path):
            check_checkpoint(resolve_model(path), plain_head=plain_head, by_transformers=by_transformers)
        return tokenizer_fingerprint(_tokenizer_of(path)), ""
    except (ModelError, OSError, ValueError) as error:
        return None, str(error).strip().splitlines()[0]


def check_loading(role: str, path: str, answers: Mapping[str, tuple[str | None, str]]) -> list[Finding]:
    """What `model_here` answered about a role's model, by the name of the node."""
    found = []
    for node, (_, why) in answers.items():
        if why:
            what = f"{role} {path} cannot be loaded on {node}: {why}"
            cure = "put it on storage that all nodes see, or give the nodes the network and HF_TOKEN"
            found.append(Finding(severity="error", check="models", what=what, cure=cure))
    fingerprints = {fingerprint for fingerprint, _ in answers.values() if fingerprint is not None}
    if len(fingerprints) > 1:
        what = f"{role} {path}: nodes have different tokenizers"
        found.append(Finding(severity="error", check="models", what=what, cure="copy one folder to all nodes"))
    return found


def check_tokenizers(config: Config) -> list[Finding]:
    """Teacher's and judge's vocabularies against the student's, as far as the run compares them."""
    from vcrd_ray.models.vocabulary import check_same_vocabulary

    objective, judge = config.distill.objective, config.judge
    others = {"teacher": config.teacher.path} if objective.needs_teacher else {}
    if objective.needs_judge and isinstance(judge, ModelJudge) and judge.scores == "token":
        others["judge"] = judge.path
    found = []
    for role, path in others.items():
        try:
            student = _tokenizer_of(config.student.path)
            occurring = occurring_ids(config, student) if role == "teacher" else ()
            check_same_vocabulary(student, _tokenizer_of(path), role=role, occurring=occurring)
        except ModelError as error:
            cure = f"choose a {role} of the student's tokenizer family"
            found.append(Finding(severity="error", check="models", what=f"{role} {path}: {error}", cure=cure))
    return found


def occurring_ids(config: Config, student: PreTrainedTokenizerBase) -> set[int]:
    """Special ids that a teacher is sent, in prompts by the student's template and where responses end; and some of text."""
    from vcrd_ray.data.problems import prompt_ids
    from vcrd_ray.models.checkpoint_files import is_on_hub, resolve_model
    from vcrd_ray.models.generation_config import stop_ids

    asked = set(prompt_ids("How many?", student, config.prompt).tolist())
    return asked if is_on_hub(config.student.path) else asked | {*stop_ids(resolve_model(config.student.path), student)}


def _tokenizer_of(path: str) -> Any:
    """The tokenizer of a model; of one on the hub, only its files are fetched."""
    from vcrd_ray.models.checkpoint_files import is_on_hub, load_tokenizer, resolve_model

    if not is_on_hub(path):
        return load_tokenizer(resolve_model(path))
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: its tokenizer is not here and the hub did not give it ({type(error).__name__}); check the spelling,"
            " the network and HF_TOKEN"
        ) from error
