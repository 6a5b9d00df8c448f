"""Students and teachers that `jobs.bench transport` compares losses of: synthetic ones, and those of the tiny world."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vcrd_ray.method.divergences import Divergence
    from vcrd_ray.method.fused import TeacherDistribution


class Case:
    """Rows of a student and a teacher, both as hidden states and heads."""

    def __init__(
        self,
        student_hidden: torch.Tensor,
        student_head: torch.Tensor,
        teacher_hidden: torch.Tensor,
        teacher_head: torch.Tensor,
    ) -> None:
        self.student_hidden, self.student_head = student_hidden, student_head
        self.teacher_hidden, self.teacher_head = teacher_hidden, teacher_head
        self.vocab = min(len(student_head), len(teacher_head))
        self.teacher_logp = (teacher_hidden @ teacher_head[: self.vocab].T).log_softmax(-1)

    def loss_and_gradient(self, divergence: Divergence, teacher: TeacherDistribution) -> tuple[float, torch.Tensor]:
        """The mean over rows, and its gradient by the student's hidden states."""
        from vcrd_ray.method.fused import fused_divergence

        hidden = self.student_hidden.clone().requires_grad_()
        rows = fused_divergence(
            divergence=divergence,
            student_hidden=hidden,
            student_head=self.student_head,
            teacher=teacher,
            vocab_size=self.vocab,
            chunk_rows=16,
        )
        loss = rows.divergence.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        return float(loss.detach()), hidden.grad


def synthetic_case(options: argparse.Namespace, exponent: float) -> Case:
    """Both models share the order of the tokens up to noise of their own: logit = -exponent ln rank + h . w."""
    import torch

    torch.manual_seed(options.seed)
    ranks = -exponent * torch.arange(1, options.vocab + 1).float().log()[:, None]
    width = 16
    shared = torch.randn(options.vocab, width) / width**0.5
    parts = []
    for _ in range(2):
        head = torch.cat([shared + 0.3 * torch.randn(options.vocab, width) / width**0.5, ranks], 1)
        parts.append(head)
    states = torch.randn(options.rows, width)
    hidden = torch.cat([states, torch.ones(options.rows, 1)], 1)
    return Case(hidden, parts[0], hidden.clone(), parts[1])


def tiny_case(rows: int) -> Case:
    """Solutions of the tiny world, read by the shipped weak teacher and by the student base."""
    import torch

    from vcrd_ray.config.data import TinyPrompts
    from vcrd_ray.config.world import WorldConfig
    from vcrd_ray.data.problems import make_examples, read_problems
    from vcrd_ray.models.batching import batch_responses
    from vcrd_ray.models.checkpoint_files import load_causal_lm, load_head, load_tokenizer, pad_id, resolve_model

    student, teacher = (resolve_model(name) for name in ("tiny:student-base", "tiny:teacher-weak"))
    tokenizer = load_tokenizer(student)
    problems, _ = read_problems(TinyPrompts(seed=2, count=max(1, rows // 16)), WorldConfig())
    examples, _ = make_examples(problems, tokenizer, max_length=1000)
    cpu = torch.device("cpu")
    batch = batch_responses(
        [e.prompt_ids for e in examples], [e.response_ids for e in examples], pad_id(tokenizer), cpu
    )
    states = []
    for path in (student, teacher):
        backbone = load_causal_lm(path, dtype="float32", device=cpu).get_decoder()
        with torch.no_grad():
            hidden = backbone(input_ids=batch.ids).last_hidden_state
        states += [hidden[batch.token_sequence, batch.token_index], load_head(path, dtype="float32")[: len(tokenizer)]]
    return Case(*states)
