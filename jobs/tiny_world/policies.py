"""How the tiny world's policies are made from seeds: sizes, lengths, and when a training ends. Knows nothing of Ray."""

import copy
import itertools
import logging

from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from jobs.tiny_world.training import (
    ModelShape,
    TrainingPlan,
    chat_examples,
    epochs,
    greedy_accuracy,
    raw_examples,
    train_language_model,
)
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.world import PRETRAIN_SEED, SFT_SEED, Problem, make_problem

logger = logging.getLogger(__name__)

TEACHER_SHAPE = ModelShape(num_layers=4, num_heads=4, num_kv_heads=4, intermediate=384)
TEACHER_PLAN = TrainingPlan(num_updates=2000, batch_size=64, learning_rate=2e-3)
WEAK_TEACHER_ACCURACY = 0.75
"""The weak teacher is the teacher's first snapshot that gets this share of problems right."""
SNAPSHOT_EVERY = 50

STUDENT_SHAPE = ModelShape(num_layers=3, num_heads=3, num_kv_heads=3, intermediate=256)
STUDENT_BASE_PLAN = TrainingPlan(num_updates=3000, batch_size=64, learning_rate=2e-3)
STUDENT_ACCURACY = 0.25
"""Pretraining ends at the first snapshot that gets this share right once fine-tuned on solutions.

What a number of updates leads to depends on the seed: the student learns to solve problems within a few hundred of them.
"""
STUDENT_SNAPSHOT_EVERY = 100
SFT_PLAN = TrainingPlan(num_updates=150, batch_size=32, learning_rate=2e-3, warmup=10)
NUM_SFT_SOLUTIONS = 1500


def validation_problems(config: WorldConfig) -> list[Problem]:
    """Of the pretraining split, behind every index that training reaches."""
    return [make_problem(config, seed=PRETRAIN_SEED, index=10**7 + i) for i in range(300)]


def make_teachers(
    config: WorldConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]:
    """The teacher, and the weak teacher: an earlier snapshot of the same training."""
    teacher = TEACHER_SHAPE.build(tokenizer, seed=seed)
    validation = validation_problems(config)
    snapshots: list[Qwen2ForCausalLM] = []

    def keep_first_good_snapshot(num_updates: int) -> bool:
        if not snapshots and num_updates % SNAPSHOT_EVERY == 0:
            accuracy = greedy_accuracy(teacher, tokenizer, validation)
            logger.info("teacher, update %d: accuracy %.3f", num_updates, accuracy)
            if accuracy >= WEAK_TEACHER_ACCURACY:
                snapshots.append(copy.deepcopy(teacher))
        return False

    train_language_model(
        teacher,
        chat_examples(config, tokenizer, seed=PRETRAIN_SEED),
        TEACHER_PLAN,
        pad_id=tokenizer.pad_token_id,
        stop_after=keep_first_good_snapshot,
    )
    if not snapshots:
        raise RuntimeError(f"teacher below {WEAK_TEACHER_ACCURACY:.0%}: make the world easier or train longer")
    return teacher.eval(), snapshots[0].eval()


def make_student_base(config: WorldConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2ForCausalLM:
    """A small model that has read raw world text and never seen the chat format."""
    student = STUDENT_SHAPE.build(tokenizer, seed=seed)
    validation = validation_problems(config)

    def good_enough(num_updates: int) -> bool:
        if num_updates % STUDENT_SNAPSHOT_EVERY:
            return False
        tuned = supervise(student, config, tokenizer, split_seed=SFT_SEED, order_seed=seed)
        accuracy = greedy_accuracy(tuned, tokenizer, validation)
        logger.info("student, update %d: accuracy after fine-tuning %.3f", num_updates, accuracy)
        return accuracy >= STUDENT_ACCURACY

    train_language_model(
        student,
        raw_examples(config, tokenizer, seed=PRETRAIN_SEED),
        STUDENT_BASE_PLAN,
        pad_id=tokenizer.pad_token_id,
        stop_after=good_enough,
    )
    return student.eval()


def supervise(
    student: Qwen2ForCausalLM,
    config: WorldConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split_seed: int,
    order_seed: int,
) -> Qwen2ForCausalLM:
    """A copy of the student, fine-tuned on a fixed set of solutions."""
    tuned = copy.deepcopy(student)
    solutions = list(itertools.islice(chat_examples(config, tokenizer, seed=split_seed), NUM_SFT_SOLUTIONS))
    train_language_model(tuned, epochs(solutions, seed=order_seed), SFT_PLAN, pad_id=tokenizer.pad_token_id)
    return tuned.eval()
