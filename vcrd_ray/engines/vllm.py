"""The engine on vLLM: continuous batching, paged memory, tensor parallelism. Knows nothing of Ray, judges or training.

One process serves one use, because vLLM builds an engine either to generate or to pool: `generate` samples responses,
`annotate` gives the hidden states after the final norm at every token of given ones, from which distributions and
proposals are made exactly as the Hugging Face engine makes them. (Prompt log-probabilities, vLLM's other way to look at
given text, would hold [tokens, k] Python objects and no exact proposals.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.models import VllmSection
from vcrd_ray.engines import Engine, Use, VersionedEngine
from vcrd_ray.engines.annotation import teacher_signals
from vcrd_ray.engines.lengths import check_lengths
from vcrd_ray.errors import ModelError
from vcrd_ray.method.fused import head_logits
from vcrd_ray.method.sampling import stable_hash
from vcrd_ray.models.causal_lm import check_checkpoint
from vcrd_ray.models.checkpoint_files import load_head, load_tokenizer, model_fingerprint, resolve_model
from vcrd_ray.models.generation_config import stop_ids
from vcrd_ray.types import FloatArray, IntArray, PairBatch, Prompt, Rollout, TeacherRequest, TeacherSignals

_SELF_TEST_KL = {"float32": 1e-6, "bfloat16": 1e-2}
"""Largest divergence, in nats a token, between two answers about one text that is still rounding."""


class VLLMEngine(Engine, VersionedEngine):
    """One model in one vLLM engine of this process."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str,
        use: Use,
        section: VllmSection,
        device: torch.device,
        lora_rank: int | None = None,
    ) -> None:
        """Start the engine.

        Args:
            lora_rank: rank of the adapters that `load_version` will be given; None: none will come.

        Raises:
            ModelError: the checkpoint cannot be used, vLLM is not installed, or its states are not those of one model.
        """
        directory = resolve_model(path)
        self.fingerprint = model_fingerprint(directory)
        self._use = use
        self._tokenizer = load_tokenizer(directory)
        self._vocab_size = len(self._tokenizer)
        self.stop_ids = stop_ids(directory, self._tokenizer)
        self._device = device
        self._adapter: Any = None
        # vLLM gives states and no logits to compare them with.
        check_checkpoint(directory, plain_head=use == "annotate", by_transformers=False)
        self._llm = _start(
            str(directory), dtype=dtype, use=use, section=section, on_cpu=device.type == "cpu", lora_rank=lora_rank
        )
        self._max_length = int(self._llm.llm_engine.model_config.max_model_len)
        if use == "annotate":
            self._head = load_head(directory, dtype=dtype).to(device)[: self._vocab_size]
            self._self_test(_SELF_TEST_KL[dtype])

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSection, *, seed: int) -> list[Rollout]:
        """vLLM draws with generators of its own: other tokens than the Hugging Face engine's.

        Raises:
            DataError: a prompt with the longest response does not fit; never cut without a word.
            ModelError: a token that the tokenizer does not know was drawn.
        """
        self._check_use("generate")
        from vllm import SamplingParams

        check_lengths(prompts, sampling, max_length=self._max_length, setting="teacher.vllm.max_model_len")
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=None if sampling.temperature == 0 else stable_hash(f"{seed}:{prompt.id}") >> 1,
                stop_token_ids=list(self.stop_ids),
                logprobs=0,  # of the drawn token only, under the untempered model
                flat_logprobs=True,
                detokenize=False,
            )
            for prompt in prompts
        ]
        inputs = [{"prompt_token_ids": prompt.ids.tolist()} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False, lora_request=self._adapter)
        return [self._rollout(prompt.id, output.outputs[0]) for prompt, output in zip(prompts, outputs, strict=True)]

    def annotate(self, batch: PairBatch, request: TeacherRequest) -> TeacherSignals:
        self._check_use("annotate")
        start = time.perf_counter()
        both_sides = [
            *((p.prompt_ids, p.teacher_ids) for p in batch.pairs),
            *((p.prompt_ids, p.student_ids) for p in batch.pairs),
        ]
        asked = [(prompt, response) for prompt, response in both_sides if len(response)]
        states = self._states([np.concatenate(both) for both in asked])
        # The state at a token predicts the next one.
        states_of = [h[len(prompt) - 1 : -1] for (prompt, _), h in zip(asked, states, strict=True)]
        signals = teacher_signals(batch, torch.cat(states_of).to(self._device), self._head, request)
        return replace(signals, seconds=time.perf_counter() - start)

    def load_version(self, directory: Path, kind: Literal["adapter", "weights"]) -> None:
        self._check_use("generate")
        if kind == "adapter":
            from vllm.lora.request import LoRARequest

            # One name for all versions: no adapter of an earlier one stays in memory.
            named = {"lora_name": "student", "lora_int_id": 1, "lora_path": str(directory)}
            self._llm.llm_engine.add_lora(LoRARequest(**named, load_inplace=True))
            self._adapter = LoRARequest(**named)
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        # What is kept of earlier texts was computed with other weights.
        if not self._llm.reset_prefix_cache():
            raise ModelError(
                "vLLM did not give up its prefix cache, which holds states of earlier weights; report this"
            )

    def logprobs(self, prompt: IntArray, response: IntArray) -> FloatArray:
        """For short texts: vLLM gives a Python object for each token."""
        self._check_use("generate")
        from vllm import SamplingParams

        text = np.concatenate([prompt, response]).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        (output,) = self._llm.generate([{"prompt_token_ids": text}], params, use_tqdm=False, lora_request=self._adapter)
        asked = range(len(prompt), len(text))
        return np.asarray([output.prompt_logprobs[i][text[i]].logprob for i in asked], dtype=np.float32)

    def _rollout(self, prompt_id: str, output: Any) -> Rollout:
        ids = np.asarray(output.token_ids, dtype=np.int32)
        if ids.max(initial=0) >= self._vocab_size:
            raise ModelError(
                f"prompt {prompt_id!r}: the model drew token {int(ids.max())}, a padding row of its embedding beyond the"
                f" tokenizer's {self._vocab_size} tokens; use a checkpoint whose padding rows are not drawn, or engine hf"
            )
        return Rollout(
            prompt_id=prompt_id,
            ids=ids,
            logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),
            finish_reason="stop" if output.finish_reason == "stop" else "length",
        )

    def _states(self, texts: Sequence[IntArray]) -> list[Tensor]:
        """Final states of each text. [texts] of [tokens, d]"""
        inputs = [{"prompt_token_ids": ids.tolist()} for ids in texts]
        outputs = self._llm.encode(inputs, pooling_task="token_embed", use_tqdm=False)
        states = [output.outputs.data for output in outputs]
        for ids, hidden in zip(texts, states, strict=True):
            if len(hidden) != len(ids):
                raise ModelError(
                    f"vLLM gave {len(hidden)} states for {len(ids)} tokens; use teacher.engine hf, or report this"
                )
        return states

    def _self_test(self, tolerance: float) -> None:
        """The same text alone, again, and beside another must give the same distributions: else nothing can be learnt."""
        rng = np.random.default_rng(0)
        text, other = (rng.integers(0, self._vocab_size, size=n).astype(np.int32) for n in (24, 17))
        (first,), (again, _) = self._states([text]), self._states([text, other])
        logp, others = (
            torch.log_softmax(
                head_logits(h.to(self._device), self._head, vocab_size=self._vocab_size, dtype=torch.float32), -1
            )
            for h in (first, again)
        )
        divergence = float((logp.exp() * (logp - others)).sum(-1).max())
        if not divergence <= tolerance:
            raise ModelError(
                f"vLLM's teacher differs from itself by {divergence:.3g} nats on one text asked twice, more than {tolerance}:"
                " set teacher.dtype float32, or teacher.engine hf"
            )

    def _check_use(self, use: Use) -> None:
        if use != self._use:
            raise ModelError(f"this vLLM engine was started to {self._use}; start another process to {use}")


def _start(path: str, *, dtype: str, use: Use, section: VllmSection, on_cpu: bool, lora_rank: int | None) -> Any:
    # In this process, so that its death is seen; on a CPU its default would bind all threads to one core.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(section.kv_cache_gib)
    # Its warnings are about what is chosen here on purpose.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM
        from vllm.config import PoolerConfig
        from vllm.config.lora import MaxLoRARanks
    except ImportError as error:
        raise ModelError(
            f"engine vllm needs vLLM, which cannot be imported ({error}): install the extra gpu or cpu, or set"
            " engine hf"
        ) from error
    options: dict[str, Any] = {
        "dtype": dtype,
        # That of the checkpoint would stop and sample otherwise than the configuration says.
        "generation_config": "vllm",
        "enforce_eager": section.enforce_eager,
        "gpu_memory_utilization": section.gpu_memory_utilization,
        "tensor_parallel_size": section.tensor_parallel,
        "max_model_len": section.max_model_len,
        "max_num_batched_tokens": section.max_num_batched_tokens,
    }
    if on_cpu:
        # With a seed for each request vLLM 0.32 fails on a CPU where a pass ends inside a prompt.
        options["enable_chunked_prefill"] = False
    if lora_rank is not None:
        ranks = get_args(MaxLoRARanks)
        if lora_rank > max(ranks):
            raise ModelError(
                f"vLLM serves adapters of rank {max(ranks)} at most, not {lora_rank}: set rollouts.refresh.sync to merged"
            )
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": min(r for r in ranks if r >= lora_rank)}
    if use == "generate":
        # Token ids in, token ids out: it needs no tokenizer.
        return LLM(path, skip_tokenizer_init=True, **options)
    return LLM(
        path,
        runner="pooling",
        convert="embed",
        pooler_config=PoolerConfig(task="token_embed", tok_pooling_type="ALL", use_activation=False),
        # Cached tokens would have no states.
        enable_prefix_caching=False,
        **options,
    )
