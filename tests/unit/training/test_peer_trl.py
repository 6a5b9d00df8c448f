"""TRL's two distillation trainers as independent implementations: loss and gradient of the first update are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from transformers import TrainerCallback

from jobs.bench.peer_trl import Peer, trl_trainer
from tests.conftest import STUDENT, TEACHER
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.method.divergences import Divergence, GeneralizedJSD, SkewedKL, SkewedReverseKL
from vcrd_ray.method.fused import HiddenTeacher, fused_divergence
from vcrd_ray.method.loss import Denominators, distillation_loss, token_coefficients
from vcrd_ray.models.batching import response_batch
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_head, pad_id, resolve_model
from vcrd_ray.models.student import Student
from vcrd_ray.types import PairBatch, RolloutPair

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NUM_PAIRS = 8
BY_BETA: dict[float, Divergence] = {
    0.0: SkewedKL(alpha=0.0),
    0.5: GeneralizedJSD(beta=0.5),
    1.0: SkewedReverseKL(alpha=0.0, detach_mixture=False),
}
"""What TRL's beta stands for; 0 is the forward KL."""


def make_student() -> Student:
    """The same student each time, with adapters that already change it: fresh ones have no gradient in A."""
    student = Student(
        StudentSection(path=STUDENT), lora=LoraSection(r=4, alpha=16, dropout=0.0), train_head=False, device=CPU, seed=0
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return student


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(divergence: Divergence, pairs: list[RolloutPair]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of this project: on teacher responses only, global token mean."""
    student = make_student()
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs))
    rows = batch.layout
    cut = rows.num_teacher_tokens
    inputs = response_batch(batch.pairs, pad_id(student.tokenizer), CPU)
    with torch.no_grad():
        backbone = load_causal_lm(resolve_model(TEACHER), dtype="float32", device=CPU).get_decoder()
        states = backbone(input_ids=inputs.ids).last_hidden_state
    fused = fused_divergence(
        divergence=divergence,
        student_hidden=student(inputs)[:cut],
        student_head=student.head,
        teacher=HiddenTeacher(
            hidden=states[inputs.token_sequence, inputs.token_index][:cut],
            head=load_head(resolve_model(TEACHER), dtype="float32"),
        ),
        vocab_size=len(student.tokenizer),
        chunk_rows=100,
    )
    coefficient = token_coefficients(
        rows,
        lambdas=(1.0, 0.0),
        reduction="global_token_mean",
        denominators=Denominators(pairs=len(pairs), teacher_tokens=cut, student_tokens=rows.num_tokens - cut),
    )
    loss = distillation_loss(fused.divergence, weights=np.ones(cut, np.float32), coefficients=coefficient[:cut])
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), gradients(student.model)


class Gradients(TrainerCallback):  # type: ignore[misc]
    """What the optimizer is about to be given."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = gradients(kwargs["model"])


@pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
@pytest.mark.parametrize("beta", BY_BETA)
@pytest.mark.parametrize("peer", ["trl_gkd", "trl_distillation"])
def test_loss_and_gradient_of_an_update_equal_trl(
    peer: Peer, beta: float, pairs: list[RolloutPair], tmp_path: Path
) -> None:
    batch, student, seen = pairs[:NUM_PAIRS], make_student(), Gradients()
    trainer = trl_trainer(
        peer,
        model=student.model,
        teacher=load_causal_lm(resolve_model(TEACHER), dtype="float32", device=CPU),
        tokenizer=student.tokenizer,
        pairs=batch,
        folder=tmp_path,
        callbacks=[seen],
        beta=beta,
        max_steps=1,
        # Two micro-batches with unequal numbers of tokens: the mean is over the tokens of both.
        per_device_train_batch_size=NUM_PAIRS // 2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,  # no clipping
    )
    trainer.train()
    loss, wanted = loss_and_gradients(BY_BETA[beta], batch)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert seen.found.keys() == wanted.keys() and len(wanted) > 0
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        difference = float((seen.found[name] - gradient).abs().max())
        assert difference < 1e-4 * scale, name
