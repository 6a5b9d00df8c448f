"""The model that learns: loading, adapters, one forward to hidden states, export. Knows no loss, no optimizer, no Ray."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import nn

from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.errors import CheckpointError, ModelError
from vcrd_ray.models import generation_config
from vcrd_ray.models.batching import ResponseBatch
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_tokenizer, resolve_model
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.output_head import check_plain_head
from vcrd_ray.runs.files import written_aside


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
        model = load_causal_lm(self.directory, dtype=section.dtype, device=device, trained=True)
        check_plain_head(model, section.path)
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(  # type: ignore[assignment]
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
        self.model = model
        self.has_adapter = lora is not None
        self.frozen_head = not train_head
        if self.frozen_head:
            self._head_parameter().requires_grad_(False)
        if section.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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

    def export(self, directory: Path) -> None:
        """Write `directory/model` (plain Hugging Face, adapters merged) and, with adapters, `directory/adapter` (PEFT).

        Both are written aside and renamed. All ranks of a ZeRO-3 group must have gathered the parameters.

        Raises:
            CheckpointError: the disk refused.
        """
        directory.mkdir(parents=True, exist_ok=True)
        try:
            if self.has_adapter:
                self._save(self.model, directory / "adapter", tokenizer=False)
                self.model.merge_adapter()  # type: ignore[operator]
                try:
                    self._save(self._causal(), directory / "model", tokenizer=True, state=self._merged_state())
                finally:
                    self.model.unmerge_adapter()  # type: ignore[operator]
            else:
                self._save(self.model, directory / "model", tokenizer=True)
        except OSError as error:
            raise CheckpointError(
                f"{directory}: the student could not be written ({error}); free some space"
            ) from error

    def write_version(self, directory: Path, *, merged: bool) -> None:
        """Write into an existing directory what a rollout actor needs: the adapter, or the model with what was learnt.

        All ranks of a ZeRO-3 group must have gathered the parameters.

        Raises:
            CheckpointError: the disk refused.
        """
        try:
            if not (self.has_adapter and merged):
                _save_pretrained(self.model, directory)
            else:
                self.model.merge_adapter()  # type: ignore[operator]
                try:
                    _save_pretrained(self._causal(), directory, self._merged_state())
                finally:
                    self.model.unmerge_adapter()  # type: ignore[operator]
        except OSError as error:
            raise CheckpointError(
                f"{directory}: this version of the student could not be written ({error}); free some space"
            ) from error

    def _merged_state(self) -> dict[str, torch.Tensor]:
        # After merge_adapter the base layers hold the sum; their PEFT names are mapped back, adapters left out.
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self._causal().state_dict().items()
            if ".lora_" not in name
        }

    def _save(
        self, model: nn.Module, final: Path, *, tokenizer: bool, state: dict[str, torch.Tensor] | None = None
    ) -> None:
        with written_aside(final, one_writer=True) as temporary:
            _save_pretrained(model, temporary, state)
            if tokenizer:
                self.tokenizer.save_pretrained(temporary)
                generation_config.copy(self.directory, temporary)


def _save_pretrained(model: nn.Module, directory: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    # Accelerate asks whether the model is an engine of DeepSpeed, and imports it where nobody has: seconds, for a no.
    with hidden("deepspeed"):
        model.save_pretrained(directory, state_dict=state)  # type: ignore[operator]
