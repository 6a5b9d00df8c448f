"""Supervised fine-tuning on gold responses: the loop of one rank. Knows no judge, no teacher, no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vcrd_ray.config.base import ROUNDING
from vcrd_ray.config.stages import SftSection
from vcrd_ray.data.problems import Example
from vcrd_ray.errors import ModelError
from vcrd_ray.models.backend import Backend
from vcrd_ray.models.batching import batch_responses, packed_responses
from vcrd_ray.models.checkpoint_files import pad_id
from vcrd_ray.models.finite import check_update
from vcrd_ray.models.student import Student
from vcrd_ray.training.data_order import DataOrder
from vcrd_ray.training.trainer import Loop
from vcrd_ray.types import UpdateReport


class FineTuner(Loop):
    """Cross-entropy on response tokens only, averaged over all response tokens of the update."""

    def __init__(
        self, *, backend: Backend, examples: Sequence[Example], section: SftSection, seed: int, vocab_size: int
    ) -> None:
        self._backend = backend
        self._examples = examples
        self._section = section
        self._vocab_size = vocab_size
        self._padding = pad_id(backend.student.tokenizer)
        self.order = DataOrder(
            num_examples=len(examples),
            batch_size=section.batch_size,
            micro_batch_size=section.micro_batch_size,
            ranks=backend.world_size,
            seed=seed,
        )
        self.num_updates = self.order.num_updates(epochs=section.epochs, num_updates=section.num_updates)

    def run(self, *, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        for update in range(first_update, stop):
            started = time.perf_counter()
            num_tokens = sum(len(self._examples[i].response_ids) for i in self.order.order_of(update))
            loss = torch.zeros((), device=self._backend.student.device)
            for micro in range(self.order.num_micro_batches):
                share = self._loss(self.order.micro_batch(update, micro, self._backend.rank), num_tokens)
                self._backend.backward(share)
                loss += share.detach()
            norm, lr = self._backend.step()
            total = float(self._backend.sum_over_ranks(loss))
            check_update(update, self._backend.student, loss=total, grad_norm=norm)
            seconds = time.perf_counter() - started
            metrics = {
                "loss": total,
                "grad_norm": norm,
                "lr": lr,
                "tokens": float(num_tokens),
                "time/update_s": seconds,
            }
            on_update(UpdateReport(update=update, metrics=metrics, decisions=()))

    def record(self) -> dict[str, object]:
        """Nothing but weights and optimizer changes."""
        return {}

    def restore(self, record: dict[str, object]) -> None:
        pass

    def facts(self) -> dict[str, object]:
        """Nothing beside the figures of the updates."""
        return {}

    def _loss(self, indices: Sequence[int], num_tokens: int) -> torch.Tensor:
        examples = [self._examples[i] for i in indices]
        prompts, responses = [e.prompt_ids for e in examples], [e.response_ids for e in examples]
        device = self._backend.student.device
        if self._section.packing:
            batch = packed_responses(prompts, responses, self._padding, device, row_length=self._section.max_length)
        else:
            batch = batch_responses(prompts, responses, self._padding, device)
        logits = self._backend.forward(batch, logits=True)[:, : self._vocab_size].float()
        targets = batch.ids[batch.token_sequence, batch.token_index + 1]
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_tokens


@torch.no_grad()
def check_packing(student: Student) -> None:
    """Refuse to pack for a model whose sequences would see each other: one with linear attention, convolutions, or positions
    that it counts itself.

    Raises:
        ModelError: packed sequences get other distributions than separate ones, by more than rounding.
    """
    rng = np.random.default_rng(0)
    padding, lengths = pad_id(student.tokenizer), (9, 13, 7)
    sequences = [rng.integers(0, len(student.tokenizer), size=length, dtype=np.int32) for length in lengths]
    given = ([ids[:1] for ids in sequences], [ids[1:] for ids in sequences], padding, student.device)
    training = student.training
    student.eval()
    separate, packed = (
        torch.log_softmax(student(batch, logits=True).float(), -1)
        for batch in (batch_responses(*given), packed_responses(*given, row_length=sum(lengths)))
    )
    student.train(training)
    # Tokens of both are in the order of the sequences only where one stands in a row: packing has the longest first.
    order = np.argsort([-length for length in lengths], kind="stable")
    starts = np.cumsum([0, *(length - 1 for length in lengths)])
    separate = torch.cat([separate[starts[i] : starts[i + 1]] for i in order])
    difference = float((separate - packed).abs().max())
    tolerance = ROUNDING["bfloat16" if next(student.parameters()).dtype == torch.bfloat16 else "float32"]
    if not difference <= tolerance:
        raise ModelError(
            f"{student.directory}: packed sequences see each other, by {difference:.3g} nats in a token's log-probability on a"
            f" probe, more than {tolerance:g}: its layers do not start again where positions do; set sft.packing false"
        )
