"""TRL's distillation trainers on this project's rollout pairs: the peer of benchmarks and tests. Needs trl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vcrd_ray.types import RolloutPair

Peer = Literal["trl_gkd", "trl_distillation"]


def trl_trainer(
    peer: Peer,
    *,
    model: Any,
    teacher: Any,
    tokenizer: Any,
    pairs: Sequence[RolloutPair],
    folder: Path,
    callbacks: list[Any],
    **arguments: Any,
) -> Any:
    """A TRL trainer of forward KL on the pairs' teacher responses, in the order given and without generation.

    Args:
        model: PEFT model; `teacher` is a causal language model with the same vocabulary.
        folder: where TRL may write; nothing worth keeping.
        arguments: of transformers.TrainingArguments.
    """
    from datasets import Dataset

    common = {
        "output_dir": str(folder),
        "beta": 0.0,  # forward KL
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        # TRL's defaults are made for GPUs: bfloat16, activations computed twice.
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **arguments,
    }
    if peer == "trl_gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        rows: dict[str, list[Any]] = {
            "prompt": [""] * len(pairs),  # its collator asks for a text, but uses the ids where they are given
            "input_ids": [[*p.prompt_ids.tolist(), *p.teacher_ids.tolist()] for p in pairs],
            "completion_mask": [[0] * len(p.prompt_ids) + [1] * len(p.teacher_ids) for p in pairs],
        }
        config: Any = GKDConfig(lmbda=0.0, train_sampling_strategy="sequential", **common)
        kind: type[Any] = GKDTrainer
    else:
        from trl import DistillationConfig

        rows = {"prompt": [str(index) for index in range(len(pairs))]}
        config = DistillationConfig(shuffle_dataset=False, **common)
        kind = _off_policy(pairs)
    return kind(
        model=model,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def _off_policy(pairs: Sequence[RolloutPair]) -> type[Any]:
    """TRL's on-policy trainer with generation replaced by a look-up; its prompts are indices into `pairs`."""
    from trl import DistillationTrainer

    class OffPolicy(DistillationTrainer):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            self._asked = [pairs[int(index)] for index in prompts]
            return [pair.prompt_ids.tolist() for pair in self._asked], None, {}

        def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
            return [pair.teacher_ids.tolist() for pair in self._asked]

    return OffPolicy
