"""What a checkpoint's generation_config.json is taken for: the ids that end a response, and nothing else.

All else in it (penalties, temperatures, lengths, suppressed tokens) would be a second, silent configuration of sampling, which
transformers obeys and vLLM reads in part. What a run samples with is what its own configuration says.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vcrd_ray.errors import ModelError
from vcrd_ray.models.weight_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "generation_config.json"


def stop_ids(directory: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids after which a response has ended, ascending: the tokenizer's end of sequence, and those that the model names itself.

    The model's are `eos_token_id` of generation_config.json, or of config.json where there is no such file: an id or a list.

    Raises:
        ModelError: the file is no JSON object, or what stands there is no id.
    """
    file = directory / FILE
    if not file.is_file():
        file = directory / "config.json"
    named = read_json(file).get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ModelError(
            f"{file}: eos_token_id {named!r} is neither an id nor a list of ids; correct it or take it out"
        )
    # Ids that the tokenizer lacks are never drawn.
    own = {i for i in ids if 0 <= i < len(tokenizer)}
    return tuple(sorted(own | {int(tokenizer.eos_token_id)}))  # type: ignore[arg-type]


def forget(model: PreTrainedModel) -> None:
    """Let neither sampling nor saving see what the checkpoint's file said: transformers would refuse to save some of it."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()


def copy(source: Path, target: Path) -> None:
    """Leave a checkpoint's file, byte by byte, beside what was made of that checkpoint; none where it has none.

    Raises:
        OSError: the disk refused.
    """
    (target / FILE).unlink(missing_ok=True)
    if (source / FILE).is_file():
        shutil.copyfile(source / FILE, target / FILE)
