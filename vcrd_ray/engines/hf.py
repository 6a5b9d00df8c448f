"""The engine on Hugging Face transformers: runs wherever torch runs. Knows nothing of Ray, judges or training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.engines import Engine, Use, VersionedEngine
from vcrd_ray.engines.annotation import teacher_signals
from vcrd_ray.engines.lengths import check_lengths
from vcrd_ray.errors import ModelError, NotFiniteError
from vcrd_ray.method.sampling import sample_rows, stable_hash, uniforms
from vcrd_ray.models.batching import pad_left, response_batch
from vcrd_ray.models.causal_lm import max_positions
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_tokenizer, model_fingerprint, pad_id, resolve_model
from vcrd_ray.models.generation_config import stop_ids
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.output_head import check_plain_head
from vcrd_ray.models.packing import batches_within_budget
from vcrd_ray.types import FloatArray, IntArray, PairBatch, Prompt, Rollout, TeacherRequest, TeacherSignals

with hidden("sklearn"):
    from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper


class HFEngine(Engine, VersionedEngine):
    """One causal language model in one process."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str,
        device: torch.device,
        max_batch_tokens: int | None = None,
        use: Use | None = None,
    ) -> None:
        """Load the model.

        Args:
            max_batch_tokens: tokens that are generated at once, padding and longest responses included; None: a whole call.
            use: what it will be asked for; None: anything.

        Raises:
            ModelError: the model cannot be loaded, or is to annotate and its logits are more than its head times its states.
        """
        directory = resolve_model(path)
        self.fingerprint = model_fingerprint(directory)
        self._tokenizer = load_tokenizer(directory)
        self.stop_ids = stop_ids(directory, self._tokenizer)
        self._model: PreTrainedModel = load_causal_lm(directory, dtype=dtype, device=device)
        self._dtype = dtype
        self._max_batch_tokens = max_batch_tokens
        self._device = device
        self._vocab_size = len(self._tokenizer)
        self._max_length = max_positions(self._model.config)
        if use != "generate":
            check_plain_head(self._model, path)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection, *, seed: int) -> list[Rollout]:
        """Prompts of like lengths share a batch."""
        check_lengths(prompts, sampling, max_length=self._max_length, setting="its positions")
        found: dict[int, Rollout] = {}
        for batch in self._batches(prompts, sampling):
            made = self._generate([prompts[i] for i in batch], sampling, seed=seed)
            found.update(zip(batch, made, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _batches(self, prompts: Sequence[Prompt], sampling: SamplingSection) -> list[list[int]]:
        if self._max_batch_tokens is None:
            return [list(range(len(prompts)))] if prompts else []
        longest = [len(p.ids) + sampling.max_new_tokens for p in prompts]
        return batches_within_budget(longest, self._max_batch_tokens)

    def _generate(self, prompts: Sequence[Prompt], sampling: SamplingSection, *, seed: int) -> list[Rollout]:
        padding = pad_id(self._tokenizer)
        ids, mask = pad_left([p.ids for p in prompts], padding)
        sampler = _SeededSampler([p.id for p in prompts], sampling, seed=seed, vocab_size=self._vocab_size)
        output = self._model.generate(  # type: ignore[operator]
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self.stop_ids),
            pad_token_id=padding,
            logits_processor=LogitsProcessorList([sampler]),
        )
        responses = output[:, ids.shape[1] :].cpu().numpy().astype(np.int32)
        logprobs = torch.stack(sampler.logprobs, dim=1).float().cpu().numpy()
        return [_cut_rollout(prompt.id, responses[i], logprobs[i], self.stop_ids) for i, prompt in enumerate(prompts)]

    @torch.inference_mode()
    def annotate(self, batch: PairBatch, request: TeacherRequest) -> TeacherSignals:
        """Proposals are drawn at temperature 1 from the exact distribution."""
        start = time.perf_counter()
        inputs = response_batch(batch.pairs, pad_id(self._tokenizer), self._device)
        backbone = self._model.get_decoder()
        states = backbone(input_ids=inputs.ids, use_cache=False).last_hidden_state
        hidden = states[inputs.token_sequence, inputs.token_index]
        head = self._model.get_output_embeddings().weight[: self._vocab_size]
        return replace(teacher_signals(batch, hidden, head, request), seconds=time.perf_counter() - start)

    def load_version(self, directory: Path, kind: Literal["adapter", "weights"]) -> None:
        # Making modules draws random numbers, which a trainer in this process would miss.
        with torch.random.fork_rng(devices=[]):
            if kind == "weights":
                self._model = load_causal_lm(directory, dtype=self._dtype, device=self._device)
            else:
                self._load_adapter(str(directory))

    def _load_adapter(self, directory: str) -> None:
        from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

        if not isinstance(self._model, PeftModel):
            self._model = PeftModel.from_pretrained(self._model, directory, autocast_adapter_dtype=False).eval()
            return
        found = set_peft_model_state_dict(self._model, load_peft_weights(directory, device=str(self._device)))
        if found.unexpected_keys:
            raise ModelError(
                f"{directory}: the adapter has no place for {found.unexpected_keys[0]}; is it of another run?"
            )

    @torch.inference_mode()
    def logprobs(self, prompt: IntArray, response: IntArray) -> FloatArray:
        ids = torch.from_numpy(np.concatenate([prompt, response])).long().to(self._device)[None]
        logits = self._model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        found = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        return found.cpu().numpy()


class _SeededSampler(LogitsProcessor):  # type: ignore[misc]
    """Draws each token itself, from numbers keyed by (seed, prompt id, position), and leaves `generate` no choice.

    `generate` draws from one global stream, so that a response would depend on its batch and on restarts.
    """

    def __init__(self, prompt_ids: Sequence[str], sampling: SamplingSection, *, seed: int, vocab_size: int) -> None:
        self._prompt_ids = prompt_ids
        self._keys = np.array([stable_hash(i) for i in prompt_ids], dtype=np.uint64)
        self._greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if not self._greedy and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._seed = seed
        self._vocab_size = vocab_size
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # Rows beyond the tokenizer are padding of the embedding matrix: no distribution may include them.
        logits = scores[:, : self._vocab_size].float()
        logp = torch.log_softmax(logits, dim=-1)
        if self._greedy:
            chosen = logits.argmax(dim=-1)
        else:
            warped = torch.log_softmax(self._warpers(input_ids, logits), dim=-1)  # type: ignore[arg-type]
            uniform = uniforms(
                seed=self._seed,
                stream="rollout",
                update=0,
                rollout_keys=self._keys,
                positions=np.full(len(self._keys), len(self.logprobs), dtype=np.int64),
            )
            chosen = sample_rows(warped, torch.from_numpy(uniform).to(scores.device))
        found = logp.gather(1, chosen.clamp(min=0)[:, None])[:, 0]
        # A logit that is NaN or +inf makes all log-probabilities of its row NaN. `generate` waits for each token anyway.
        good = torch.isfinite(found) & (chosen >= 0)
        if not good.all():
            row = int((~good).nonzero()[0, 0])
            raise NotFiniteError(
                f"the logits of token {len(self.logprobs)} of prompt {self._prompt_ids[row]!r} are NaN or infinite: nothing can"
                " be sampled from them; check this model's checkpoint, or load it in another dtype"
            )
        self.logprobs.append(found)
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, chosen[:, None], 0.0)  # type: ignore[return-value]


def _cut_rollout(prompt_id: str, ids: IntArray, logprobs: np.ndarray, stop_ids: tuple[int, ...]) -> Rollout:
    """Cut padding behind the token that ended it, which is kept."""
    ends = np.flatnonzero(np.isin(ids, stop_ids))
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return Rollout(
        prompt_id=prompt_id,
        ids=ids[:length],
        logprobs=logprobs[:length].astype(np.float32),
        finish_reason="stop" if len(ends) else "length",
    )
