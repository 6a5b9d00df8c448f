"""The model that learns: loading, adapters, one forward to hidden states, export. Knows no loss, no optimizer, no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel

from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.errors import CheckpointError, ModelError, NotFiniteError
from vcrd_ray.models import generation_config
from vcrd_ray.models.batching import ResponseBatch
from vcrd_ray.models.causal_lm import not_its_own
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_tokenizer, resolve_model
from vcrd_ray.models.finite import first_not_finite
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.merging import CastLoss, base_names, cast_loss, plain_state
from vcrd_ray.models.output_head import check_plain_head
from vcrd_ray.runs.files import written_aside

_PROBE = (
    "Tom has 12 apples and gives 5 of them to Ann. How many apples does he have left? Tom had 12 apples. He gave away 5"
    " apples, so he has 12 - 5 = 7 apples left. The answer is 7."
)
"""What the written student is compared with the trained one on."""


class Student(nn.Module):
    """A causal language model whose forward gives the state behind each response position, or its logits.

    With adapters the base is frozen. In full fine-tuning the output head (and an embedding tied to it) is frozen too
    unless `train_head`, so that the loss can turn into gradients of states before the weights of the tokens are known.
    """

    def __init__(
        self, section: StudentSection, *, lora: LoraSection | None, train_head: bool, device: torch.device, seed: int
    ) -> None:
        super().__init__()
        self.directory = resolve_model(section.path)
        self.tokenizer = load_tokenizer(self.directory)
        torch.manual_seed(seed)  # adapters are drawn here; every rank must draw the same
        loaded = load_causal_lm(self.directory, dtype=section.dtype, device=device, trained=True)
        check_plain_head(loaded, section.path)
        model: nn.Module = loaded
        names = set(model.state_dict())
        if lora is not None:
            model = _with_adapters(loaded, lora, section.path)
        self.model = model
        self.has_adapter = lora is not None
        self.export_dtype: torch.dtype = getattr(torch, section.export_dtype or section.dtype)
        if set(base_names(self._causal()).values()) != names:
            raise ModelError(
                f"{section.path}: its tensors cannot be told from adapters by their names, so that what is trained could not be"
                " exported; set distill.lora to null"
            )
        self.frozen_head = not train_head
        if self.frozen_head:
            self._head_parameter().requires_grad_(False)
        if section.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self.device = device
        # A copy, because ZeRO-3 would cut the parameter itself in pieces. None when it is trained.
        self._head_copy = self._head_parameter().detach().clone() if self.frozen_head else None
        if not any(p.requires_grad for p in self.parameters()):
            raise ModelError(f"{section.path}: nothing of it is trainable; set lora, or train_head")

    def _causal(self) -> nn.Module:
        causal: nn.Module = self.model.get_base_model() if self.has_adapter else self.model  # type: ignore[operator]
        return causal

    def _head_parameter(self) -> nn.Parameter:
        head: nn.Parameter = self._causal().get_output_embeddings().weight  # type: ignore[operator, assignment, union-attr]
        return head

    @property
    def head(self) -> Float[torch.Tensor, "v d"]:
        """Output embedding for the fused loss: a frozen copy, or the live parameter when it is trained."""
        return self._head_parameter() if self._head_copy is None else self._head_copy

    def forward(self, batch: ResponseBatch, *, logits: bool = False) -> torch.Tensor:
        """Last hidden state after the final norm that predicts each token [N, d], or the logits there [N, V]."""
        causal = self._causal()
        backbone = causal.get_decoder()  # type: ignore[operator]
        states = backbone(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).last_hidden_state
        outputs: torch.Tensor = states[batch.token_sequence, batch.token_index]
        if logits:
            outputs = causal.get_output_embeddings()(outputs)  # type: ignore[operator]
        return outputs

    def export(self, directory: Path) -> CastLoss | None:
        """Write `directory/model` (plain Hugging Face, adapters merged) and, with adapters, `directory/adapter` (PEFT).

        Both are written aside and renamed. All ranks of a ZeRO-3 group must have gathered the parameters.

        Returns:
            What the type of the written weights takes away; None where it takes nothing, or where it was not measured.

        Raises:
            CheckpointError: the disk refused.
            NotFiniteError: a tensor holds NaN or an infinity; nothing is written.
        """
        state = self._plain_state(self.export_dtype)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            if self.has_adapter:
                self._save(self.model, directory / "adapter", tokenizer=False)
            self._save(self._causal(), directory / "model", tokenizer=True, state=state)
        except OSError as error:
            raise CheckpointError(
                f"{directory}: the student could not be written ({error}); free some space"
            ) from error
        return self._cast_loss(state)

    def write_version(self, directory: Path, *, merged: bool) -> None:
        """Write into an existing directory what a rollout actor needs: the adapter, or the model with what was learnt.

        All ranks of a ZeRO-3 group must have gathered the parameters.

        Raises:
            CheckpointError: the disk refused.
            NotFiniteError: a tensor holds NaN or an infinity; nothing is written.
        """
        try:
            if self.has_adapter and not merged:
                _refuse_not_finite((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
                _save_pretrained(self.model, directory)
            else:
                _save_pretrained(self._causal(), directory, self._plain_state(next(self.parameters()).dtype))
        except OSError as error:
            raise CheckpointError(
                f"{directory}: this version of the student could not be written ({error}); free some space"
            ) from error

    def _plain_state(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        state = plain_state(self._causal(), dtype)
        _refuse_not_finite(state.items())
        return state

    def _cast_loss(self, state: dict[str, torch.Tensor]) -> CastLoss | None:
        # ZeRO-3 forwards are for all ranks together, and only one writes.
        cut = any(hasattr(p, "ds_id") for p in self.model.parameters())
        if not self.has_adapter or self.export_dtype == torch.float32 or cut:
            return None
        probe = self.tokenizer(_PROBE).input_ids
        try:
            return cast_loss(self.model, self._causal(), state, text_ids=probe, dtype=self.export_dtype)
        except torch.OutOfMemoryError:
            return None

    def _save(
        self, model: nn.Module, final: Path, *, tokenizer: bool, state: dict[str, torch.Tensor] | None = None
    ) -> None:
        with written_aside(final, one_writer=True) as temporary:
            _save_pretrained(model, temporary, state)
            if state is not None:
                _say_dtype(temporary, self.export_dtype)
                _check_loads(temporary, self.directory)
            if tokenizer:
                self.tokenizer.save_pretrained(temporary)
                generation_config.copy(self.directory, temporary)


def _with_adapters(model: PreTrainedModel, lora: LoraSection, path: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    try:
        adapted: nn.Module = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            # Adapters in float32 beside a bfloat16 base would make the optimizer's parameter groups of mixed type.
            autocast_adapter_dtype=False,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        # Around parameters, as those of fused experts, adapters have no dropout.
        cure = "lora.dropout to 0" if lora.dropout and "dropout" in str(error) else "lora to null"
        raise ModelError(f"{path}: adapters cannot be put on it ({error}); set distill.{cure}") from error
    return adapted


def _save_pretrained(model: nn.Module, directory: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    # Accelerate asks whether the model is an engine of DeepSpeed, and imports it where nobody has: seconds, for a no.
    with hidden("deepspeed"):
        # It takes tied tensors out of what it is given.
        model.save_pretrained(directory, state_dict=None if state is None else dict(state))  # type: ignore[operator]


def _refuse_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    name = first_not_finite(tensors)
    if name is not None:
        raise NotFiniteError(
            f"the student's {name} holds NaN or an infinity, and is not written; go on from an earlier checkpoint with a lower"
            " learning rate"
        )


def _say_dtype(directory: Path, dtype: torch.dtype) -> None:
    """In the configuration of a written model stands the type of the one in memory."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2) + "\n", encoding="utf-8"
    )


def _check_loads(directory: Path, base: Path) -> None:
    """Refuse a written model with other tensors than its configuration asks for, but for what its base lacks or has too."""
    wrong = sorted(not_its_own(directory) - not_its_own(base))
    if wrong:
        raise CheckpointError(
            f"{directory}: {len(wrong)} tensors are missing or foreign in what was written, first {wrong[0]}; this architecture"
            " cannot be exported: train another student, or report it"
        )
